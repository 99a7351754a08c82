"""What generation takes from mlx-lm: its logit filters and its penalties.

mlx-lm is imported here alone and only on use: it takes over a second, most of it in
transformers, and on import it lowers the limit of open files, the hard one too, which
a process cannot raise again.
"""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = setrlimit


with _open_file_limit_kept(), warnings.catch_warnings():
    # Of a progress bar in notebooks, which nothing here shows.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from mlx_lm.sample_utils import (
        apply_min_p,
        apply_top_k,
        apply_top_p,
        make_logits_processors,
    )

__all__ = [
    "apply_min_p",
    "apply_top_k",
    "apply_top_p",
    "make_logits_processors",
]
