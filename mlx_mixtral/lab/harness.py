"""This program's models as lm-eval wants them: scores of given texts, and answers.

Importing this needs lm-eval (the extra ``eval``).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from mlx_mixtral.generation.prefill import chunk_after
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.generation.text import answer, collect
from mlx_mixtral.loading import LanguageModel

# lm-eval takes a rendered chat for text. Ours are tokens, so that nothing said in a chat can
# become a control token: the text stands for them, and this at its end says so.
CHAT_END = "\x03"
ANSWER_TOKENS = 256
"""The longest answer, where a task does not say: what lm-eval's own models take."""


class Harness(TemplateLM):  # type: ignore[misc]
    """One model, one request at a time.

    What consecutive requests have in common at their beginning, few-shot examples or a question
    with several answers, is computed once. Texts longer than the context lose their beginning.
    """

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self._lm = lm
        self._cache = PromptCache(lm.config)
        self._chats: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self._lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._lm.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self._lm.config.max_position_embeddings

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which lm-eval caches requests."""
        return f"{self._lm.name}-{self._lm.template.name}".replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        chat, mark, rest = string.rpartition(CHAT_END)
        if mark:
            return [*self._chats[chat], *self._lm.tokenizer.encode(rest)]
        return self._lm.tokenizer.encode(string, bos=add_special_tokens is not False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        shown = "\n".join(f"{turn['role']}: {turn['content']}" for turn in chat_history)
        self._chats[shown] = self._lm.template.encode(
            chat_history, add_generation_prompt=add_generation_prompt
        )
        return shown + CHAT_END

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)  # its bar is no terminal's alone

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        bar = tqdm(requests, desc="scoring", disable=None, leave=False)
        return [self.score(context, continuation) for _, context, continuation in bar]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        found = []
        for request in tqdm(requests, desc="scoring", disable=None, leave=False):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            pairs = map(make_disjoint_window, windows)
            found.append(sum(self.score(context, then)[0] for context, then in pairs))
        return found

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """How likely ``continuation`` is after ``context``.

        Returns:
            The natural logarithm of its probability, and whether it is what always taking the
            likeliest token gives.
        """
        ids = [*context, *continuation][-self.max_length - 1 :]
        known = len(ids) - len(continuation)  # what is left of the context, one token at least
        shared = self._cache.reuse(ids[:known])
        states, begin = [], shared
        while begin < len(ids) - 1:
            end = min(begin + chunk_after(self._lm.config, begin), len(ids) - 1)
            hidden = self._lm.model.hidden(mx.array([ids[begin:end]]), self._cache.layers)
            states.append(hidden[0, max(0, known - 1 - begin) :])
            mx.eval(states[-1])
            begin = end
        self._cache.settle(ids[:-1])
        logits = self._lm.model.head(mx.concatenate(states)).astype(mx.float32)
        targets = mx.array(continuation)
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        total = (chosen - mx.logsumexp(logits, axis=-1)).sum()
        greedy = mx.all(mx.argmax(logits, axis=-1) == targets)
        return float(np.array(total)), bool(greedy.item())

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        bar = tqdm(requests, desc="answering", disable=None, leave=False)
        return [self._answer(*request.args) for request in bar]

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = tuple(s for s in ([until] if isinstance(until, str) else until) if s)
        most = min(int(settings.get("max_gen_toks", ANSWER_TOKENS)), self.max_length // 2)
        heat = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
        sampling = Sampling.of(temperature=heat, max_tokens=most, stop=stops)
        ids = self.tok_encode(context)[most - self.max_length :]
        return collect(self._lm, answer(self._lm, ids, sampling, self._cache)).text
