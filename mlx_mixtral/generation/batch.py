"""Several texts at once: passes of the model over the next tokens of each of them.

A text that is answered brings one row to a pass, a prompt that is read brings many. Nothing is
padded: every text keeps a cache of its own, as if it were alone (see ``model/together.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from mlx_mixtral.experts.recorded import RecordedExperts, recorded
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Choice, Sampler, choose_each, log_probabilities
from mlx_mixtral.generation.speculative import Speculator, foretold
from mlx_mixtral.model.together import Part, together
from mlx_mixtral.model.transformer import Transformer

Mask = np.ndarray | None
"""Which tokens may come: bit i % 32 of word i // 32 (uint32); None: any."""


class Constraint(Protocol):
    """What an answer is held to. Asked when all of the text's tokens are known."""

    def forced(self) -> Sequence[int]:
        """Tokens to come next, of which each is the only one allowed after those before it."""

    def mask(self, after: Sequence[int]) -> Mask:
        """What may come after the first few of those that are forced, or now."""


class Text:
    """A text that is read, and then answered.

    Attributes:
        cache: of what was read, by the passes under way too.
        tokens: those known to the host: the prompt, and of the answer what was told.
        sampler: chooses the answer's; None: there is no answer, only ``pooled``.
        top: so many of the likeliest tokens are told with each.
        constraint: which tokens may come; None: any.
        routing: tell the experts, if there are any.
        pooled: sum of the hidden states [D] of what was read, where there is no sampler.
        drafted: tokens of a draft that the pass under way reads.
    """

    def __init__(
        self,
        cache: PromptCache,
        prompt: Sequence[int],
        sampler: Sampler | None,
        *,
        top: int = 0,
        constraint: Constraint | None = None,
        routing: bool = False,
        speculator: Speculator | None = None,
    ) -> None:
        """
        Args:
            speculator: looks up drafts; None: there are none, but for what is forced.
        """
        self.cache, self.tokens, self.sampler = cache, list(prompt), sampler
        self.top, self.constraint, self.routing = top, constraint, routing
        self.pooled: mx.array | None = None
        self.drafted = 0
        self._speculator = speculator

    @property
    def read(self) -> int:
        """Tokens that the cache holds. More than are known where a pass chose or tried some."""
        return self.cache.layers[0].offset

    @property
    def unread(self) -> int:
        """Known tokens that are to be read yet."""
        return len(self.tokens) - self.read

    def next(self, count: int) -> list[int]:
        """The first tokens of what is unread."""
        return self.tokens[self.read : self.read + count]

    def draft(self, most: int) -> list[int]:
        """Tokens that may come after those known, ``most`` at most; no pass may be under way."""
        most = min(most, self.cache.spare())
        if self.constraint:
            return list(self.constraint.forced()[:most])
        return self._speculator.looked_up(0, most) if self._speculator else []

    def take(self, tokens: Sequence[int]) -> None:
        """What a pass chose: as much of its draft as came true, and a token more.

        To be called for every pass that chose; what came of a draft is known afterwards.
        """
        if self.drafted and self.sampler:
            right = len(tokens) - 1
            self.cache.drop(self.drafted - right)
            self.sampler.keep(len(tokens))
            if self._speculator:
                self._speculator.judge(self.drafted, right, 0.0)
            self.drafted = 0
        self.tokens += tokens
        if self._speculator:
            self._speculator.extend(tokens)


@dataclass(frozen=True)
class Take:
    """What a pass reads of a text.

    Attributes:
        count: its next tokens, one or more. They are known, but for one that the pass before
            chooses.
        draft: tokens that may follow, and are tried; then nothing that is known is left unread.
    """

    text: Text
    count: int
    draft: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """Tokens that the pass reads."""
        return self.count + len(self.draft)

    @property
    def asked(self) -> int:
        """Last tokens whose hidden states count: of each guess, or of all that is pooled."""
        return 1 + len(self.draft) if self.text.sampler else self.count


