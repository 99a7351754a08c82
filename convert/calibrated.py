"""A conversion that follows a text through the model (``--effort best``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from convert.feedback import Feedback, rounded
from convert.journal import Journal
from convert.plan import Job, Plan
from convert.quantize import dequantize, packed
from convert.readers.grid import Floats
from convert.run import Feed, Progress, Run
from convert.target import reported
from convert.walk import Walk
from convert.writer import ShardWriter


class CalibratedRun(Run):
    """Part after part, in the order in which a token meets them.

    After each layer the text's hidden states are kept beside the journal, so that a killed run
    goes on with the layer that it was in; what is done of that layer is read back.
    """

    def __init__(
        self,
        plan: Plan,
        writer: ShardWriter,
        journal: Journal,
        feed: Feed | None,
        progress: Progress | None,
    ) -> None:
        super().__init__(plan, writer, journal, feed, progress)
        if plan.calibration is None:
            raise ValueError("the best effort wants a calibration")
        self.layers = plan.config.num_hidden_layers
        self.numbers = {(job.name, job.index): n for n, job in enumerate(self.jobs)}
        self.kept = Kept(journal.path.parent, journal.conversion[:16])
        self.walk = Walk(plan.config, plan.calibration.ids, self._matrix)
        self.note = ""

    def _work(self) -> None:
        first, x = self._begun() or (0, None)
        if x is None:
            self.note = "embedding"
            x = self.walk.embedded()
        for n in range(first, self.layers):
            self.note = f"layer {n + 1} of {self.layers}"
            self.walk.layer(n, x)
            self.kept.save(n + 1, x)
        self.note = "head"
        self.walk.head(x)

    def _begun(self) -> tuple[int, Floats] | None:
        """The layer to go on with, and what goes into it, if all before it is there."""
        found = self.kept.load()
        if found is None:
            return None
        first, _ = found
        later = {f"model.layers.{n}." for n in range(first, self.layers)}
        before = (self.jobs[n].name for n in self.to_do)
        ends = ("model.norm.weight", "lm_head.weight")
        if all(name in ends or any(map(name.startswith, later)) for name in before):
            return found
        return None

    def _matrix(
        self, name: str, index: int = 0, feedback: Callable[[], Feedback] | None = None
    ) -> Floats:
        """See ``walk.Take``: quantized, written and noted here, unless it was before."""
        number = self.numbers[name, index]
        job = self.jobs[number]
        if number in self.to_do:
            if self.feed:
                for file in job.part.files:
                    self.feed.fetch(file, self._beat)
            arrays = self._made(job, feedback)
            self.journal.note(number, job.put(arrays, self.writer))
            self._count(number)
        else:
            arrays = job.written(self.writer)
        self._heed_interrupt()
        values = np.array(dequantize(arrays, job.spec))
        del arrays
        mx.clear_cache()
        return values

    def _made(self, job: Job, feedback: Callable[[], Feedback] | None) -> tuple[mx.array, ...]:
        if job.effort != "best" or feedback is None or job.spec is None:
            return job.arrays()
        learnt = feedback()  # before the weights are there: it takes the most memory
        weight = job.weight().astype(job.dtype).astype(mx.float32)
        columns = np.ascontiguousarray(np.array(weight).T)
        del weight
        mx.clear_cache()
        found = rounded(columns, learnt, job.spec, job.dtype, self._heard(job))
        return packed(*found, job.spec, job.dtype)

    def _heard(self, job: Job) -> Callable[[float], None]:
        def beat(share: float) -> None:
            self._heed_interrupt()
            if self.progress:
                self.progress(self.done + int(share * job.part.nbytes), self.total, self.note)

        return beat


@dataclass(frozen=True)
class Kept:
    """Hidden states on the disk, of one moment: a file that is whole or not there."""

    folder: Path
    conversion: str

    def save(self, layer: int, x: Floats) -> None:
        """Keep what goes into ``layer``, and nothing older."""
        file = self.folder / f"hidden-{self.conversion}-{layer}.npy"
        begun = file.with_suffix(".begun")
        with reported(file):
            with begun.open("wb") as stream:
                np.save(stream, x)
                stream.flush()
                os.fsync(stream.fileno())
            begun.replace(file)
            for older in self.folder.glob("hidden-*"):
                if older != file:
                    older.unlink()

    def load(self) -> tuple[int, Floats] | None:
        """The layer, and what goes into it."""
        files = sorted(self.folder.glob(f"hidden-{self.conversion}-*.npy"), key=_layer)
        return (_layer(files[-1]), np.load(files[-1])) if files else None


def _layer(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])
