"""How fast a model runs here: load, prompt, answer, memory, and how near the ceiling.

Everything is timed around evaluated work, after a run that warms up. An opponent alternates
with this program, so that a machine whose speed drifts treats both alike; the medians of the
pairs' ratios are what to quote.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.lab.opponents import OPPONENTS, Tokens, mlx_lm, title
from mlx_mixtral.lab.reported import MIXTRAL_8X7B, Reported
from mlx_mixtral.lab.roofline import (
    Bandwidth,
    Traffic,
    kv_bytes_per_token,
    measure_bandwidth,
    total_memory,
    traffic,
)
from mlx_mixtral.lab.shapes import SHAPES, check_memory, random_model, shape_config
from mlx_mixtral.loading import LanguageModel, Progress
from mlx_mixtral.model.transformer import Transformer

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        prompt, generate: tokens in and out.
        repeat: runs that are counted.
        against: names of ``OPPONENTS``.
        contexts: whether to measure decoding at several contexts up to ``prompt``.

    Raises:
        UsageError: a number that leaves nothing to measure, or an unknown opponent.
    """

    prompt: int = 128
    generate: int = 64
    repeat: int = 7
    against: tuple[str, ...] = ()
    contexts: bool = False

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("generate", 2), ("repeat", 1)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"--{name} has to be at least {least}, not {value}")
        for name in self.against:
            if name not in OPPONENTS:
                raise UsageError(f"--against {name!r} is unknown; choose {' or '.join(OPPONENTS)}")

    def check_context(self, config: ModelConfig) -> None:
        """Raises UsageError where prompt and answer do not fit into the model's context."""
        if self.prompt + self.generate > config.max_position_embeddings:
            raise UsageError(
                f"{self.prompt} tokens in and {self.generate} out are more than the model's "
                f"context of {config.max_position_embeddings}; lower --prompt or --generate"
            )


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        folder: where it came from; None for random weights.
        load_s: seconds until its weights were in memory; None for random weights.
        note: what a reader of the figures has to know.
    """

    name: str
    config: ModelConfig
    model: Transformer
    folder: Path | None = None
    load_s: float | None = None
    note: str = ""


def loaded(load: Callable[[], LanguageModel]) -> Subject:
    """A model from the disk, and how long it took. Files read lately come from the system's
    cache, so a first load after starting the machine takes longer."""
    mx.reset_peak_memory()
    start = time.perf_counter()
    lm = load()
    seconds = time.perf_counter() - start
    return Subject(lm.name, lm.config, lm.model, lm.path, seconds)


def random_subject(
    shape: str,
    bits: int,
    group_size: int,
    layers: int | None,
    settings: Settings,
    progress: Progress | None = None,
) -> Subject:
    """A model of a published shape with random weights (``SHAPES``), after a look at the memory.

    Raises:
        UsageError: an impossible shape, or more memory than there is.
    """
    config = shape_config(shape, bits, group_size, layers)
    settings.check_context(config)
    full = SHAPES[shape].num_hidden_layers
    note = "random weights: speed only"
    if (kept := config.num_hidden_layers) < full:
        note += f"; cut to {kept} of {full} layers, so faster than all of it"
        if settings.against:
            # Lazily evaluated, its last layer's experts run for the last token alone.
            note += f"; mlx-lm skips 1/{kept} of the prompt's work here, 1/{full} at full depth"
    check_memory(config, f"{shape} at {bits} bits", settings.prompt, settings.generate)
    mx.reset_peak_memory()
    return Subject(shape, config, random_model(config, progress), note=note)


class Run(NamedTuple):
    """One prompt and its answer: seconds to the first token, tokens a second of the prompt,
    and of the answer after its first token."""

    ttft_s: float
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Speeds:
    """What a side took, each as in ``Run``."""

    ttft_s: Spread
    prefill_tps: Spread
    decode_tps: Spread

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Speeds:
        return cls(*(Spread.of(values) for values in zip(*runs, strict=True)))


@dataclass(frozen=True)
class Opponent:
    """Another program in the same run.

    Attributes:
        speeds: None where it failed, and ``error`` says how.
        prefill_ratio, decode_ratio: ours over its, the medians over the pairs.
    """

    name: str
    speeds: Speeds | None = None
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class AtContext:
    """Decoding after ``context`` tokens: tokens a second by side, and the ceiling there."""

    context: int
    ceiling_tps: float
    decode_tps: dict[str, Spread]


@dataclass(frozen=True)
class Machine:
    """Where it ran."""

    system: str
    device: str
    cores: int
    memory_bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """All that one bench found.

    Attributes:
        peak_array_bytes: the most that MLX's arrays took, loading and a run included.
        peak_process_bytes: the most physical memory of the process, opponents not included.
        ceiling_tps: bandwidth over the bytes that a token reads, halfway through the answer.
        reached: median decode speed over the ceiling; above 1 where caches serve the reads.
    """

    model: str
    note: str
    experts: int
    experts_per_token: int
    layers: int
    bits: int
    machine: Machine
    settings: Settings
    load_s: float | None
    ours: Speeds
    opponents: list[Opponent]
    peak_array_bytes: int
    peak_process_bytes: int
    traffic: Traffic
    bandwidth: Bandwidth
    ceiling_tps: float
    reached: float
    contexts: list[AtContext]
    reported_by_others: tuple[Reported, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Seconds, bytes, and tokens or bytes a second."""
        record = dataclasses.asdict(self)
        record["traffic"]["total"] = self.traffic.total
        return record


