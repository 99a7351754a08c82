"""What a model's predictions are worth, and what quantizing it has cost.

The model is read layer by layer, and so was its reference (``mlx_mixtral.lab.reference``):
neither has to fit in memory. It runs twice where there is a reference, as it is and with every
token sent to the experts that the reference chose: what is lost as it is and not then was lost
by the router, whether it was quantized itself or misled by what it read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_mixtral.config import read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.damage import LayerDamage, Watch
from mlx_mixtral.lab.divergence import Estimate, Spread, mean, perplexity, ratio, spread
from mlx_mixtral.lab.heldout import Heldout
from mlx_mixtral.lab.layerwise import Layerwise, Routing, step
from mlx_mixtral.lab.reference import Advance, Reference, nll_of
from mlx_mixtral.lab.windows import Pack, packs


@dataclass(frozen=True)
class Comparison:
    """A model against its reference, on the counted tokens of the same text.

    Attributes:
        perplexity, llama_perplexity: the reference's.
        perplexity_ratio: the model's over the reference's.
        kl: of the model's predictions from the reference's, KL(reference || model), in nats.
        kl_reference_routing: its mean, if the model asked the reference's experts; None in a
            dense model. What ``kl`` has more than this is the router's share.
        same_top: the share of tokens in place of which both expect the same one most.
        watched: tokens that the figures of the layers are from.
    """

    perplexity: Estimate
    llama_perplexity: Estimate | None
    perplexity_ratio: Estimate
    kl: Spread
    kl_reference_routing: Estimate | None
    same_top: Estimate
    watched: int
    layers: tuple[LayerDamage, ...]

    @property
    def router_share(self) -> float | None:
        """Of the mean divergence; negative where the router's choices make up for other errors.
        None in a dense model, and where nothing diverges."""
        if self.kl_reference_routing is None or self.kl.mean.value <= 0:
            return None
        return 1 - self.kl_reference_routing.value / self.kl.mean.value


@dataclass(frozen=True)
class Quality:
    """All that was found.

    Attributes:
        nbytes: of the model's weights on disk.
        bits_per_weight: those bytes over its parameters.
        text: the file's name.
        rule, left_out: as in ``Heldout``.
        tokens: how many were counted.
        llama_perplexity: by llama.cpp's convention; None for chats and short texts.
    """

    model: str
    reference: str | None
    nbytes: int
    bits_per_weight: float
    text: str
    rule: str
    left_out: str
    tokens: int
    perplexity: Estimate
    llama_perplexity: Estimate | None
    comparison: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        record = dataclasses.asdict(self)
        if self.comparison:
            record["comparison"]["router_share"] = self.comparison.router_share
        return record


SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_local_experts",
    "num_experts_per_tok",
)


def check_comparable(model: Path, reference: Path) -> None:
    """Raises UsageError where the two models differ in more than how they are quantized."""
    ours, theirs = read_config(model), read_config(reference)
    for name in SHAPE:
        if (mine := getattr(ours, name)) != (other := getattr(theirs, name)):
            raise UsageError(
                f"--reference {reference} cannot be compared: its {name} is {other}, "
                f"the model's {mine}"
            )


def quality(
    name: str,
    folder: Path,
    text: Heldout,
    against: tuple[str, Reference] | None = None,
    progress: Advance | None = None,
) -> Quality:
    """Measure the model in ``folder``.

    Args:
        against: a reference's name and what it made of the same text.
        progress: called with (bytes of weights done, bytes in all).

    Raises:
        ModelError: the model cannot be used.
    """
    model = Layerwise(folder)
    reference = against[1] if against else None
    run = _Run(model, text, reference)
    layers = run.layers(progress or (lambda done, total: None))
    nll, chunk_nll = run.scores()
    return Quality(
        model=name,
        reference=against[0] if against else None,
        nbytes=model.nbytes,
        bits_per_weight=8 * model.nbytes / model.parameters,
        text=text.file.name,
        rule=text.rule,
        left_out=text.left_out,
        tokens=len(nll),
        perplexity=perplexity(nll),
        llama_perplexity=perplexity(chunk_nll) if len(chunk_nll) else None,
        comparison=run.comparison(nll, layers) if reference else None,
    )


class _Run:
    """One model on one text, beside a reference or alone."""

    def __init__(self, model: Layerwise, text: Heldout, reference: Reference | None) -> None:
        self._model, self._reference = model, reference
        self._own = packs(text.windows)
        self._every = [*self._own, *packs(text.chunks)]
        # The hidden states of every pack; and once more of a model that is led by the
        # reference's router.
        self._free = [model.embed(pack) for pack in self._every]
        led = reference is not None and model.config.is_moe
        self._led = self._free[: len(self._own)] if led else []
        self._kl: list[mx.array] = []
        self._kl_led: list[mx.array] = []
        self._same_top: list[mx.array] = []

    def layers(self, progress: Advance) -> tuple[LayerDamage, ...]:
        """Take all packs through all layers."""
        found, done = [], 0
        for number in range(self._model.config.num_hidden_layers):
            layer, nbytes = self._model.layer(number)
            watch = Watch(layer, self._states(number)) if self._reference else None
            routing = self._routing(number)
            for i, pack in enumerate(self._every):
                masks = self._model.masks(pack)
                made = step(layer, self._free[i], pack, masks)
                self._free[i] = made.output
                mx.eval(made.output)
                if watch and self._reference and i in self._reference.watched:
                    watch.see(made, pack, masks)
                if i < len(self._led):
                    self._led[i] = step(layer, self._led[i], pack, masks, routing[i]).output
                    mx.eval(self._led[i])
                progress(done + nbytes * (i + 1) // len(self._every), self._model.nbytes)
            done += nbytes
            if watch:
                found.append(watch.damage())
            mx.clear_cache()
        return tuple(found)

    def _states(self, number: int) -> dict[str, mx.array]:
        """The reference's of a layer, ``experts`` of the watched packs only."""
        assert self._reference is not None
        states = self._reference.states(number)
        states["output"] = self._reference.states(number + 1)["input"]
        if "experts" in states:
            routing = self._routing(number)
            states["experts"] = mx.concatenate(
                [routing[i].experts for i in self._reference.watched]
            )
        return states

    def _routing(self, number: int) -> list[Routing]:
        """The reference's of a layer, by pack."""
        if not self._led or self._reference is None:
            return []
        experts, weights = self._reference.routing(number)
        ends = np.cumsum([len(pack.ids) for pack in self._own]).tolist()
        starts = [0, *ends[:-1]]
        return [Routing(experts[a:b], weights[a:b]) for a, b in zip(starts, ends, strict=True)]

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """The negative log-likelihoods of the windows' and of the chunks' tokens; what diverges
        is gathered on the way."""
        nll: list[mx.array] = []
        chunk_nll: list[mx.array] = []
        for i, pack in enumerate(self._every):
            own = i < len(self._own)
            wanted = self._reference.log_probs(i) if self._reference and own else None
            for part, log_probs in self._model.predictions(self._free[i], pack):
                (nll if own else chunk_nll).append(nll_of(log_probs, pack.targets[part]))
                mx.eval((nll if own else chunk_nll)[-1])
                if wanted is not None:
                    self._kl.append(divergence(wanted[part], log_probs))
                    self._same_top.append(mx.argmax(log_probs, axis=-1))
                    mx.eval(self._kl[-1], self._same_top[-1])
            if wanted is not None and self._led:
                self._led_scores(i, pack, wanted)
        return _joined(nll), _joined(chunk_nll)

    def _led_scores(self, number: int, pack: Pack, wanted: mx.array) -> None:
        for part, log_probs in self._model.predictions(self._led[number], pack):
            self._kl_led.append(divergence(wanted[part], log_probs))
            mx.eval(self._kl_led[-1])

    def comparison(self, nll: np.ndarray, layers: tuple[LayerDamage, ...]) -> Comparison:
        assert self._reference is not None
        reference = self._reference
        same = np.concatenate([np.array(part) for part in self._same_top]) == reference.top
        chunks = reference.chunk_nll
        return Comparison(
            perplexity=perplexity(reference.nll),
            llama_perplexity=perplexity(chunks) if len(chunks) else None,
            perplexity_ratio=ratio(nll, reference.nll),
            kl=spread(_joined(self._kl)),
            kl_reference_routing=mean(_joined(self._kl_led)) if self._led else None,
            same_top=mean(same.astype(np.float64)),
            watched=sum(len(self._own[i].ids) for i in reference.watched),
            layers=layers,
        )


def divergence(reference: mx.array, model: mx.array) -> mx.array:
    """KL(reference || model) [N] in nats, of log-probabilities [N, vocabulary]."""
    return (mx.exp(reference) * (reference - model)).sum(axis=-1)


def _joined(parts: list[mx.array]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.array(part) for part in parts)])
