"""Mistral's mixture-of-experts models on a Mac, with MLX.

>>> from mlx_mixtral import load, generate, stream, Chat
>>> lm = load("demo")
>>> print(generate(lm, lm.template.encode([{"role": "user", "content": "Hello!"}])))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_mixtral.chat import Chat
    from mlx_mixtral.generation.text import generate, stream
    from mlx_mixtral.loading import load

__all__ = ["Chat", "generate", "load", "stream"]

_HOME = {
    "Chat": "mlx_mixtral.chat",
    "generate": "mlx_mixtral.generation.text",
    "load": "mlx_mixtral.loading",
    "stream": "mlx_mixtral.generation.text",
}


def __getattr__(name: str) -> Any:
    # Imported on use: mlx-lm takes over a second, and `--help` should not wait for it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from mlx_mixtral.before_mlx import before_mlx

    before_mlx()
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
