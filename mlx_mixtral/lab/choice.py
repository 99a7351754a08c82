"""What ``make bench`` measures: the full shape of Mixtral 8x7B where a GPU has room for it, and
the demo elsewhere. Prints the arguments of ``mixtral-mlx bench``."""

from __future__ import annotations

import mlx.core as mx

from mlx_mixtral.lab.machine import on_gpu
from mlx_mixtral.lab.report import Settings
from mlx_mixtral.lab.shapes import needed_bytes, shape_config
from mlx_mixtral.memory import free_memory

DEMO = "demo --against mlx-lm --against mlx-lm-f32"
FULL = "--shape 8x7b --bits 4 --against mlx-lm"


def arguments() -> str:
    """What suits this machine."""
    if not on_gpu():
        return DEMO
    usual = Settings()
    config = shape_config("8x7b", 4, 64)
    needed = needed_bytes(config, mx.bfloat16, usual.prompt, usual.generate, ("mlx-lm",))
    return FULL if needed <= free_memory() else DEMO


if __name__ == "__main__":
    print(arguments())