class Told(NamedTuple):
    """What a pass chose to follow a text.

    Attributes:
        logprob: natural logarithm, under the model itself.
        top: (id, log-probability) of the likeliest, the likeliest first.
        experts: of each layer, those that worked on it, the first weighing most; None where
            they were not asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    experts: tuple[tuple[int, ...], ...] | None


class _Row(NamedTuple):
    """A token that another one is chosen after: where it stands in a pass ..."""

    text: Text
    place: int
    asked: int
    """... and where among those whose hidden states are asked for."""


class Pass:
    """A pass under way. The host waits for nothing before ``told``."""

    def __init__(
        self, model: Transformer, takes: Sequence[Take], before: Pass | None = None
    ) -> None:
        """Begin to read the next tokens of some texts.

        Args:
            before: the pass that chose those tokens, one a text, where the host was not told
                of them yet. It read no draft, and neither does this one.
        """
        self._vocab = model.config.vocab_size
        ids = before._tokens_of([take.text for take in takes]) if before else _known(takes)
        parts = [Part(take.rows, take.text.cache.layers, take.asked) for take in takes]
        routing = model.config.is_moe and any(take.text.routing for take in takes)
        with ExitStack() as stack:
            records = stack.enter_context(recorded(model.model.layers)) if routing else []
            self._hidden = together(model, ids, parts)
        mx.async_eval(self._hidden)
        _pool(self._hidden, takes)
        for take in takes:
            take.text.drafted = len(take.draft)
        # Those whose choice waits for the host come last.
        chosen = [take for take in takes if take.text.sampler and take.text.unread <= 0]
        self._takes = sorted(chosen, key=lambda take: take.text.constraint is not None)
        self._tokens, self._logprobs = mx.array([], mx.uint32), mx.array([])
        if self._takes:
            self._read_out(model, _rows(takes, self._takes), records)

    @property
    def texts(self) -> list[Text]:
        """Those that it chooses for."""
        return [take.text for take in self._takes]

    def choose_late(self) -> None:
        """Choose for the texts that have a constraint, which is asked now."""
        self._choose([take for take in self._takes if take.text.constraint])

    def told(self) -> list[tuple[Text, list[Told]]]:
        """Wait for the pass; what it chose for each text, to be told to ``Text.take``."""
        # Unlike ``tolist``, this lets other threads run while it waits.
        mx.eval(self._hidden)
        if not self._takes:
            return []
        mx.eval(self._tokens, self._logprobs, self._top, self._experts)
        tokens, logprobs = _listed(self._tokens), _listed(self._logprobs)
        top = list(zip(*map(_listed, self._top), strict=True)) or [((), ())] * len(tokens)
        experts = [_listed(array) for array in self._experts] or [[None] * len(tokens)]
        told, end = [], 0
        for take in self._takes:
            begin, end = end, end + take.asked
            right = foretold(take.draft, tokens[begin:end])
            said = [
                Told(
                    tokens[row],
                    logprobs[row],
                    _best(take.text.top, *top[row]),
                    _experts(take.text, experts[0][row]),
                )
                for row in range(begin, begin + right + 1)
            ]
            told.append((take.text, said))
        return told

    def _tokens_of(self, texts: Sequence[Text]) -> mx.array:
        """What is chosen for some texts [n], one token each, wherever it is by now."""
        mine = self.texts
        if list(texts) == mine:
            return self._tokens
        return self._tokens[mx.array([mine.index(text) for text in texts])]

    def _read_out(
        self, model: Transformer, rows: Sequence[_Row], records: Sequence[RecordedExperts]
    ) -> None:
        """Begin to choose, and whatever else is to be told of the rows."""
        asked = [row.asked for row in rows]
        whole = asked == [*range(len(self._hidden))]
        hidden = self._hidden if whole else self._hidden[mx.array(asked)]
        self._logits = model.head(hidden).astype(mx.float32)
        self._choose([take for take in self._takes if not take.text.constraint])
        self._top = _likeliest(self._logits, max(row.text.top for row in rows))
        self._experts = _chosen_experts(records, rows, len(self._hidden))
        mx.async_eval(self._logits, self._top, self._experts)

    def _choose(self, takes: Sequence[Take]) -> None:
        """Choose for some more of the texts, the next ones in order."""
        choices = [
            Choice(take.text.sampler, take.asked, self._allowed(take))
            for take in takes
            if take.text.sampler
        ]
        if not choices:
            return
        begin = len(self._tokens)
        logits = self._logits[begin : begin + sum(choice.rows for choice in choices)]
        tokens = choose_each(choices, logits)
        logprobs = log_probabilities(logits, tokens)
        self._tokens = mx.concatenate([self._tokens, tokens])
        self._logprobs = mx.concatenate([self._logprobs, logprobs])
        mx.async_eval(self._tokens, self._logprobs)

    def _allowed(self, take: Take) -> mx.array | None:
        """[asked, V], which tokens may be chosen; None: all."""
        if not take.text.constraint:
            return None
        packed = take.text.constraint.mask(take.draft)
        if packed is None:
            return None
        padded = np.zeros(-(-self._vocab // 32), np.uint32)
        padded[: len(packed)] = packed[: len(padded)]
        words, ids = mx.array(padded), mx.arange(self._vocab, dtype=mx.uint32)
        last = (words[ids // 32] >> (ids % 32)) & 1 == 1
        forced = [ids == token for token in take.draft]
        return mx.stack([*forced, last])


def _known(takes: Sequence[Take]) -> mx.array:
    """The next tokens of texts whose tokens the host knows."""
    return mx.array(
        [token for take in takes for token in (*take.text.next(take.count), *take.draft)]
    )


def _pool(hidden: mx.array, takes: Sequence[Take]) -> None:
    """Add up the hidden states of the texts without an answer."""
    for take, end in zip(takes, accumulate(take.asked for take in takes), strict=True):
        if not take.text.sampler:
            added = hidden[end - take.asked : end].astype(mx.float32).sum(axis=0)
            before = take.text.pooled
            take.text.pooled = added if before is None else before + added
            mx.async_eval(take.text.pooled)


def _rows(takes: Sequence[Take], chosen: Sequence[Take]) -> list[_Row]:
    """The rows of those of the ``takes`` that a token is chosen for, in that order."""
    places = accumulate(take.rows for take in takes)
    asked = accumulate(take.asked for take in takes)
    ends = {take.text: ends for take, *ends in zip(takes, places, asked, strict=True)}
    return [
        _Row(take.text, ends[take.text][0] - back, ends[take.text][1] - back)
        for take in chosen
        for back in range(take.asked, 0, -1)
    ]


def _likeliest(logits: mx.array, count: int) -> list[mx.array]:
    """Ids and log-probabilities [n, count] of the likeliest tokens, in no order; [] for none."""
    if not count:
        return []
    ids = mx.argpartition(-logits, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logits, ids, axis=-1)
    return [ids, values - mx.logsumexp(logits, axis=-1, keepdims=True)]


def _best(
    count: int, ids: Sequence[int], logprobs: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    pairs = sorted(zip(ids, logprobs, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return tuple(pairs[:count])


def _chosen_experts(
    records: Sequence[RecordedExperts], rows: Sequence[_Row], asked: int
) -> list[mx.array]:
    """[n, layers, K], what each layer chose at the rows, in a list; [] where nobody asks."""
    layers = []
    for record in records:
        # The last layer may have computed no more than was asked for.
        chosen = record.indices
        if chosen is not None:
            at = [row.asked if len(chosen) == asked else row.place for row in rows]
            layers.append(chosen[mx.array(at)])
    return [mx.stack(layers, axis=1)] if layers else []


def _experts(text: Text, layers: list[list[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    return tuple(map(tuple, layers)) if layers is not None and text.routing else None


def _listed(array: mx.array) -> list[Any]:
    listed: list[Any] = array.tolist()  # type: ignore[assignment]
    return listed
