"""A text's way through a model, matrix by matrix.

Each matrix is asked for when all that goes into it is known: then it can be quantized by it.
What comes back is the matrix as it was stored, so that all that comes later sees the errors
made so far. One matrix, or one expert, is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convert.feedback import Feedback
from convert.forward import attend, rms_norm, route, swiglu
from convert.readers.grid import Floats
from mlx_mixtral.config import ModelConfig

Ids = NDArray[np.int32]

FLOOR = 0.05
"""What an expert learns from tokens that went elsewhere counts as much as so many of its own,
in shares of what every expert would get if all got the same."""
_SAMPLE = 1024
"""Tokens that stand for all of them there."""


class Take(Protocol):
    """Gives matrix ``name``, or expert ``index`` of a stack, as stored: float32 [out, in].

    ``feedback`` tells what goes into it, for whoever has to quantize it.
    """

    def __call__(
        self, name: str, index: int = 0, feedback: Callable[[], Feedback] | None = None
    ) -> Floats: ...


@dataclass(frozen=True)
class Walk:
    """The windows [N, L] of a text on their way through the model of ``config``."""

    config: ModelConfig
    ids: Ids
    take: Take

    def embedded(self) -> Floats:
        """Hidden states [N x L, D] before the first layer."""
        return self.take("model.embed_tokens.weight")[self.ids.ravel()]

    def layer(self, n: int, x: Floats) -> None:
        """Turn the hidden states ``x`` before layer ``n`` into those after it."""
        path = f"model.layers.{n}"
        self._attention(path, x)
        normed = self._normed(f"{path}.post_attention_layernorm", x)
        if self.config.is_moe:
            self._experts(f"{path}.block_sparse_moe", normed, x)
        else:
            everywhere = np.arange(len(x)), np.ones(len(x), np.float32)
            self._expert(f"{path}.mlp", 0, normed, *everywhere, x)

    def head(self, x: Floats) -> None:
        """After the last layer; the logits themselves are nobody's input."""
        normed = self._normed("model.norm", x)
        if not self.config.tie_word_embeddings:
            self.take("lm_head.weight", 0, _feedback(normed))

    def _normed(self, path: str, x: Floats) -> Floats:
        return rms_norm(x, self.take(f"{path}.weight"), self.config.rms_norm_eps)

    def _attention(self, path: str, x: Floats) -> None:
        normed = self._normed(f"{path}.input_layernorm", x)
        path = f"{path}.self_attn"
        feedback = _feedback(normed)
        q, k, v = (self.take(f"{path}.{name}_proj.weight", 0, feedback) for name in "qkv")
        answers = np.empty((len(x), len(q)), np.float32)
        length = self.ids.shape[1]
        for begin in range(0, len(x), length):
            rows = normed[begin : begin + length]
            answers[begin : begin + length] = attend(
                rows @ q.T, rows @ k.T, rows @ v.T, self.config
            )
        x += answers @ self.take(f"{path}.o_proj.weight", 0, _feedback(answers)).T

    def _experts(self, path: str, normed: Floats, x: Floats) -> None:
        logits = normed @ self.take(f"{path}.gate.weight").T
        chosen, weights = route(logits, self.config.num_experts_per_tok)
        for expert in range(self.config.num_local_experts):
            tokens, places = np.nonzero(chosen == expert)
            mine = weights[tokens, places]
            self._expert(f"{path}.switch_mlp", expert, normed, tokens, mine, x)

    def _expert(
        self,
        path: str,
        expert: int,
        normed: Floats,
        tokens: NDArray[np.int64],
        weights: Floats,
        x: Floats,
    ) -> None:
        """Add an expert's answers to ``tokens``, times ``weights``, to ``x``.

        Its matrices are made for these tokens, and a little for a sample of all of them: an
        expert that the text leaves out has to work for others.
        """
        sample = np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(np.int64)
        fair = len(x) * self.config.num_experts_per_tok / max(1, self.config.num_local_experts)
        floor = np.sqrt(FLOOR * fair / len(sample), dtype=np.float32)
        counts = np.concatenate([np.ones_like(weights), np.full(len(sample), floor, np.float32)])
        rows = normed[np.concatenate([tokens, sample])]
        feedback = _feedback(rows, counts)
        gate = self.take(f"{path}.gate_proj.weight", expert, feedback)
        up = self.take(f"{path}.up_proj.weight", expert, feedback)
        inner = swiglu(rows @ gate.T, rows @ up.T)
        del gate, up
        down = self.take(f"{path}.down_proj.weight", expert, _feedback(inner, counts))
        x[tokens] += weights[:, None] * (inner[: len(tokens)] @ down.T)


def _feedback(rows: Floats, counts: Floats | None = None) -> Callable[[], Feedback]:
    """Of inputs [T, in]; each counts by the square of ``counts`` [T]. Computed when asked for."""

    def moments() -> Floats:
        counted: Floats = rows if counts is None else rows * counts[:, None]
        product: Floats = counted.T @ counted
        return product

    return cache(lambda: Feedback.of(moments))