def bench(
    subject: Subject,
    settings: Settings,
    tell: Tell = lambda _: None,
    probe: Callable[[], Bandwidth] = measure_bandwidth,
) -> Report:
    """Measure a model.

    Args:
        tell: called with what is being done.

    Raises:
        UsageError: prompt and answer do not fit into the context.
    """
    settings.check_context(subject.config)
    tell("warming up")
    caches = PromptCache(subject.config)
    prompt = prompt_of(settings.prompt, subject.config)
    # The first run is whole: it tells the memory that a run takes, before any opponent's.
    measure(our_tokens(subject, caches), prompt, settings.generate)
    peaks = mx.get_peak_memory(), peak_process_bytes()
    per_token = kv_bytes_per_token(caches.layers)
    del caches
    tell("measuring the memory's bandwidth")
    bandwidth = probe()

    sides, failed = _sides(subject, settings, prompt, tell)
    runs = _alternate(sides, prompt, settings.generate, settings.repeat, tell)
    ours = Speeds.of(runs[OURS])
    middle = settings.prompt + settings.generate // 2
    bytes_read = traffic(subject.model, subject.config, per_token, middle)
    ceiling = bandwidth.best / bytes_read.total

    def ceiling_at(context: int) -> float:
        found = traffic(subject.model, subject.config, per_token, context)
        return bandwidth.best / found.total

    contexts = _contexts(sides, subject.config, settings, ceiling_at, tell)
    config = subject.config
    return Report(
        model=subject.name,
        note=subject.note,
        experts=config.num_local_experts,
        experts_per_token=config.num_experts_per_tok if config.is_moe else 0,
        layers=config.num_hidden_layers,
        bits=config.quantization.default.bits if config.quantization else 16,
        machine=machine(),
        settings=settings,
        load_s=subject.load_s,
        ours=ours,
        opponents=[
            Opponent(title(name), error=failed[name])
            if name in failed
            else _compared(title(name), runs[OURS], runs[name])
            for name in settings.against
        ],
        peak_array_bytes=peaks[0],
        peak_process_bytes=peaks[1],
        traffic=bytes_read,
        bandwidth=bandwidth,
        ceiling_tps=ceiling,
        reached=ours.decode_tps.median / ceiling,
        contexts=contexts,
        reported_by_others=MIXTRAL_8X7B,
    )


# --- running


OURS = "mlx-mixtral"


