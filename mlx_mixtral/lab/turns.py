"""Turns of a conversation: is the time to the first token that of the new tokens only?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from mlx_mixtral.chat import Chat
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.text import Stats, collect
from mlx_mixtral.lab.runs import OURS, Side, Tell, measure
from mlx_mixtral.loading import LanguageModel

ANSWER = 8
SENTENCE = "Tell me what you know of the rivers, the mountains and the people of the north. "


@dataclass(frozen=True)
class Turn:
    """One turn.

    Attributes:
        context: tokens of the conversation, this turn's text included.
        new: those of them that had to be computed.
        ttft_s: by side, seconds to the first token of the answer, the median of several
            conversations.
        whole_s: seconds to it where nothing is kept and all of ``context`` is computed; once.
    """

    context: int
    new: int
    ttft_s: dict[str, float]
    whole_s: float


@dataclass(frozen=True)
class Script:
    """What is said in each of ``turns`` turns, and its tokens as a conversation of its own."""

    turns: int
    text: str
    tokens: list[int]


def script_of(lm: LanguageModel, turns: int, length: int) -> Script:
    """Equal turns of about ``length`` tokens each.

    Raises:
        UsageError: they do not fit into the context.
    """
    text = SENTENCE
    while len(lm.tokenizer.encode(text)) < length:
        text += SENTENCE
    tokens = lm.template.encode([{"role": "user", "content": text.strip()}])
    limit = lm.config.max_position_embeddings
    if turns * (len(tokens) + ANSWER) > limit * 3 // 4:
        raise UsageError(
            f"{turns} turns of {len(tokens)} tokens are too much for the context of {limit}; "
            "lower --turns or --prompt"
        )
    return Script(turns, text.strip(), tokens)


def hold_turns(
    lm: LanguageModel, sides: Mapping[str, Side], script: Script, repeat: int, tell: Tell
) -> list[Turn]:
    """``repeat`` conversations, each side in its own way.

    This program sends the whole conversation every time, and its chat finds the beginning in
    its cache. mlx-lm's chat feeds only the new turn to the cache that it keeps, ``<s>`` before
    each of them.
    """
    spoken = [_conversation(lm, sides, script, tell) for _ in range(repeat)]
    found = []
    for same in zip(*spoken, strict=True):
        context, computed, _ = same[0]
        tell(f"{context} tokens anew")
        whole = measure(sides[OURS], _as_long(script.tokens, context), 2).ttft_s
        ttft = {name: statistics.median(turn[2][name] for turn in same) for name in sides}
        found.append(Turn(context, computed, ttft, whole))
    return found


def _conversation(
    lm: LanguageModel, sides: Mapping[str, Side], script: Script, tell: Tell
) -> list[tuple[int, int, dict[str, float]]]:
    """Turn by turn: tokens of the conversation, new ones, and seconds to the first by side."""
    chat = Chat(lm, temperature=0.0, max_tokens=ANSWER)
    caches = {name: side.caches() for name, side in sides.items() if name != OURS}
    found = []
    for number in range(script.turns):
        tell(f"turn {number + 1} of {script.turns}")
        seconds, stats = _say(chat, script.text)
        ttft = {OURS: seconds}
        for name, kept in caches.items():
            ttft[name] = measure(sides[name], script.tokens, ANSWER, kept).ttft_s
        found.append((stats.prompt_tokens, stats.prompt_tokens - stats.cached_tokens, ttft))
    return found


def _say(chat: Chat, text: str) -> tuple[float, Stats]:
    """Seconds from saying it to the first token, and the answer's statistics."""
    start = time.perf_counter()
    pieces = chat.stream(text)
    first = next(pieces)
    seconds = time.perf_counter() - start
    return seconds, collect(chat.lm, chain([first], pieces)).stats


def _as_long(tokens: list[int], length: int) -> list[int]:
    return (tokens * (length // len(tokens) + 1))[:length]
