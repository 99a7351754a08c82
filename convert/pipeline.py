"""Read, quantize, write: one tensor, or one expert of a stack, at a time.

Memory holds a few such parts whatever the size of the model: one for each worker. A journal
lets the same conversion go on where a killed one stopped.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path

from convert import manifest
from convert.calibrated import CalibratedRun
from convert.carried import carried_files
from convert.journal import Journal
from convert.plan import Plan
from convert.run import Feed, Progress, Run
from convert.target import check_room, partial, write_file
from convert.writer import SHARD_BYTES, ShardWriter

JOURNAL = "journal"
"""Beside the files, so that they are as they will be when they take the target's name."""


def convert(
    plan: Plan,
    target: Path,
    progress: Progress | None = None,
    *,
    origin: str = "",
    feed: Feed | None = None,
) -> float:
    """Write the model of ``plan`` to the folder ``target``; returns the seconds it took.

    ``target`` appears when all of it is on the disk and was read back, and not at all after an
    error or an interrupt: what is done then waits beside it for the next run (see
    ``convert.target``). ``progress(done, total)`` counts bytes of the source; it is called in
    this thread. ``origin`` is noted in the manifest.

    Raises:
        UsageError: ``target`` holds files, or too little room is free there.
        ModelError: the source turns out damaged.
        MixtralError: writing failed.
    """
    start = time.perf_counter()
    small = _small_files(plan)
    with partial(target) as folder:
        writer, journal = _begin(plan, folder, feed)
        run = CalibratedRun if plan.calibrated else Run
        run(plan, writer, journal, feed, progress).all()
        writer.finish(plan.parameters)
        for name, content in small.items():
            write_file(folder / name, content)
        about = {"source": origin, "form": plan.source.form}
        manifest.write(folder, about, writer.sha256)
    return time.perf_counter() - start


def _small_files(plan: Plan) -> dict[str, bytes]:
    """What the new folder holds beside its weights: name -> content."""
    folder = plan.source.folder
    files = {file.name: file.read_bytes() for file in (carried_files(folder) if folder else [])}
    config = plan.config.to_hf() | {"torch_dtype": str(plan.half).removeprefix("mlx.core.")}
    files |= plan.source.made
    return files | {"config.json": (json.dumps(config, indent=4) + "\n").encode()}


def _begin(plan: Plan, folder: Path, feed: Feed | None) -> tuple[ShardWriter, Journal]:
    """The writer and journal in ``folder``; what another conversion left there is removed."""
    journal = Journal.open(folder.parent / JOURNAL, _fingerprint(plan, feed))
    if not journal.done:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    held = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
    check_room(folder.parent.parent, plan.output_bytes + plan.working_bytes - held)
    every_slot = [slot for group in plan.slots.values() for slot in group]
    writer = ShardWriter(folder, every_slot, SHARD_BYTES)
    journal.start()
    return writer, journal


def _fingerprint(plan: Plan, feed: Feed | None) -> str:
    """What makes two conversions the same: source files, what becomes of them, and where."""
    stats = [(file.name, file.stat()) for file in plan.source.files]
    described = {
        "feed": feed.identity if feed else "",
        "files": [[name, s.st_size, 0 if feed else s.st_mtime_ns] for name, s in stats],
        "jobs": [[job.slots[0].name, job.index, job.kept, job.effort] for job in plan.jobs],
        "slots": [[s.name, s.dtype, s.shape] for group in plan.slots.values() for s in group],
        "calibration": plan.calibration.identity if plan.calibration else "",
        "shards": SHARD_BYTES,
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
