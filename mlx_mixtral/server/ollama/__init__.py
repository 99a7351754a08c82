"""Ollama's API, as far as it is about answers: for programs that speak no other."""
