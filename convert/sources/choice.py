"""Which files of a repository are fetched: one form of its weights, and what goes with it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from mlx_mixtral.errors import ModelError, UsageError


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    name: str
    """With its folders: ``Q4_K_M/model-00001-of-00002.gguf``."""
    size: int
    sha256: str | None
    """Of a large file's content, in hexadecimal; of a small one there is ``blob``."""
    blob: str | None
    """Git's sha1 of a small file."""

    @property
    def local(self) -> str:
        """Its name in the folder that it is fetched into, which has no folders."""
        return PurePosixPath(self.name).name

    @property
    def folder(self) -> str:
        """Where the repository keeps it; empty at the top."""
        return self.name.rpartition("/")[0]


_BESIDE = (
    "config.json",
    "params.json",
    "generation_config.json",
    "quantize_config.json",
    "quant_config.json",
    "tokenizer.model*",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*.jinja",
    "chat_template*.json",
    "LICENSE*",
    "NOTICE*",
)
"""What goes along with any weights: shapes, tokenizer, template, licence. Never code."""

_FORMS = {
    "model*.safetensors": 0,  # Hugging Face's, and MLX's since 2024
    "weights*.safetensors": 0,
    "consolidated*.safetensors": 2,
    "*.safetensors": 1,  # any other name, such as gptq_model-4bit-128g.safetensors
    "consolidated*.pth*split*": 4,
    "consolidated*.pth": 3,
    "consolidated*.pt": 5,
    "weights*.npz": 6,
    "*.gguf": 7,
}
"""Patterns of weights, the first that fits counts, and their rank: the lowest one is taken."""

_SEVERAL = (1, 7)
"""Ranks whose files are not parts of one model but each a model, unless numbered as parts."""

_NO_WEIGHTS = ("adapter*", "*mmproj*", "*imatrix*", "optimizer*")
_INDEX = ".index.json"
_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class _Variant:
    """The files that make up the weights of one model."""

    rank: int
    folder: str
    files: tuple[RemoteFile, ...]

    def __str__(self) -> str:
        first, size = self.files[0].name, sum(file.size for file in self.files)
        parts = f" in {len(self.files)} files" if len(self.files) > 1 else ""
        return f"{first} ({size / 1e9:.1f} GB{parts})"

    def matches(self, only: str) -> bool:
        """Whether any of its files has the name or fits the pattern, with or without folders."""
        names = {name.lower() for file in self.files for name in (file.name, file.local)}
        return any(fnmatchcase(name, only.lower()) for name in names)


def choose(
    repository: str, files: Sequence[RemoteFile], only: str | None = None
) -> tuple[RemoteFile, ...]:
    """The files to fetch, the small ones first; weights in one form alone.

    ``only`` is a name or a pattern of weights, for a repository that holds several models, or
    to take another form than the preferred one. What it picks from a folder of the repository
    is kept without that folder; what the folder has beside it (params.json, a tokenizer) goes
    before the repository's own.

    Raises:
        UsageError: there are several models to choose from, or ``only`` fits none.
        ModelError: there are no weights.
    """
    variants = _variants(files)
    if not variants:
        raise ModelError(_weightless(repository, files))
    if only is None:
        found = [variant for variant in variants if not variant.folder]
        if not found:
            listed = _list(variants)
            raise UsageError(f"{repository} keeps its weights in folders, take --file: {listed}")
    elif not (found := [variant for variant in variants if variant.matches(only)]):
        raise UsageError(f"{repository} has no weights named {only}; it has: {_list(variants)}")
    best = [variant for variant in found if variant.rank == min(v.rank for v in found)]
    if len(best) > 1:
        raise UsageError(f"{repository} holds several models, take one with --file: {_list(best)}")
    chosen, ranks = best[0], {variant.rank for variant in variants}
    beside = {
        file.local: file  # what lies beside the weights comes last and wins
        for file in sorted(files, key=lambda file: (len(file.folder), file.name))
        if _goes_along(file, chosen, ranks)
    }
    return (*(beside[name] for name in sorted(beside)), *chosen.files)


def _variants(files: Iterable[RemoteFile]) -> list[_Variant]:
    """All weights, in the order of their names."""
    found: dict[tuple[int, str, str], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        if (rank := _rank(file.local)) is not None:
            model = _model(file.local) if rank in _SEVERAL else ""
            found.setdefault((rank, file.folder, model), []).append(file)
    return [_Variant(rank, folder, tuple(files)) for (rank, folder, _), files in found.items()]


def _rank(name: str) -> int | None:
    if any(fnmatchcase(name, pattern) for pattern in _NO_WEIGHTS):
        return None
    return next((rank for form, rank in _FORMS.items() if fnmatchcase(name, form)), None)


def _model(name: str) -> str:
    """A file's name, or what the names of numbered parts of one model have in common."""
    numbered = _NUMBERED.fullmatch(name)
    return "".join(numbered.groups()) if numbered else name


def _goes_along(file: RemoteFile, chosen: _Variant, ranks: set[int]) -> bool:
    if file.local.endswith(_INDEX):
        form = _rank(file.local.removesuffix(_INDEX))
        # An index can have the usual name though the files that it names have not.
        own = form == chosen.rank or ((form, chosen.rank) == (0, 1) and 0 not in ranks)
        return own and file.folder == chosen.folder
    if file.folder not in ("", chosen.folder):
        return False
    return any(fnmatchcase(file.local, pattern) for pattern in _BESIDE)


def _list(variants: Iterable[_Variant]) -> str:
    return ", ".join(str(variant) for variant in variants)


def _weightless(repository: str, files: Sequence[RemoteFile]) -> str:
    largest = max(files, key=lambda file: file.size, default=None)
    held = f"its largest file is {largest.name}" if largest else "it is empty"
    return (
        f"{repository} has no weights that can be read ({held}): safetensors, GGUF, npz, or "
        f"Mistral's consolidated files are needed; look for another copy of the model"
    )
