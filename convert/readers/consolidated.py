"""Which files of a folder are one of Mistral's own checkpoints, whole or in pieces."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.readers.extent import Joined
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.jsonfile import read_json

_WHOLE = "consolidated.safetensors"
_INDEX = "consolidated.safetensors.index.json"
_SHARD = re.compile(r"consolidated-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
# consolidated.00.pth-split0, consolidated-split00.pth, consolidated.00.pth-split00.pth, ...
_PIECE = re.compile(r"(.*?)[-._]?split[-._]?(\d{1,4})(\.pth|\.pt)?", re.ASCII)
_NUMBERED = re.compile(r"consolidated\.(\d{2,4})\.(pth|pt)", re.ASCII)


@dataclass(frozen=True)
class Consolidated:
    """The files that tensors are in, each perhaps cut into pieces, and what to call them."""

    files: tuple[Joined, ...]
    form: str


def find(folder: Path, given: str | None = None) -> Consolidated:
    """The checkpoint in ``folder``, or the one that its file named ``given`` belongs to.

    Where a folder holds the model in several forms, the first of safetensors, .pth, .pt and
    pieces is taken.

    Raises:
        UsageError: there is no such checkpoint, or there are several.
        ModelError: a file or piece is missing, or the files are not as Mistral's are.
    """
    present = sorted(file.name for file in folder.iterdir() if file.is_file())
    pieces: dict[str, list[str]] = {}
    for name in present:
        if match := _PIECE.fullmatch(name):
            pieces.setdefault(match[1], []).append(name)
    whole = [name for name in present if not _PIECE.fullmatch(name)]
    sets = [
        (_safetensors, [name for name in whole if name == _WHOLE or _SHARD.fullmatch(name)]),
        (_pth, [name for name in whole if name.endswith(".pth")]),
        (_pt, [name for name in whole if name.endswith(".pt")]),
        *((_pieces, group) for group in pieces.values()),
    ]
    found = [(read, group) for read, group in sets if group and given in (None, *group)]
    if not found:
        raise UsageError(
            f"{folder} holds no {_WHOLE}, .pth or .pt; give the folder of Mistral's own files"
        )
    read, group = found[0]
    if given is None and read is _pieces and len(pieces) > 1:
        raise UsageError(f"{folder} holds pieces of {_listed(pieces)}; name one of them instead")
    return read(folder, group, given)


def uneven(file: Joined) -> str:
    """A hint at a piece that was cut short: it has not the size of the others."""
    sizes = {piece.name: piece.stat().st_size for piece in file.pieces[:-1]}
    (usual, times), *others = Counter(sizes.values()).most_common(2) or [(0, 0)]
    if not others or times < 2:
        return ""
    name = next(name for name, size in sizes.items() if size != usual)
    return f" ({name} has {sizes[name]:,} bytes, others {usual:,})"


# --- each of the forms


def _safetensors(folder: Path, names: Sequence[str], given: str | None) -> Consolidated:
    if _WHOLE in names:
        return _files(folder, [_WHOLE], _WHOLE)
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        listed = list(shards.values()) if isinstance(shards, dict) else []
        if not listed or not all(isinstance(s, str) and _SHARD.fullmatch(s) for s in listed):
            raise ModelError(f"{folder / _INDEX} does not list shards; fetch it again")
        wanted = sorted(set(listed))
    else:
        count = int(names[0][-len("00000.safetensors") :][:5])
        wanted = [f"consolidated-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    if missing := [name for name in wanted if name not in names]:
        raise _missing(folder, missing[0], len(wanted) - len(missing), len(wanted))
    return _files(folder, wanted, f"{_WHOLE} in {len(wanted)} shards")


def _pth(folder: Path, names: Sequence[str], given: str | None) -> Consolidated:
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    if len(numbered) > 1 and (given is None or given in numbered):
        raise ModelError(
            f"{folder} holds {_listed(numbered)}: a model cut up for several GPUs, which none of "
            f"Mistral's is; convert a Hugging Face copy of it instead"
        )
    if given is None and len(names) > 1:
        raise UsageError(f"{folder} holds {_listed(names)}; name one of them instead")
    return _files(folder, [given or names[0]], given or names[0])


def _pieces(folder: Path, names: Sequence[str], given: str | None) -> Consolidated:
    matches = [match for name in names if (match := _PIECE.fullmatch(name))]
    stem = matches[0][1]
    if stem.endswith(".safetensors"):
        raise ModelError(f"{folder / stem} is in pieces; join them first, with cat, in their order")
    numbers: dict[int, str] = {}
    for match in matches:
        if (number := int(match[2])) in numbers:
            raise ModelError(
                f"{folder} holds two pieces {number}: {numbers[number]} and {match[0]}; remove one"
            )
        numbers[number] = match[0]
    # Counted from 0 or from 1: then the first piece, and no other, begins as a zip archive does.
    first = min(numbers)
    start = 1 if first == 1 and _begins_archive(folder / numbers[1]) else 0
    wanted = range(start, max(numbers) + 1)
    if missing := [number for number in wanted if number not in numbers]:
        raise _missing(folder, f"piece {missing[0]} of {stem}", len(numbers), len(wanted))
    ordered = tuple(folder / numbers[number] for number in wanted)
    return Consolidated((Joined(ordered),), f"{stem} in {len(ordered)} pieces")


def _pt(folder: Path, names: Sequence[str], given: str | None) -> Consolidated:
    numbered = {int(match[1]): match[0] for name in names if (match := _NUMBERED.fullmatch(name))}
    if given is not None and given not in numbered.values():
        return _files(folder, [given], given)
    if not numbered:
        if len(names) > 1:
            raise UsageError(f"{folder} holds {_listed(names)}; name one of them instead")
        return _files(folder, names, names[0])
    count = max(numbered) + 1
    if missing := [number for number in range(count) if number not in numbered]:
        raise _missing(folder, f"consolidated.{missing[0]:02}.pt", len(numbered), count)
    return _files(
        folder, [numbered[n] for n in range(count)], f"consolidated.00.pt and on, {count} files"
    )


def _files(folder: Path, names: Iterable[str], form: str) -> Consolidated:
    return Consolidated(tuple(Joined((folder / name,)) for name in names), form)


def _missing(folder: Path, what: str, there: int, of: int) -> ModelError:
    return ModelError(f"{folder} lacks {what} ({there} of {of} are there); fetch the rest")


def _begins_archive(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"PK\3\4"
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}; fetch it again") from error


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (" and more" if len(shown) > 3 else "")
