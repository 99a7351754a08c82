"""What an answer has to keep to: JSON schemas and tool calls, as masks over the vocabulary.

Compiled by llguidance. JSON is written as Python writes it, with one space after each comma
and colon: where a model may choose its blanks, it may choose nothing else any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.server.narrowing import narrowed, plain
from mlx_mixtral.tokenizer import Tokenizer

SCHEMA_BYTES = 64 << 10
SCHEMA_DEPTH = 64
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# About 0.1 s for a schema and 10 ms for a token at most; usual ones take a hundredth of that.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,
    step_lexer_fuel=150_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class Keeper:
    """Holds one answer to a grammar; see ``jobs.Grammar``."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def forced(self) -> list[int]:
        """The tokens that have to come next: names of properties, for one."""
        return self._matcher.compute_ff_tokens()

    def mask(self, after: Sequence[int] = ()) -> np.ndarray:
        """The tokens that may come next, or after some that are forced, a bit each."""
        ahead = self._matcher.try_consume_tokens(list(after)) if after else 0
        mask = self._matcher.compute_bitmask()
        if ahead:
            self._matcher.rollback(ahead)
        if self._matcher.is_error() or ahead < len(after):
            raise MixtralError(f"the grammar became too costly ({self._matcher.get_error()})")
        return np.frombuffer(mask, np.uint32)

    def accept(self, token: int) -> None:
        """This one came."""
        if not self._matcher.consume_token(token):
            raise MixtralError(f"token {token} breaks the grammar ({self._matcher.get_error()})")

    @property
    def done(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Makes grammars for one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """``vocab_size``: of the model, whose logits may be more than there are tokens."""
        words = _Vocabulary(tokenizer, vocab_size)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(words), n_vocab=vocab_size, eos_token=sorted(tokenizer.stop_ids)
        )

    def compiled(self, lark: str) -> LLMatcher:
        """A grammar in llguidance's dialect of Lark, ready for ``keeper``. Takes milliseconds.

        Raises:
            UsageError: it cannot be honoured, or is too large.
        """
        matcher = LLMatcher(self._tokenizer, lark, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise UsageError(f"the schema cannot be honoured: {_reason(matcher.get_error())}")
        return matcher


def keeper(compiled: LLMatcher) -> Keeper:
    """For one answer; any number can be made of what was compiled once."""
    return Keeper(compiled.deep_copy())


def json_rule(schema: Mapping[str, Any] | bool, lenient: bool = False) -> str:
    """The right side of a rule of Lark: JSON that keeps to ``schema``.

    Args:
        lenient: what cannot be kept to is left out rather than refused.

    Raises:
        UsageError: the schema is too large or too deep.
    """
    if schema is False:
        raise UsageError("the schema is false: nothing can keep to it")
    wanted = {} if schema is True else dict(schema)
    text = json.dumps(wanted)
    if len(text) > SCHEMA_BYTES:
        raise UsageError(f"the schema has {len(text)} bytes; {SCHEMA_BYTES} are allowed")
    if _deeper_than(wanted, SCHEMA_DEPTH):
        raise UsageError(f"the schema is nested more than {SCHEMA_DEPTH} levels deep")
    if "x-guidance" in wanted:
        raise UsageError("the schema has an x-guidance, which cannot be honoured: leave it out")
    narrow = narrowed(plain(wanted, _can_be_followed if lenient else None))
    form = _FORM | {"lenient": True} if lenient else _FORM
    return f"%json {json.dumps({**narrow, 'x-guidance': form})}"


def json_grammar(schema: Mapping[str, Any] | bool, lenient: bool = False) -> str:
    """The answer is JSON that keeps to ``schema`` (as of ``json_rule``), after a space perhaps."""
    return f"start: SPACE? answer\nSPACE: / /\nanswer: {json_rule(schema, lenient)}\n"


@lru_cache(maxsize=512)
def _can_be_followed(pattern: str) -> bool:
    """Whether a regular expression is one that grammars know: none that looks ahead or back."""
    schema = json.dumps({"type": "string", "pattern": pattern})
    return not LLMatcher.validate_grammar(f"start: %json {schema}\n", limits=_LIMITS)


def _reason(told: str) -> str:
    """What llguidance found wrong, in a line. The grammar itself follows, which is not shown."""
    lines = [line.strip() for line in _PLACE.sub("", told).splitlines()]
    causes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return " ".join([lines[0], *causes[:1]])[:300]


class _Vocabulary:
    """The vocabulary as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        spelled = [tokenizer.bytes_of(i) for i in range(size)]
        self.special_token_ids = [i for i, text in enumerate(spelled) if not text]
        self.tokens = [text or f"<|{i}|>".encode() for i, text in enumerate(spelled)]
        self._encode = tokenizer.encode
        # SentencePiece puts a space before a text; after a character that is in no piece, none.
        self._before = "\x02"
        self._skipped = len(tokenizer.encode(self._before))

    def __call__(self, text: str) -> list[int]:
        if isinstance(text, bytes):  # llguidance tries whether bytes are taken
            raise TypeError(text)
        return self._encode(self._before + text)[self._skipped :]


def _deeper_than(value: object, levels: int) -> bool:
    rest = [(value, 0)]
    while rest:
        inner, depth = rest.pop()
        if depth > levels:
            return True
        if isinstance(inner, Mapping):
            rest += [(v, depth + 1) for v in inner.values()]
        elif isinstance(inner, list):
            rest += [(v, depth + 1) for v in inner]
    return False
