"""What a reference model made of a text, on disk: computed once, compared with many times.

So the two models of a comparison are never in memory together, and a reference of 93 GB is
read once. Kept are the log-probabilities of every counted token as float16 (64 KB a token of
Mixtral's vocabulary), the experts that every token chose, and of some packs what went into
and came out of each layer's experts.

Rounding to float16 costs next to nothing: what is read back is normalized again, so that it is
a distribution, and the mean divergence from it grows by the square of the rounding only, three
millionths of a nat where probabilities are e^-8 to e^-16, and less where they are larger.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_mixtral.catalog import models_home
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.jsonfile import read_json
from mlx_mixtral.lab.heldout import Heldout
from mlx_mixtral.lab.layerwise import Layerwise, Routing, Step, step
from mlx_mixtral.lab.windows import PACK, Pack, packs

FORMAT = 1
LAYER_BYTES = 10**9
"""Of the layers' states: as many packs as this holds, evenly spaced, and at least one."""
KEPT_BYTES = 10 * 10**9
"""Beyond this the oldest references make room for a new one."""
ABOUT = "about.json"

Tell = Callable[[int, Path], None]
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """A recorded reference.

    Attributes:
        folder: where it lies.
        nll: negative log-likelihood of every counted token [N], of the windows' in order.
        top: the likeliest token in place of each [N].
        chunk_nll: as ``nll``, of llama.cpp's chunks.
        watched: numbers of the packs whose layers are recorded.
    """

    folder: Path
    nll: np.ndarray
    top: np.ndarray
    chunk_nll: np.ndarray
    watched: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> Reference:
        scores = _load(folder / "scores.safetensors")
        nll, top, chunk_nll = (np.array(scores[name]) for name in ("nll", "top", "chunk_nll"))
        watched = tuple(np.array(scores["watched"]).tolist())
        return cls(folder, nll.astype(np.float64), top, chunk_nll.astype(np.float64), watched)

    def log_probs(self, pack: int) -> mx.array:
        """[count, vocabulary], float32, normalized."""
        rounded = _load(self.folder / _pack(pack))["log_probs"].astype(mx.float32)
        return rounded - mx.logsumexp(rounded, axis=-1, keepdims=True)

    def routing(self, layer: int) -> Routing:
        """Of all tokens of all packs, one after the other [T, K]; of a mixture of experts."""
        found = _load(self.folder / _layer(layer))
        return Routing(found["experts"].astype(mx.uint32), found["weights"])

    def states(self, layer: int) -> dict[str, mx.array]:
        """``input``, ``inner`` [T, D] and ``answers`` [T, K, D] of the watched packs, one
        after the other. The layer after the last one has but an input, the last one's output."""
        return _load(self.folder / _layer(layer))


def references_home() -> Path:
    """The folder of recorded references; it need not exist, and may be deleted at any time."""
    return models_home().parent / "references"


def reference(
    folder: Path, text: Heldout, tell: Tell, progress: Advance | None = None
) -> Reference:
    """What the model in ``folder`` makes of ``text``, from disk or computed now.

    Args:
        tell: called with the bytes to be written and where, before anything is computed.
        progress: called with (bytes of weights done, bytes in all).

    Raises:
        ModelError: the model cannot be used.
        UsageError: too little room on the disk.
    """
    kept = references_home() / _key(folder, text)
    if not _is_whole(kept):
        shutil.rmtree(kept, ignore_errors=True)
        model = Layerwise(folder)
        watched = _watched(model, packs(text.windows))
        need = _size(model, text, watched)
        _make_room(kept.parent, need)
        tell(need, kept)
        _record(model, text, watched, kept, progress or (lambda done, total: None))
    return Reference.open(kept)


# --- keys and room


def _key(folder: Path, text: Heldout) -> str:
    """What makes two references the same: the model, the text's tokens, and the arithmetic."""
    digest = hashlib.sha256(f"{FORMAT} {PACK} {LAYER_BYTES} {mx.default_device()}".encode())
    digest.update(fingerprint(folder).encode())
    for window in (*text.windows, *text.chunks):
        digest.update(np.array([window.first, *window.ids], np.uint32).tobytes())
    return digest.hexdigest()[:32]


