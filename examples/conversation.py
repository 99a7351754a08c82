"""A conversation of several turns: the model's memory of it stays, only what is new is computed."""

from mlx_mixtral import Chat, load

chat = Chat(load("demo"))
questions = [
    "My name is Anna.",
    "How do you say dog in French?",
    "And in German?",
    "What is my name?",
]
for text in questions:
    answer = chat.send(text)
    print(f"> {text}\n{answer}")
    print(f"  ({answer.stats.cached_tokens} of {answer.stats.prompt_tokens} tokens known before)\n")
