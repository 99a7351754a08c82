"""Several texts at once: passes of the model over the next tokens of each of them.

A text that is answered brings one row to a pass, a prompt that is read brings many. Nothing is
padded: every text keeps a cache of its own, as if it were alone (see ``model/together.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_mixtral.experts.recorded import RecordedExperts, recorded
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, choose_each, log_probabilities
from mlx_mixtral.model.together import Part, together
from mlx_mixtral.model.transformer import Transformer

Mask = np.ndarray | None
"""Which tokens may come: bit i % 32 of word i // 32 (uint32); None: any."""


class Text:
    """A text that is read, and then answered.

    Attributes:
        cache: of what was read, by the passes under way too.
        tokens: those known to the host: the prompt, and of the answer what was told.
        sampler: chooses the answer's; None: there is no answer, only ``pooled``.
        top: so many of the likeliest tokens are told with each.
        allowed: asked, once all ``tokens`` are known, what may come after them; None: anything.
        routing: tell the experts, if there are any.
        pooled: sum of the hidden states [D] of what was read, where there is no sampler.
    """

    def __init__(
        self,
        cache: PromptCache,
        prompt: Sequence[int],
        sampler: Sampler | None,
        *,
        top: int = 0,
        allowed: Callable[[], Mask] | None = None,
        routing: bool = False,
    ) -> None:
        self.cache, self.tokens, self.sampler = cache, list(prompt), sampler
        self.top, self.allowed, self.routing = top, allowed, routing
        self.pooled: mx.array | None = None

    @property
    def read(self) -> int:
        """Tokens that the cache holds. One more than are known where a pass chose one."""
        return self.cache.layers[0].offset

    @property
    def unread(self) -> int:
        """Known tokens that are to be read yet."""
        return len(self.tokens) - self.read


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
    """A text that a token is chosen for: where its last token stands in a pass ..."""

    text: Text
    place: int
    asked: int
    """... and where among those whose hidden states are asked for."""


class Pass:
    """A pass under way. The host waits for nothing before ``told``.

    Attributes:
        texts: those that it chooses a token for.
    """

    def __init__(
        self, model: Transformer, takes: Sequence[tuple[Text, int]], before: Pass | None = None
    ) -> None:
        """Begin to read so many of the next tokens of each text, one or more.

        Args:
            before: the pass that chose those tokens, one a text, where the host was not told
                of them yet.
        """
        self._vocab = model.config.vocab_size
        ids = before.tokens_of([text for text, _ in takes]) if before else _known(takes)
        # The hidden states of all that is pooled, and of the last token that is read of others.
        asked = [1 if text.sampler else count for text, count in takes]
        parts = [
            Part(count, text.cache.layers, last)
            for (text, count), last in zip(takes, asked, strict=True)
        ]
        routing = model.config.is_moe and any(text.routing for text, _ in takes)
        with ExitStack() as stack:
            records = stack.enter_context(recorded(model.model.layers)) if routing else []
            self._hidden = together(model, ids, parts)
        mx.async_eval(self._hidden)
        _pool(self._hidden, [text for text, _ in takes], asked)
        rows = _rows(takes, asked)
        self.texts = [row.text for row in rows]
        self._tokens, self._logprobs = mx.array([], mx.uint32), mx.array([])
        if rows:
            self._read_out(model, rows, records)

    def choose_late(self) -> None:
        """Choose for the texts that have ``allowed``, which is asked now."""
        self._choose(slice(len(self._tokens), len(self.texts)))

    def tokens_of(self, texts: Sequence[Text]) -> mx.array:
        """What was chosen for some of the ``texts`` [n], wherever it is by now."""
        if list(texts) == self.texts:
            return self._tokens
        return self._tokens[mx.array([self.texts.index(text) for text in texts])]

    def told(self) -> list[tuple[Text, Told]]:
        """Wait for the pass; what it chose for each of ``texts``."""
        # Unlike ``tolist``, this lets other threads run while it waits.
        mx.eval(self._hidden)
        if not self.texts:
            return []
        mx.eval(self._tokens, self._logprobs, self._top, self._experts)
        columns = zip(
            self.texts,
            _listed(self._tokens),
            _listed(self._logprobs),
            *([_listed(array) for array in self._top] or [[[]] * len(self.texts)] * 2),
            *([_listed(array) for array in self._experts] or [[None] * len(self.texts)]),
            strict=True,
        )
        return [
            (text, Told(token, logprob, _best(text.top, ids, values), _experts(text, layers)))
            for text, token, logprob, ids, values, layers in columns
        ]

    def _read_out(
        self, model: Transformer, rows: Sequence[_Row], records: Sequence[RecordedExperts]
    ) -> None:
        """Begin to choose, and whatever else is to be told of the rows."""
        asked = [row.asked for row in rows]
        whole = asked == [*range(len(self._hidden))]
        hidden = self._hidden if whole else self._hidden[mx.array(asked)]
        self._logits = model.head(hidden).astype(mx.float32)
        self._choose(slice(0, sum(row.text.allowed is None for row in rows)))
        self._top = _likeliest(self._logits, max(row.text.top for row in rows))
        self._experts = _chosen_experts(records, rows, len(self._hidden))
        mx.async_eval(self._logits, self._top, self._experts)

    def _choose(self, which: slice) -> None:
        """Choose for some more of the texts, the next ones in order."""
        if not (texts := self.texts[which]):
            return
        samplers, logits = [text.sampler for text in texts if text.sampler], self._logits[which]
        tokens = choose_each(samplers, logits, [self._allowed(text) for text in texts])
        logprobs = log_probabilities(logits, tokens)
        self._tokens = mx.concatenate([self._tokens, tokens])
        self._logprobs = mx.concatenate([self._logprobs, logprobs])
        mx.async_eval(self._tokens, self._logprobs)

    def _allowed(self, text: Text) -> mx.array | None:
        """[V], which tokens may follow; None: all."""
        packed = text.allowed() if text.allowed else None
        if packed is None:
            return None
        padded = np.zeros(-(-self._vocab // 32), np.uint32)
        padded[: len(packed)] = packed[: len(padded)]
        words, ids = mx.array(padded), mx.arange(self._vocab, dtype=mx.uint32)
        return (words[ids // 32] >> (ids % 32)) & 1 == 1


def _known(takes: Sequence[tuple[Text, int]]) -> mx.array:
    """The next tokens of texts whose tokens the host knows."""
    return mx.array(
        [token for text, count in takes for token in text.tokens[text.read : text.read + count]]
    )


def _pool(hidden: mx.array, texts: Sequence[Text], asked: Sequence[int]) -> None:
    """Add up the hidden states of the texts without an answer."""
    for text, count, end in zip(texts, asked, accumulate(asked), strict=True):
        if not text.sampler:
            added = hidden[end - count : end].astype(mx.float32).sum(axis=0)
            text.pooled = added if text.pooled is None else text.pooled + added
            mx.async_eval(text.pooled)


def _rows(takes: Sequence[tuple[Text, int]], asked: Sequence[int]) -> list[_Row]:
    """The texts to choose for: answered ones of which nothing more is to be read."""
    places = accumulate(count for _, count in takes)
    rows = [
        _Row(text, place - 1, end - 1)
        for (text, _), place, end in zip(takes, places, accumulate(asked), strict=True)
        if text.sampler and text.unread <= 0
    ]
    # Those whose choice waits for the host come last.
    return sorted(rows, key=lambda row: row.text.allowed is not None)


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
