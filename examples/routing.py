"""Which experts does each token choose? Watch the router of one layer at work."""

import mlx.core as mx

from mlx_mixtral import load

lm = load("demo")
layer = lm.model.model.layers[2].block_sparse_moe
experts, chosen = layer.switch_mlp, []


def watched(tokens: mx.array, indices: mx.array) -> mx.array:
    """Experts are any callable (tokens [T, D], indices [T, K]) -> [T, K, D]."""
    chosen.append(indices)
    return experts(tokens, indices)


layer.switch_mlp = watched
prompt = lm.template.encode([{"role": "user", "content": "How do you say dog in French?"}])
mx.eval(lm.model(mx.array([prompt])))

for token, pair in zip(prompt, chosen[0].tolist(), strict=True):
    row = "".join(str(e) if e in pair else "." for e in range(lm.config.num_local_experts))
    print(f"{row}  {lm.tokenizer.decode([token])}")
