"""What others have measured of Mixtral 8x7B with lm-eval's tasks, to hold a score against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A score of somebody else's.

    Attributes:
        task, metric: as lm-eval names them.
        value: 0 to 1.
        source: who measured which model, and how as far as was told.
    """

    task: str
    metric: str
    value: float
    source: str


_HARNESS = "base, 16 bits, lm-eval"
_MISTRAL = "base, Mistral's own harness, arXiv:2401.04088"
_INSTRUCT = "Instruct, Mistral's announcement"

MIXTRAL_8X7B = (
    Published("mmlu", "acc", 0.680, _HARNESS),
    Published("mmlu", "acc", 0.706, f"{_MISTRAL}, 5 shots"),
    Published("hellaswag", "acc", 0.649, _HARNESS),
    Published("hellaswag", "acc_norm", 0.844, _MISTRAL),
    Published("winogrande", "acc", 0.765, _HARNESS),
    Published("winogrande", "acc", 0.772, _MISTRAL),
    Published("piqa", "acc", 0.825, _HARNESS),
    Published("piqa", "acc", 0.836, _MISTRAL),
    Published("arc_easy", "acc", 0.843, _HARNESS),
    Published("arc_easy", "acc", 0.831, _MISTRAL),
    Published("arc_challenge", "acc", 0.567, _HARNESS),
    Published("arc_challenge", "acc_norm", 0.597, _MISTRAL),
    Published("nq_open", "exact_match", 0.306, f"{_MISTRAL}, 5 shots"),
    Published("triviaqa", "exact_match", 0.715, f"{_MISTRAL}, 5 shots"),
    Published("gsm8k", "exact_match", 0.744, f"{_MISTRAL}, 8 shots, best of 8"),
    Published("truthfulqa_mc2", "acc", 0.739, _INSTRUCT),
)


def published(task: str, metric: str) -> tuple[Published, ...]:
    """What is known of a task by that metric."""
    return tuple(p for p in MIXTRAL_8X7B if (p.task, p.metric) == (task, metric))