def our_tokens(subject: Subject, caches: PromptCache | None = None) -> Tokens:
    """This program's loop. It knows no end tokens, so that an answer is as long as asked."""

    def tokens(prompt: list[int], count: int) -> Iterator[Any]:
        sampler = Sampler(Sampling(max_tokens=count), prompt)
        cache = caches or PromptCache(subject.config)
        cache.reuse(prompt)
        return generate_tokens(subject.model, cache, prompt, sampler, count)

    return tokens


def prompt_of(length: int, config: ModelConfig) -> list[int]:
    """Token ids that differ, so that all experts have work; the same for every side."""
    first = min(3, config.vocab_size - 1)  # the ids below are the control tokens
    return [first + (7 * n) % (config.vocab_size - first) for n in range(length)]


def measure(tokens: Tokens, prompt: list[int], count: int) -> Run:
    """Run once. A side yields a token when its number has arrived from the device."""
    mx.synchronize()
    start = time.perf_counter()
    times = [time.perf_counter() for _ in tokens(prompt, count)]
    first = times[0] - start
    return Run(first, len(prompt) / first, (count - 1) / (times[-1] - times[0]))


def _sides(
    subject: Subject, settings: Settings, prompt: list[int], tell: Tell
) -> tuple[dict[str, Tokens], dict[str, str]]:
    """The sides that run, warmed up, and of those that do not, why."""
    sides, failed = {OURS: our_tokens(subject)}, {}
    for name in settings.against:
        tell(f"loading {title(name)}")
        try:
            tokens = mlx_lm(name, subject.folder, subject.config, subject.model)
            measure(tokens, prompt, 2)
        # Whatever keeps another program from running is a finding, told in the table.
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            failed[name] = lines[0]
        else:
            sides[name] = tokens
    return sides, failed


def _alternate(
    sides: dict[str, Tokens], prompt: list[int], count: int, repeat: int, tell: Tell
) -> dict[str, list[Run]]:
    """Every side ``repeat`` times, in turns."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for turn in range(repeat):
        for name, tokens in sides.items():
            tell(f"{name}: {len(prompt)} tokens in, run {turn + 1} of {repeat}")
            runs[name].append(measure(tokens, prompt, count))
    return runs


def _compared(name: str, ours: list[Run], theirs: list[Run]) -> Opponent:
    pairs = list(zip(ours, theirs, strict=True))
    prefill = statistics.median(a.prefill_tps / b.prefill_tps for a, b in pairs)
    decode = statistics.median(a.decode_tps / b.decode_tps for a, b in pairs)
    return Opponent(name, Speeds.of(theirs), prefill, decode)


def _contexts(
    sides: dict[str, Tokens],
    config: ModelConfig,
    settings: Settings,
    ceiling_at: Callable[[int], float],
    tell: Tell,
) -> list[AtContext]:
    """Decoding at an eighth of the prompt, a quarter, a half, and the whole."""
    if not settings.contexts:
        return []
    found = []
    repeat = min(settings.repeat, 3)  # the prompt has to be computed for each of them
    for length in sorted({max(1, settings.prompt // part) for part in (8, 4, 2, 1)}):
        prompt = prompt_of(length, config)
        runs = _alternate(sides, prompt, settings.generate, repeat, tell)
        speeds = {name: Spread.of(run.decode_tps for run in some) for name, some in runs.items()}
        middle = length + settings.generate // 2
        found.append(AtContext(middle, ceiling_at(middle), speeds))
    return found


# --- the machine


def machine() -> Machine:
    """What a reader of the figures has to know of where they come from."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        device=f"{mx.device_info().get('device_name', 'unknown')} "
        f"({'CPU' if mx.default_device() == mx.Device(mx.cpu) else 'GPU'})",
        cores=os.cpu_count() or 1,
        memory_bytes=total_memory(),
        versions={name: version(name) for name in ("mlx-mixtral", "mlx", "mlx-lm")},
    )


def peak_process_bytes() -> int:
    """The most physical memory that this process took so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes
