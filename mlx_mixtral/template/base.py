"""What every chat template does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any


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
