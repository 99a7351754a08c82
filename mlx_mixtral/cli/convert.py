"""``mixtral-mlx convert``: weights in any form to a folder that MLX runs."""

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlx_mixtral.cli.progress import kept_on_interrupt, progress_bar
from mlx_mixtral.cli.sizes import duration, size
from mlx_mixtral.cli.sources import (
    FileOption,
    ListenOption,
    PeerOption,
    PrivateOption,
    UploadOption,
    announce,
    describe,
    fetch,
    swarm_settings,
    tell,
)
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from convert.plan import Plan
    from convert.quantize import Effort
    from convert.readers import Source
    from convert.run import Feed
    from convert.sources.address import Address
    from convert.sources.magnet import Settings
    from mlx_mixtral.config import Quantization


FIT_LOOKS = (
    "looks at the weights before it chooses: pull the source first, and leave out --delete-source"
)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a file, or anything `pull` takes.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new model's folder.")],
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits a weight: 8, 6, 5, 4, 3, 2; or 16 to change only the layout. Without it, "
            "16-bit weights get 4, and quantized ones keep their codes.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32, 64 or 128.", show_default="64"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Bits by kind of matrix, in place of --bits: 8bit, 6bit, 5bit, 4bit, 4bit-fast, "
            "3bit, ...; `mixtral-mlx recipes` explains them.",
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The best model of this size on disk, such as 20GB: bits are chosen for every "
            "matrix by what it would lose.",
        ),
    ] = None,
    effort: Annotated[
        Literal["fast", "better", "best"],
        typer.Option(
            help="What to spend on quantizing. fast: scales from min and max, as mlx-lm has them; "
            "better: the scales that lose least; best: by what a text makes of each layer, in "
            "hours.",
        ),
    ] = "better",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='The text for --effort best: plain, or .jsonl with a {"messages": [...]} or '
            '{"text": ...} a line. One in five languages comes along.',
            show_default=False,
        ),
    ] = None,
    file: FileOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done.")
    ] = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source",
            help="Delete each file of the source as soon as it is converted (all at the end where "
            "it is not safetensors); of a repository, fetch them one by one.",
        ),
    ] = False,
    listen: ListenOption = None,
    upload_limit: UploadOption = None,
    peer: PeerOption = None,
    no_discovery: PrivateOption = False,
) -> None:
    """Convert Mixtral or Mistral weights for MLX.

    OUT appears when all of it is written and checked. What an interrupt leaves unfinished
    waits beside it: the same command goes on from there.
    """
    from convert import pipeline
    from convert.sources.address import parse
    from convert.target import check_target

    check_target(out)
    wanted = _Wanted(bits, group_size, recipe, fit, effort, calibration)
    if fit is not None and delete_source:
        raise UsageError(f"--fit {FIT_LOOKS}")
    settings = swarm_settings(listen, upload_limit, peer, no_discovery)
    address = parse(source)
    if dry_run:
        with _laid_out(address, file) as opened:
            _show(wanted.plan(opened), out)
        return
    with kept_on_interrupt(out):
        at_hand = _at_hand(address, out, file, delete_source, settings)
        plan = wanted.plan(at_hand.source)
        for note in at_hand.source.notes:
            tell(f"note: {note}")
        with progress_bar(f"converting {at_hand.name}") as progress:
            seconds = pipeline.convert(
                plan, out, progress, origin=at_hand.origin, feed=at_hand.feed
            )
    if delete_source and at_hand.feed is None:
        _delete(at_hand.source)
    command = f"mixtral-mlx chat {shlex.quote(str(out))}"
    print(f"{out}: {_size(plan)}, in {duration(seconds)}; run it: {command}")
    if not any(out.glob("tokenizer.model*")):
        tell(f"note: {source} has no tokenizer.model; a chat needs it in {out}")


@dataclass(frozen=True)
class _Wanted:
    """What was asked for; refused before anything is fetched."""

    bits: int | None
    group_size: int | None
    recipe: str | None
    fit: str | None
    effort: "Effort"
    calibration: Path | None

    def __post_init__(self) -> None:
        from convert.calibration import texts
        from convert.fit import parse_size
        from convert.recipe import named, uniform

        uniform(self.bits or 4, self.group_size or 64)
        if self.calibration and self.effort != "best":
            raise UsageError("--calibration is for --effort best; add that, or leave it out")
        if self.calibration:
            texts(self.calibration)
        if self.recipe is not None:
            named(self.recipe)
        if self.fit is not None:
            parse_size(self.fit)
        uniformly = self.bits is not None or self.group_size is not None
        if uniformly + (self.recipe is not None) + (self.fit is not None) > 1:
            raise UsageError(
                "bits are chosen by one of --bits (with --group-size), --recipe and --fit: "
                "leave out the others"
            )

    def plan(self, source: "Source") -> "Plan":
        from convert.calibration import Calibration
        from convert.plan import plan

        text = Calibration.of(source, self.calibration) if self.calibration else None
        return plan(source, self._for(source), self.effort, text)

    def _for(self, source: "Source") -> "Quantization | None":
        from convert.plan import own_recipe
        from convert.recipe import named, uniform

        if self.recipe is not None:
            return named(self.recipe).quantization(source.config)
        if self.fit is not None:
            return _fitted(source, self.fit, self.effort)
        quantized = any(tensor.spec for tensor in source.tensors.values())
        if quantized and self.bits is None and self.group_size is None:
            return own_recipe(source)
        return uniform(self.bits or 4, self.group_size or 64)