def fingerprint(folder: Path) -> str:
    """Tells one model's folder from another's without reading all of 93 GB: its configuration,
    and each file of weights by name, size, time, its first and its last megabyte."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, stat.st_size - (1 << 20)))
            digest.update(stream.read(1 << 20))
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether all files of a reference are there; a power cut may have left one short."""
    try:
        sizes = read_json(folder / ABOUT)["files"]
    except (ModelError, KeyError):
        return False
    return all(_size_of(folder / name) == size for name, size in sizes.items())


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _watched(model: Layerwise, own: Sequence[Pack]) -> tuple[int, ...]:
    """Numbers of evenly spaced packs, as many as ``LAYER_BYTES`` hold."""
    total = sum(len(pack.ids) for pack in own) * _layer_bytes(model)
    return tuple(range(0, len(own), -(-total // LAYER_BYTES)))


def _layer_bytes(model: Layerwise) -> int:
    """Of the states of one token."""
    config = model.config
    parts = 2 + config.num_experts_per_tok if config.is_moe else 1
    return config.num_hidden_layers * parts * config.hidden_size * model.dtype.size


def _size(model: Layerwise, text: Heldout, watched: tuple[int, ...]) -> int:
    """Bytes on disk: log-probabilities, states of layers, and the routing of every token."""
    own, config = packs(text.windows), model.config
    log_probs = sum(pack.count for pack in own) * config.vocab_size * 2
    states = sum(len(own[i].ids) for i in watched) * _layer_bytes(model)
    routing = 5 * config.num_experts_per_tok * config.num_hidden_layers if config.is_moe else 0
    return log_probs + states + routing * sum(len(pack.ids) for pack in own)


def _make_room(home: Path, need: int) -> None:
    """Delete the oldest references beyond ``KEPT_BYTES``; leftovers of a killed run are some."""
    home.mkdir(parents=True, exist_ok=True)
    kept = sorted(home.iterdir(), key=lambda folder: folder.stat().st_mtime)
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in kept if f.is_dir()}
    excess = need + sum(sizes.values()) - KEPT_BYTES
    for folder, size in sizes.items():
        if excess > 0:
            shutil.rmtree(folder)
            excess -= size
    if (free := shutil.disk_usage(home).free) < need:
        raise UsageError(
            f"{home} needs {need / 1e9:.2f} GB for the reference's predictions and has "
            f"{free / 1e9:.2f}; make room, or count fewer --tokens"
        )


# --- recording


def _record(
    model: Layerwise, text: Heldout, watched: tuple[int, ...], target: Path, progress: Advance
) -> None:
    """Write the folder ``target``, whole or not at all."""
    work = Path(tempfile.mkdtemp(suffix=".partial", dir=target.parent))
    try:
        hidden = _record_layers(model, text, watched, work, progress)
        _record_scores(model, text, watched, hidden, work)
        sizes = {file.name: file.stat().st_size for file in work.iterdir()}
        (work / ABOUT).write_text(json.dumps({"text": text.file.name, "files": sizes}, indent=1))
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _record_layers(
    model: Layerwise, text: Heldout, watched: tuple[int, ...], work: Path, progress: Advance
) -> list[mx.array]:
    """The states and choices of every layer; the output of the last one for every pack."""
    own = packs(text.windows)
    every = [*own, *packs(text.chunks)]
    hidden = [model.embed(pack) for pack in every]
    done = 0
    for number in range(model.config.num_hidden_layers):
        layer, nbytes = model.layer(number)
        found: dict[str, list[mx.array]] = {}
        for i, pack in enumerate(every):
            made = step(layer, hidden[i], pack, model.masks(pack))
            mx.eval(made.output)
            if i < len(own):
                for name, array in _kept(made, hidden[i], i in watched).items():
                    mx.eval(array)
                    found.setdefault(name, []).append(array)
            hidden[i] = made.output
            progress(done + nbytes * (i + 1) // len(every), model.nbytes)
        done += nbytes
        _save(work / _layer(number), {n: mx.concatenate(a) for n, a in found.items()})
    last = {"input": mx.concatenate([hidden[i] for i in watched])}
    _save(work / _layer(model.config.num_hidden_layers), last)
    return hidden


def _kept(made: Step, hidden: mx.array, watched: bool) -> dict[str, mx.array]:
    kept = {"input": hidden} if watched else {}
    if made.routing is not None and made.answers is not None:
        kept["experts"] = made.routing.experts.astype(mx.uint8)
        kept["weights"] = made.routing.weights
        kept |= {"inner": made.inner, "answers": made.answers} if watched else {}
    return kept


def _record_scores(
    model: Layerwise,
    text: Heldout,
    watched: tuple[int, ...],
    hidden: list[mx.array],
    work: Path,
) -> None:
    nll, top, chunk_nll = [], [], []
    own = packs(text.windows)
    for i, pack in enumerate(own):
        rows = []
        for part, log_probs in model.predictions(hidden[i], pack):
            nll.append(nll_of(log_probs, pack.targets[part]))
            top.append(mx.argmax(log_probs, axis=-1))
            rows.append(log_probs.astype(mx.float16))
            mx.eval(nll[-1], top[-1], rows[-1])
        _save(work / _pack(i), {"log_probs": mx.concatenate(rows)})
    for i, pack in enumerate(packs(text.chunks), len(own)):
        for part, log_probs in model.predictions(hidden[i], pack):
            chunk_nll.append(nll_of(log_probs, pack.targets[part]))
            mx.eval(chunk_nll[-1])
    scores = {
        "nll": mx.concatenate(nll),
        "top": mx.concatenate(top),
        "chunk_nll": mx.concatenate(chunk_nll) if chunk_nll else mx.zeros(0),
        "watched": mx.array(watched),
    }
    _save(work / "scores.safetensors", scores)


def nll_of(log_probs: mx.array, targets: list[int]) -> mx.array:
    """The negative log-likelihoods [N] of ``targets`` under [N, vocabulary]."""
    return -mx.take_along_axis(log_probs, mx.array(targets)[:, None], axis=-1)[:, 0]


# --- files


def _pack(number: int) -> str:
    return f"pack-{number:05}.safetensors"


def _layer(number: int) -> str:
    return f"layer-{number:03}.safetensors"


def _save(file: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(file), arrays)
    except RuntimeError as error:  # all that MLX says of a full disk
        raise MixtralError(f"{file} could not be written: {error}") from None


def _load(file: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(file))
    assert isinstance(arrays, dict)  # safetensors hold named arrays
    return arrays
