"""Stream an answer and show how sure the model was of each token."""

from mlx_mixtral import load, stream

lm = load("demo")
prompt = lm.template.encode([{"role": "user", "content": "Tell me a story about a dog."}])

for piece in stream(lm, prompt, temperature=1.0, seed=2, stop=["The next day"]):
    bar = "#" * round(20 * 2.718281828**piece.logprob)
    print(f"{piece.text!r:16} {bar}")
