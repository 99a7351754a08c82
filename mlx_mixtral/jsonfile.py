"""JSON objects in the files of a model folder, read without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import ModelError

# The largest in use, a tokenizer.json or an index of 8x22B, have a few MB.
LARGEST = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ModelError: there is no such file, it is too large, damaged, or holds something else.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ModelError(f"{path} is far too large for its kind; fetch it again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; fetch it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object; fetch it again")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As ``read_json``; empty when there is no such file."""
    return read_json(path) if path.is_file() else {}
