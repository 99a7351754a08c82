"""Conversations to token ids, in the form each model was trained on.

Mistral's own forms and ChatML are written out by hand: control tokens are put in by id
and the text between them is encoded by itself, so nothing typed can become one. A
template of any other form that came with the weights is left to ``jinja``.
"""

from __future__ import annotations

from pathlib import Path

from mlx_mixtral.template.base import Template
from mlx_mixtral.template.chatml import ChatML
from mlx_mixtral.template.jinja import JinjaTemplate, chat_templates
from mlx_mixtral.template.mistral import MistralTemplate
from mlx_mixtral.tokenizer import Tokenizer

__all__ = ["Template", "template_for"]


def template_for(tokenizer: Tokenizer, folder: str | Path) -> Template:
    """The form of a model folder: Mistral's by tokenizer version, ChatML, or its own template.

    Raises:
        ModelError: the files that hold the folder's template are damaged.
    """
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
