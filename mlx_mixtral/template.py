"""Conversations to token ids, in the form each model was trained on.

Mistral's own forms and ChatML are written out by hand: control tokens are put in by id
and the text between them is encoded by itself, so nothing typed can become one. A
template of any other form that came with the weights is left to ``jinja_template``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import UsageError
from mlx_mixtral.messages import read_messages
from mlx_mixtral.tokenizer import Tokenizer


class Template(ABC):
    """Turns a conversation into a prompt.

    Attributes:
        name: ``"mistral-v1"``, ``"mistral-v2"``, ``"mistral-v3"``, ``"chatml"`` or ``"jinja"``.
    """

    name: str

    @abstractmethod
    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The token ids of the whole prompt, ``<s>`` included where the model expects it.

        Args:
            messages: OpenAI's form: ``role`` (system, user, assistant, tool), ``content``,
                ``tool_calls``, ``tool_call_id``, ``name``.
            tools: functions the model may call, in OpenAI's form.
            add_generation_prompt: when false, a last message of the assistant stays open,
                for the model to go on with.

        Raises:
            UsageError: the conversation is one that the model's form cannot express.
            ModelError: the template that came with the model does not work.
        """


def template_for(tokenizer: Tokenizer, folder: str | Path) -> Template:
    """The form of a model folder: Mistral's by tokenizer version, ChatML, or its own template.

    Raises:
        ModelError: the files that hold the folder's template are damaged.
    """
    from mlx_mixtral.jinja_template import JinjaTemplate, chat_templates
    from mlx_mixtral.mistral_template import MistralTemplate

    sources = chat_templates(Path(folder))
    is_chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.controls.keys()
    if not sources:
        return ChatML(tokenizer, bos=True) if is_chatml else MistralTemplate(tokenizer)
    # The [INST] templates in circulation differ from each other, and from what the models
    # were trained on, only in blanks and in what they refuse: mistral-common is right, so
    # ours stands in for all of them. Llama 2's <<SYS>> and mixtures are something else.
    source = sources["default"]
    if "[INST]" in source and not any(mark in source for mark in ("<<SYS>>", "<|", "###")):
        return MistralTemplate(tokenizer)
    own = JinjaTemplate(tokenizer, sources, Path(folder))
    # ChatML templates do differ: in <s>, in a default system text, in line ends. Ours
    # stands in for one only if both give the same tokens.
    chatml = ChatML(tokenizer, bos="bos_token" in source or "<s>" in source)
    if is_chatml and "<|im_start|>" in source and own.agrees_with(chatml):
        return chatml
    return own


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
