"""A smaller model that proposes what the large one may say next.

Speculative decoding (Leviathan, Kalman, Matias 2023, arXiv:2211.17192), but with drafts that
change no token of an answer: at every place the small model draws with the random number that
the large one will draw with there. Both add the same Gumbel noise to their logits and take the
largest, so they agree about as often as two samples of their distributions can be made to, and
only where they agree is the draft used (Daliri, Musco, Suresh 2024, arXiv:2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.pace import Pace
from mlx_mixtral.generation.prefill import chunk_after
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel


class DraftModel:
    """A draft's model, and what it has read of one conversation. It reads only when asked.

    Attributes:
        pace: how long drafts should be, learned from one answer to the next.
    """

    def __init__(self, lm: LanguageModel, draft: LanguageModel) -> None:
        """Raises UsageError where the ids of ``draft`` mean other tokens than those of ``lm``."""
        same = lm.config.vocab_size == draft.config.vocab_size
        if not (same and lm.tokenizer.agrees_with(draft.tokenizer)):
            raise UsageError(
                f"{draft.name} cannot draft for {lm.name}: their vocabularies differ "
                "(Mistral 7B v0.1 and v0.2 have that of Mixtral 8x7B)"
            )
        self.pace = Pace()
        self._model = draft.model
        self._cache = PromptCache(draft.config)
        self._limit = draft.config.max_position_embeddings
        self._proposed = 0

    def begin(self, prompt: Sequence[int]) -> None:
        """A new prompt: what was read of it before is kept."""
        self._cache.reuse(prompt)

    def behind(self, length: int) -> int:
        """Of a text's first ``length`` tokens, how many are not read yet."""
        return length - self._cache.layers[0].offset

    def room(self, length: int) -> int:
        """How many tokens can be drafted after so many, until this model's context is full."""
        return self._limit - length

    def propose(
        self, text: list[int], length: int, last: mx.array, count: int, sampler: Sampler
    ) -> mx.array:
        """``count`` tokens [count] that may follow. The host waits for none of them.

        Args:
            text: of which the first ``length`` tokens stand before ``last``.
            last: the last token [1], which the device may still be computing.
            sampler: in the state in which it will choose the first of them.
        """
        ids = mx.concatenate([self._read(text, length), last])
        sampler = sampler.fork()
        proposed: list[mx.array] = []
        for _ in range(count):
            hidden = self._model.hidden(ids[None], self._cache.layers, last=1)[:, -1]
            ids, _ = sampler(self._model.head(hidden))
            mx.async_eval(ids)  # the device begins while the next step is prepared
            proposed.append(ids)
        self._proposed = count
        return mx.concatenate(proposed)

    def keep(self, right: int) -> None:
        """Forget what came after the first ``right`` tokens of the last draft."""
        # Its last token was not read.
        self._cache.drop(max(0, self._proposed - 1 - right))

    def settle(self, sequence: Sequence[int]) -> None:
        """The answer is over; the conversation is ``sequence`` now."""
        self._cache.settle(sequence)

    def reset(self) -> None:
        """Forget everything that was read."""
        self._cache.reset()

    def _read(self, text: list[int], length: int) -> mx.array:
        """Read what there is to read but for a chunk, which is left to the next step."""
        layers, config = self._cache.layers, self._model.config
        while length - (at := layers[0].offset) > (chunk := chunk_after(config, at)):
            # As in ``prefill``, one chunk's activations at a time.
            mx.eval(self._model.hidden(mx.array([text[at : at + chunk]]), layers, last=1))
            mx.clear_cache()
        return mx.array(text[layers[0].offset : length], mx.uint32)
