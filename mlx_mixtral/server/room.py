"""How the memory that is left beside the weights is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.generation.kv_file import activations
from mlx_mixtral.memory import free_memory, working_bytes

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

PREFIX_CONTEXTS = 4
"""Whole contexts that are worth keeping of answers that are over."""


@dataclass(frozen=True)
class Room:
    """Bytes for keys and values: of the running answers, and of what was computed before."""

    running: int
    prefixes: int

    @classmethod
    def beside(cls, lm: LanguageModel, kv: KVSettings, running: int) -> Room:
        """Of a loaded model: full contexts for all, if half of what is free allows it.

        One context it is in any case: ``load`` made sure of that. A quarter of what is free
        at most goes to prefixes, and the rest stays free for other programs.
        """
        dtype = activations(lm)
        one = kv_bytes(lm.config, lm.config.max_position_embeddings, kv, dtype)
        free = max(0, free_memory() - working_bytes(lm.config, dtype))
        return cls(
            running=max(one, min(running * one, free // 2)),
            prefixes=min(PREFIX_CONTEXTS * one, free // 4),
        )
