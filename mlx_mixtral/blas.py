"""The system's OpenBLAS in place of the BLAS that comes with MLX for Linux.

That wheel brings the reference BLAS, which is there to be read: a product of 512 x 1024 by
1024 x 3584 takes it 37 times as long as OpenBLAS on two cores. macOS has Accelerate, and a GPU
needs neither.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_NAME = "libopenblas.so.0"  # Debian's and Ubuntu's libopenblas0; others link the same name


@cache
def use_system_blas() -> bool:
    """Let MLX find OpenBLAS first, if there is one; to be called before MLX is imported.

    Symbols of a library that was loaded for all come before those that MLX brings, so that
    nothing else has to be changed. Returns whether MLX multiplies by it from now on.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        ctypes.CDLL(_NAME, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
