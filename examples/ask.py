"""Ask one question.

python examples/ask.py "What is a violin?"
python examples/ask.py "What is a violin?" my/converted/mixtral
"""

import sys

from mlx_mixtral import generate, load

question = sys.argv[1] if len(sys.argv) > 1 else "What is a violin?"
lm = load(sys.argv[2] if len(sys.argv) > 2 else "demo")

prompt = lm.template.encode([{"role": "user", "content": question}])
answer = generate(lm, prompt, max_tokens=200)

print(answer)
print(f"{answer.stats.generation_tps:.0f} tokens a second", file=sys.stderr)
