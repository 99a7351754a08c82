"""ChatML, the form of many fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.template.base import Template
from mlx_mixtral.template.messages import read_messages
from mlx_mixtral.tokenizer import Tokenizer


class ChatML(Template):
    """``<|im_start|>role``, a line end, the content, ``<|im_end|>``, a line end.

    The form of Nous-Hermes-2-Mixtral and Dolphin. Their published templates decide about
    ``<s>``; a folder without one gets it, as in training. Source: OpenAI's ChatML.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer, *, bos: bool) -> None:
        self._tokenizer = tokenizer
        self._bos = bos

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        turns = read_messages(messages)
        if tools or any(turn.role == "tool" or turn.tool_calls for turn in turns):
            raise UsageError("this model (ChatML) has no form for tools: leave them out")
        encode, start = self._tokenizer.encode, self._tokenizer.control_id("<|im_start|>")
        end = [self._tokenizer.control_id("<|im_end|>"), *encode("\n")]
        ids = [self._tokenizer.bos_id] if self._bos else []
        for turn in turns:
            ids += [start, *encode(f"{turn.role}\n{turn.text}"), *end]
        if add_generation_prompt:
            return [*ids, start, *encode("assistant\n")]
        return ids[: -len(end)] if turns[-1].role == "assistant" else ids
