"""What is asked of a bench, and what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.contexts import Contexts, usual_contexts
from mlx_mixtral.lab.loads import Loads
from mlx_mixtral.lab.machine import Machine
from mlx_mixtral.lab.opponents import OPPONENTS
from mlx_mixtral.lab.reported import Reported
from mlx_mixtral.lab.roofline import Bandwidth, Traffic
from mlx_mixtral.lab.runs import Speeds
from mlx_mixtral.lab.streams import Streams
from mlx_mixtral.lab.turns import Turn


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        prompt, generate: tokens in and out.
        repeat: runs that are counted.
        against: names of ``OPPONENTS``.
        contexts: tokens before the answer, to measure decoding after each of them.
        turns: of a conversation, each of about ``prompt`` tokens; 0 holds none.

    Raises:
        UsageError: a number that leaves nothing to measure, or an unknown opponent.
    """

    prompt: int = 128
    generate: int = 64
    repeat: int = 7
    against: tuple[str, ...] = ()
    contexts: tuple[int, ...] = ()
    turns: int = 0

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("generate", 2), ("repeat", 1), ("turns", 0)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"--{name} has to be at least {least}, not {value}")
        for name in self.against:
            if name not in OPPONENTS:
                raise UsageError(f"--against {name!r} is unknown; choose {' or '.join(OPPONENTS)}")
        if min(self.contexts, default=1) < 1:
            raise UsageError("--contexts are numbers of tokens, each of them at least 1")

    def ready_for(self, config: ModelConfig, drawn: bool = False) -> Settings:
        """These settings for a model; to be drawn, contexts are chosen where none were named.

        Raises:
            UsageError: prompt, contexts or turns do not fit into the model's context.
        """
        limit, after = config.max_position_embeddings, max(self.contexts, default=0)
        for what, tokens, option in (
            (f"{self.prompt} tokens in", self.prompt, "--prompt"),
            (f"a context of {after}", after, "--contexts"),
        ):
            if tokens + self.generate > limit:
                raise UsageError(
                    f"{what} and {self.generate} tokens out are more than the model's "
                    f"context of {limit}; lower {option} or --generate"
                )
        if drawn and not self.contexts:
            return replace(self, contexts=usual_contexts(limit - self.generate))
        return self


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
class Report:
    """All that one bench found.

    Attributes:
        tuning: settings of this machine that were honoured (``mlx_mixtral.tuning``).
        tuning_note: why a file of settings that is there was not.
        loads: every side's, ours first; empty unless an opponent loads the same folder.
        peak_array_bytes: the most that MLX's arrays took, loading and a run included.
        peak_process_bytes: the most physical memory of the process, opponents not included.
        ceiling_tps: bandwidth over the bytes that a token reads, halfway through the answer.
        reached: median decode speed over the ceiling; above 1 where caches serve the reads.
        ceilings: the ceiling after each of the contexts.
        streams: where experts are read from disk.
    """

    model: str
    note: str
    experts: int
    experts_per_token: int
    layers: int
    bits: int
    machine: Machine
    settings: Settings
    tuning: dict[str, int]
    tuning_note: str | None
    load_s: float | None
    loads: list[Loads]
    ours: Speeds
    opponents: list[Opponent]
    peak_array_bytes: int
    peak_process_bytes: int
    traffic: Traffic
    bandwidth: Bandwidth
    ceiling_tps: float
    reached: float
    contexts: Contexts | None
    ceilings: list[float]
    turns: list[Turn]
    streams: Streams | None
    reported_by_others: tuple[Reported, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Seconds, bytes, and tokens or bytes a second."""
        record = asdict(self)
        record["traffic"]["total"] = self.traffic.total
        return record