def _fitted(source: "Source", size: str, effort: "Effort") -> "Quantization | None":
    """The recipe for ``--fit``; tells what was chosen."""
    from convert.fit import fit, parse_size, summary

    if any(file.resolve().parent.name == "hollow" for file in source.files):
        raise UsageError(f"--fit {FIT_LOOKS}")
    with progress_bar("looking at the weights") as progress:
        fitted = fit(source, parse_size(size), effort, progress)
    for line in summary(fitted):
        tell(line)
    return fitted.recipe


@dataclass(frozen=True)
class _AtHand:
    """A source whose weights can be read, at once or as ``feed`` brings them."""

    source: "Source"
    name: str
    origin: str
    feed: "Feed | None" = None


def _at_hand(
    address: "Address", out: Path, file: str | None, delete_source: bool, settings: "Settings"
) -> _AtHand:
    from convert.readers.detect import open_source
    from convert.sources.address import Hub, Local
    from convert.sources.cache import cached
    from mlx_mixtral.catalog import models_home, sources_home

    announce(address)
    place = address.place
    if isinstance(place, Local):
        if delete_source and place.path.is_dir() and any(place.path.glob("*.safetensors")):
            return _with_local_feed(place.path, out)
        return _AtHand(open_source(place.path, file), place.path.name, _origin(place.path))
    if isinstance(place, Hub):
        if not delete_source and (folder := cached(place.name, place.revision, file)):
            origin = f"{place.name}@{folder.name}"
            return _AtHand(open_source(folder, file), place.name, origin)
        if delete_source and (streamed := _with_hub_feed(place.name, place.revision, file, out)):
            return streamed
    pulled = fetch(place, None, (sources_home(), models_home()), file, settings)
    tell(f"the source lies in {pulled.path}")
    return _AtHand(open_source(pulled.path), pulled.path.name, pulled.origin)


def _with_local_feed(folder: Path, out: Path) -> _AtHand:
    from convert.feeds import LocalFeed
    from convert.readers.detect import open_source
    from convert.target import partial_of

    feed = LocalFeed(folder, partial_of(out) / "source")
    return _AtHand(open_source(feed.folder), folder.name, _origin(folder), feed)


def _with_hub_feed(name: str, revision: str | None, file: str | None, out: Path) -> _AtHand | None:
    """None where the repository's weights are not safetensors."""
    from convert.feeds import HubFeed, in_shards
    from convert.readers.detect import open_source
    from convert.sources import hub
    from convert.target import partial_of

    repository = hub.look(name, revision, file)
    if not in_shards(repository):
        return None
    tell(describe(repository))
    feed = HubFeed(repository, partial_of(out) / "source")
    return _AtHand(open_source(feed.folder), name, repository.origin, feed)


@contextmanager
def _laid_out(address: "Address", file: str | None) -> Iterator["Source"]:
    """The source of a dry run: nothing but headers is fetched."""
    from convert.feeds import HubFeed, in_shards
    from convert.readers.detect import open_source
    from convert.sources import hub
    from convert.sources.address import Hub, Local

    announce(address)
    place = address.place
    if isinstance(place, Local):
        yield open_source(place.path, file)
        return
    if isinstance(place, Hub):
        repository = hub.look(place.name, place.revision, file)
        tell(describe(repository))
        if in_shards(repository):
            with tempfile.TemporaryDirectory() as folder:
                yield open_source(HubFeed(repository, Path(folder)).folder)
            return
    raise UsageError("what becomes of it can only be told when it is here: pull it first")


def _origin(path: Path) -> str:
    """Where a folder's model comes from, if that is known; else its name."""
    from convert import manifest

    known = manifest.read(path).get("source") if path.is_dir() else None
    return str(known or path.absolute().name)


def _delete(source: "Source") -> None:
    for file in source.files:
        file.unlink()
    tell(f"deleted {len(source.files)} files of weights: {source.files[0].parent}")


def _show(plan: "Plan", out: Path) -> None:
    from convert.estimate import expected_seconds

    tensors = plan.source.tensors
    kept = sum(plan.kept(name) for name in tensors)
    print(f"{plan.source.form}: {size(plan.source_bytes)} to read, {plan.parameters:,} parameters")
    if kept:
        print(f"{kept} of {len(tensors)} tensors keep the codes they have")
    for note in plan.source.notes:
        tell(f"note: {note}")
    print(f"{out} would hold {_size(plan)}")
    if any(job.spec and not job.kept for job in plan.jobs):
        print(f"effort {plan.effort}: quantizing takes {_about(expected_seconds(plan))} here")


def _about(seconds: float) -> str:
    return "less than a second" if seconds < 1 else f"about {duration(seconds)}"


def _size(plan: "Plan") -> str:
    text = f"{size(plan.output_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    half = str(plan.half).removeprefix("mlx.core.")
    return text + f" (float32 becomes {half})" if plan.narrowed else text
