"""Beginnings of prompts kept on disk from one run of the server to the next."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.generation import kv_file
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.kv_file import Owner
from mlx_mixtral.generation.prompt_cache import PromptCache

log = logging.getLogger(__name__)
SUFFIX = ".prefix.kv"


class PrefixFolder:
    """A file for each beginning, named after its tokens (see ``kv_file``).

    Files of another model, of other settings, or damaged ones are passed over and stay.
    """

    def __init__(self, path: Path, config: ModelConfig, kv: KVSettings, owner: Owner) -> None:
        """
        Args:
            path: the folder; made where there is none.

        Raises:
            UsageError: it cannot be made, or not be written to.
        """
        self._path, self._config, self._kv, self._owner = path, config, kv, owner
        self._read: set[Path] = set()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be made ({error.strerror}); name another") from None
        kv_file.check_target(path / SUFFIX)

    def read(self) -> Iterator[PromptCache]:
        """What the files hold, the one written last at the end."""
        files = [(file.stat().st_mtime, file) for file in self._path.glob(f"*{SUFFIX}")]
        for _, file in sorted(files):
            cache = PromptCache(self._config, self._kv)
            try:
                kv_file.read(file, cache, self._owner)
            except UsageError as error:
                log.warning("passed over: %s", error)
                continue
            self._read.add(file)
            yield cache

    def write(self, kept: Iterable[PromptCache]) -> None:
        """Have the folder hold these, in this order, instead of those that it was read of."""
        written = set()
        for cache in kept:
            digest = hashlib.sha256(repr(cache.tokens).encode()).hexdigest()[:32]
            file = self._path / f"{digest}{SUFFIX}"
            try:
                kv_file.write(file, cache, self._owner)
            except MixtralError as error:
                log.error("a prompt's beginning was not kept: %s", error)
                return
            written.add(file)
        for file in self._read - written:
            file.unlink(missing_ok=True)
