"""What earlier downloads left in the Hugging Face cache, if it makes a whole model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from convert.sources.choice import RemoteFile, choose
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.jsonfile import read_json

_NUMBERED = re.compile(r"(.+-)\d{5}-of-(\d{5})(\.\w+)")


def cached(name: str, revision: str | None = None, only: str | None = None) -> Path | None:
    """The folder of repository ``name`` in the cache, if all that is needed is in it.

    No network is asked. What the cache knows of the repository tells what is needed; where it
    does not know, what is there has to be whole by itself: numbered parts, the files that an
    index names, a configuration and a tokenizer. ``only`` is as for ``choice.choose``.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:  # without patterns: only where it is, what is in it is seen below
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[])
        folder = Path(found)
    except (OSError, HFValidationError):
        return None
    here = [
        RemoteFile(path.name, path.stat().st_size, None, None)
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    try:
        listed = [
            RemoteFile(file.path, file.lfs.size if file.lfs else file.size, None, None)
            for file in get_cached_repo_tree(name, revision=revision)
        ]
        return folder if set(choose(name, listed, only)) <= set(here) else None
    except CachedRepoTreeNotFoundError:
        return folder if _is_whole(folder, name, here, only) else None
    except (UsageError, ModelError):  # several models, or none: for whoever asks the hub to tell
        return None


def _is_whole(folder: Path, name: str, here: Sequence[RemoteFile], only: str | None) -> bool:
    """Whether what is there needs nothing else."""
    try:
        chosen = {file.name for file in choose(name, here, only)}
        indexes = [read_json(folder / file) for file in chosen if file.endswith(".index.json")]
        wanted = {str(shard) for index in indexes for shard in dict(index["weight_map"]).values()}
    except (UsageError, ModelError, KeyError, TypeError, ValueError):
        return False
    for numbered in filter(None, map(_NUMBERED.fullmatch, chosen)):
        start, count, end = numbered.groups()
        wanted |= {f"{start}{number:05d}-of-{count}{end}" for number in range(1, int(count) + 1)}
    alone = any(file.endswith(".gguf") for file in chosen)  # has all the rest in it
    shaped = bool({"config.json", "params.json"} & chosen)
    speaks = any(file.startswith("tokenizer") and "config" not in file for file in chosen)
    return wanted <= chosen and (alone or (shaped and speaks))
