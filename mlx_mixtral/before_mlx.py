"""What has to be done before MLX is imported, since it looks only then."""

from __future__ import annotations

import os
import sys

from mlx_mixtral.blas import use_system_blas
from mlx_mixtral.tuning import tuned


def before_mlx() -> None:
    """Let MLX find OpenBLAS, and its limits as tuned; nothing once MLX is imported."""
    if "mlx.core" in sys.modules:
        return
    use_system_blas()
    for name, value in tuned().environment.items():
        os.environ.setdefault(name, value)  # what the user set stands
