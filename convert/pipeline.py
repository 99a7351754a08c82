"""Read, quantize, write: one tensor, or one expert of a stack, at a time.

Memory holds a few such parts whatever the size of the model: one for each worker.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import mlx.core as mx

from convert.carried import carried_files
from convert.interrupt import held_interrupt
from convert.quantize import quantize, raw, slots, stored_dtype
from convert.readers import Part, Source
from convert.recipe import check_shapes, spec_of
from convert.writer import SHARD_BYTES, ShardWriter, Slot, new_folder, write_file
from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec

WORKERS = 3
"""Threads that each take a part through: while one reads, one computes and one writes."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """Everything about the new model that is known before it is computed."""

    source: Source
    config: ModelConfig
    slots: tuple[tuple[str, tuple[Slot, ...]], ...]
    """For each source tensor, in order, what it becomes."""

    @property
    def source_bytes(self) -> int:
        """Bytes of weights to read."""
        return sum(tensor.nbytes for tensor in self.source.tensors.values())

    @property
    def output_bytes(self) -> int:
        """Bytes of weights to write."""
        return sum(slot.nbytes for _, group in self.slots for slot in group)

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        return sum(math.prod(tensor.shape) for tensor in self.source.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Average over the whole model, scales, router and norms included."""
        return 8 * self.output_bytes / self.parameters

    @property
    def narrowed(self) -> bool:
        """Whether weights come in float32 and become bfloat16."""
        return any(t.dtype != stored_dtype(t.dtype) for t in self.source.tensors.values())


def plan(source: Source, recipe: Quantization | None) -> Plan:
    """Lay out the conversion of ``source``; no weights are read.

    Raises:
        UsageError: the recipe does not fit the source's shapes.
    """
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_shapes(recipe, shapes)
    return Plan(
        source,
        replace(source.config, quantization=recipe),
        tuple(
            (name, tuple(slots(name, tensor.shape, tensor.dtype, spec_of(recipe, name))))
            for name, tensor in source.tensors.items()
        ),
    )


def convert(plan: Plan, target: Path, progress: Progress | None = None) -> float:
    """Write the model of ``plan`` to the folder ``target``; returns the seconds it took.

    ``target`` appears when all of it is on the disk, and not at all after an error or an
    interrupt. ``progress(done, total)`` counts bytes of the source; it is called in this thread.

    Raises:
        UsageError: ``target`` holds files, or too little room is free there.
        ModelError: the source turns out damaged.
        MixtralError: writing failed.
    """
    start = time.perf_counter()
    carried = carried_files(plan.source.folder)
    extra = sum(file.stat().st_size for file in carried)
    with new_folder(target, plan.output_bytes + extra) as folder:
        every_slot = [slot for _, group in plan.slots for slot in group]
        writer = ShardWriter(folder, every_slot, SHARD_BYTES)
        _run_all(plan, writer, progress)
        writer.finish(plan.parameters)
        for file in carried:
            write_file(folder / file.name, file.read_bytes())
        write_file(folder / "config.json", json.dumps(_config_json(plan), indent=4) + "\n")
    return time.perf_counter() - start


@dataclass(frozen=True)
class _Job:
    """One part's way through: the ``index``-th of ``count`` equal parts of its slots."""

    part: Part
    spec: QuantSpec | None
    slots: tuple[Slot, ...]
    index: int
    count: int

    def run(self, writer: ShardWriter) -> int:
        """Returns the number of source bytes that are done."""
        arrays = quantize(self.part.read(), self.spec)
        for slot, array in zip(self.slots, arrays, strict=True):
            writer.put(slot.name, raw(array), at=slot.nbytes // self.count * self.index)
        del arrays, array
        mx.clear_cache()  # MLX would keep the memory for arrays of this size to come
        return self.part.nbytes


def _jobs(plan: Plan) -> Iterator[_Job]:
    for name, group in plan.slots:
        parts = plan.source.tensors[name].parts()
        spec = spec_of(plan.config.quantization, name)
        for index, part in enumerate(parts):
            yield _Job(part, spec, group, index, len(parts))


@cache
def _workers() -> ThreadPoolExecutor:
    """Kept for good: MLX gives each thread a stream, whose own thread would outlive it."""
    return ThreadPoolExecutor(WORKERS)


def _run_all(plan: Plan, writer: ShardWriter, progress: Progress | None) -> None:
    done, total = 0, plan.source_bytes
    with held_interrupt() as interrupted:
        jobs = [_workers().submit(job.run, writer) for job in _jobs(plan)]
        try:
            for job in as_completed(jobs):
                done += job.result()
                if progress:
                    progress(done, total)
                if interrupted():
                    raise KeyboardInterrupt
        except BaseException:
            for job in jobs:
                job.cancel()
            wait(jobs)  # nobody may still write when the folder is removed
            raise


def _config_json(plan: Plan) -> dict[str, object]:
    dtypes = {stored_dtype(tensor.dtype) for tensor in plan.source.tensors.values()}
    name = "bfloat16" if mx.bfloat16 in dtypes else "float16"
    return plan.config.to_hf() | {"torch_dtype": name}
