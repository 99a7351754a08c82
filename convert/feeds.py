"""Conversion with little room: each file of the source goes when all in it is converted.

Safetensors only, whose headers tell what they hold. What is left to do can always be told
from the headers, which are kept beside the unfinished model (see ``convert.skeleton``): a
feed's ``folder`` is what a reader is to open.
"""

from collections.abc import Callable
from pathlib import Path

from convert.skeleton import Skeleton
from convert.sources.hub import RemoteFile, Repository, download_file, header
from convert.target import reported
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.shards import read_header


class LocalFeed:
    """The safetensors files of a folder, deleted one by one."""

    def __init__(self, source: Path, folder: Path) -> None:
        """Lay out the skeleton of ``source`` in ``folder``.

        Raises:
            UsageError: its files are links into somebody else's folder.
            ModelError: a file is damaged.
        """
        self.identity = str(source.resolve())
        self.folder = folder
        self._skeleton = skeleton = Skeleton(folder, self.identity)
        for file in sorted(source.iterdir()):
            if file.suffix == ".safetensors":
                self._add(file)
            elif file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt", ""):
                skeleton.keep(file.name, file.read_bytes())

    def _add(self, file: Path) -> None:
        if file.is_symlink():
            raise UsageError(
                f"{file} is a link, perhaps into a cache of Hugging Face's; --delete-source "
                f"deletes only plain files: leave it out, or give the folder that they lie in"
            )
        begin = min((span.offset for span in read_header(file).values()), default=0)
        with file.open("rb") as stream:
            self._skeleton.add(file.name, stream.read(begin), file.stat().st_size)
        self._skeleton.fill(file.name, file)

    def fetch(self, file: Path, beat: Callable[[str], None]) -> None:
        """See ``run.Feed``."""
        if self._skeleton.is_hollow(file.name):
            raise ModelError(
                f"{file.name} was converted and deleted before, but what was made of it is "
                f"damaged; fetch the file again"
            )

    def drop(self, file: Path) -> None:
        """See ``run.Feed``."""
        real = Path(self.identity, file.name)
        with reported(real):
            self._skeleton.empty(file.name)
            real.unlink(missing_ok=True)


class HubFeed:
    """The safetensors files of a Hugging Face repository, fetched and deleted one by one."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        """Fetch the small files and the headers to ``folder``.

        Raises:
            UsageError: the repository's weights are not safetensors.
            MixtralError: the network or the hub fails.
        """
        self.identity = repository.origin
        self._repository = repository
        self._skeleton = skeleton = Skeleton(folder, self.identity)
        self.folder = folder
        self._whole = skeleton.folder / "whole"
        self._files = {file.local: file for file in repository.files}
        for name, file in self._files.items():
            if not _is_shard(file):
                download_file(repository, file, folder)
            elif not skeleton.knows(name):
                skeleton.add(name, header(repository, file), file.size)

    def fetch(self, file: Path, beat: Callable[[str], None]) -> None:
        """See ``run.Feed``."""
        if self._skeleton.is_hollow(file.name):
            self._whole.mkdir(exist_ok=True)
            remote = self._files[file.name]

            def tell(done: int, total: int) -> None:
                beat(f"{file.stem} {done / 1e9:.1f}/{total / 1e9:.1f} GB")

            real = download_file(self._repository, remote, self._whole, tell)
            self._skeleton.fill(file.name, real)

    def drop(self, file: Path) -> None:
        """See ``run.Feed``."""
        real = self._whole / file.name
        with reported(real):
            self._skeleton.empty(file.name)
            real.unlink(missing_ok=True)


def in_shards(repository: Repository) -> bool:
    """Whether the repository's weights can be fetched and deleted file by file."""
    return any(_is_shard(file) for file in repository.files)


def _is_shard(file: RemoteFile) -> bool:
    return file.name.endswith(".safetensors")
