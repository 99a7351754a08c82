"""The whole network: token ids in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.model.attention import Attention, Cache, Mask, Span
from mlx_mixtral.model.moe import DenseMLP, Experts, SparseMoE


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, experts: Experts | None) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if experts:
            self.block_sparse_moe = SparseMoE(config, experts)
        else:
            self.mlp = DenseMLP(config)
        self._feed_forward = "block_sparse_moe" if experts else "mlp"

    def __call__(
        self, x: mx.array, mask: Mask, cache: Cache | None, last: int | None = None
    ) -> mx.array:
        """[B, L, D] -> [B, L, D], or [B, last, D] for the last tokens only."""
        attended = self.self_attn(self.input_layernorm(x), mask, cache, last)
        return self._fed_forward((x if last is None else x[:, -last:]) + attended)

    def together(
        self, x: mx.array, positions: mx.array, spans: Sequence[Span], kept: mx.array | None
    ) -> mx.array:
        """Rows [N, D] of several texts -> [N, D], or [M, D]: those whose numbers are kept."""
        attended = self.self_attn.together(self.input_layernorm(x), positions, spans)
        return self._fed_forward((x if kept is None else x[kept]) + attended)

    def _fed_forward(self, x: mx.array) -> mx.array:
        y: mx.array = self[self._feed_forward](self.post_attention_layernorm(x))
        return x + y


class Layers(nn.Module):
    """Embedding, layers and final norm: everything but the head."""

    def __init__(self, config: ModelConfig, experts: Callable[[int], Experts] | None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [
            Layer(config, experts(n) if experts else None) for n in range(config.num_hidden_layers)
        ]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, ids: mx.array, mask: Mask, caches: Sequence[Cache | None], last: int | None = None
    ) -> mx.array:
        x = self.embed_tokens(ids)
        for layer, cache in zip(self.layers[:-1], caches[:-1], strict=True):
            x = layer(x, mask, cache)
        # Of the tokens before the last ones, the last layer's keys and values are all that counts.
        x = self.layers[-1](x, mask, caches[-1], last)
        normed: mx.array = self.norm(x)
        return normed


class Transformer(nn.Module):
    """A Mixtral, or a dense Mistral when ``experts`` is None.

    Args:
        config: the shapes.
        experts: the experts of layer n, for each n.

    Attributes:
        waits: whether a pass is computed while it is being asked for, as where experts have to be
            read, and not after.
    """

    def __init__(self, config: ModelConfig, experts: Callable[[int], Experts] | None) -> None:
        super().__init__()
        self.config = config
        self.waits = False
        self.model = Layers(config, experts)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, ids: mx.array, caches: Sequence[Cache] | None = None) -> mx.array:
        """Token ids [B, L] -> logits [B, L, vocabulary].

        With caches (one a layer), ids continue the tokens that the caches hold, and are
        added to them.
        """
        return self.head(self.hidden(ids, caches))

    def hidden(
        self, ids: mx.array, caches: Sequence[Cache] | None = None, last: int | None = None
    ) -> mx.array:
        """Token ids [B, L] -> normed hidden states [B, L, D] of the last layer.

        Args:
            last: for so many of the last tokens only [B, last, D], which saves the others'
                share of the last layer.
        """
        length = ids.shape[1]
        if caches:
            window = self.config.sliding_window
            mask = caches[0].make_mask(length, return_array=False, window_size=window)
            return self.model(ids, mask, caches, last)
        return self.model(ids, self._mask(length), [None] * len(self.model.layers), last)

    def head(self, hidden: mx.array) -> mx.array:
        """Hidden states [..., D] -> logits [..., vocabulary]."""
        tied = self.config.tie_word_embeddings
        project = self.model.embed_tokens.as_linear if tied else self.lm_head
        logits: mx.array = project(hidden)
        return logits

    def _mask(self, length: int) -> Mask:
        window = self.config.sliding_window
        if window is None or length <= window:
            return "causal"
        q, k = mx.arange(length)[:, None], mx.arange(length)
        return (k <= q) & (k > q - window)
