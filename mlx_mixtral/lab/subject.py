"""The model that is measured: one from the disk, or one of random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.lab.report import Settings
from mlx_mixtral.lab.shapes import SHAPES, check_memory, random_model
from mlx_mixtral.loading import LanguageModel, Progress
from mlx_mixtral.model.transformer import Transformer


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        lm: what it was loaded as; None for random weights.
        load_s: seconds until its weights were in memory; None for random weights.
        note: what a reader of the figures has to know.
    """

    name: str
    config: ModelConfig
    model: Transformer
    lm: LanguageModel | None = None
    load_s: float | None = None
    note: str = ""


def loaded(load: Callable[[], LanguageModel]) -> Subject:
    """A model from the disk, and how long it took. Files read lately come from the system's
    cache, so a first load after starting the machine takes longer."""
    mx.reset_peak_memory()
    start = time.perf_counter()
    lm = load()
    seconds = time.perf_counter() - start
    return Subject(lm.name, lm.config, lm.model, lm, seconds)


def random_subject(
    shape: str, config: ModelConfig, settings: Settings, progress: Progress | None = None
) -> Subject:
    """A model of random weights (``shapes.random_model``), after a look at the memory.

    Args:
        shape, config: see ``shape_config``.

    Raises:
        UsageError: it takes more memory than there is.
    """
    full = SHAPES[shape].num_hidden_layers
    note = "random weights: speed only"
    if (kept := config.num_hidden_layers) < full:
        note += f"; cut to {kept} of {full} layers, so faster than all of it"
        if settings.against:
            # Lazily evaluated, its last layer's experts run for the last token alone.
            note += f"; mlx-lm skips 1/{kept} of the prompt's work here, 1/{full} at full depth"
    bits = config.quantization.default.bits if config.quantization else 16
    prompt = max((settings.prompt, *settings.contexts))
    check_memory(config, f"{shape} at {bits} bits", prompt, settings.generate, settings.against)
    mx.reset_peak_memory()
    return Subject(shape, config, random_model(config, progress), note=note)
