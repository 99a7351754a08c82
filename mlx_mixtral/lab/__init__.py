"""Measuring: how fast a model runs, and beside what."""
