"""The one model that is served, and the names that clients may call it by."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.server.failure import Refusal

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

# (layers, hidden size, experts) of what Mistral released, and the names its API had for it.
_RELEASED = {
    (32, 4096, 8): ("mixtral-8x7b", ("open-mixtral-8x7b", "mistral-small", "mistral-small-2312")),
    (56, 6144, 8): ("mixtral-8x22b", ("open-mixtral-8x22b", "open-mixtral-8x22b-2404")),
    (32, 4096, 0): ("mistral-7b", ("open-mistral-7b", "mistral-tiny", "mistral-tiny-2312")),
}


@dataclass(frozen=True)
class ServedModel:
    """What clients are told about the model.

    Attributes:
        id: its name here.
        family: "mixtral-8x7b", "mixtral-8x22b", "mistral-7b", "mixtral" or "mistral".
        aliases: further names, with ``*`` for anything. Those of them that Mistral's API had for
            the model are ``hosted``.
        context: tokens that a prompt and its answer may have together.
        temperature: of a chat that does not ask for one.
    """

    id: str
    family: str
    aliases: tuple[str, ...]
    hosted: tuple[str, ...]
    context: int
    temperature: float
    layers: int
    experts: int
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, lm: LanguageModel, name: str | None = None, aliases: tuple[str, ...] = ()
    ) -> ServedModel:
        """Of a loaded model: called by its folder's name unless ``name`` says otherwise."""
        config = lm.config
        family, hosted = _family(config)
        typed = lm.name if lm.name != str(lm.path) else lm.path.name
        own = name or (typed if "/" not in typed or typed.count("/") == 1 else lm.path.name)
        others = [family, *hosted, *aliases]
        return cls(
            id=own,
            family=family,
            aliases=tuple(dict.fromkeys(other for other in others if other != own)),
            hosted=hosted,
            context=config.max_position_embeddings,
            temperature=lm.chat_temperature,
            layers=config.num_hidden_layers,
            experts=config.num_local_experts,
        )

    def check(self, name: str | None, tagged: bool = False) -> None:
        """Whether a request's ``model`` is this one. Raises Refusal (404) otherwise.

        Args:
            tagged: a colon and any tag may follow the name, as Ollama has it; ``:latest``, which
                it lists, always may.
        """
        names = [name]
        if name and (tagged or name.endswith(":latest")):
            names.append(name.rpartition(":")[0])
        if not any(self._is_called(each) for each in names):
            raise Refusal(
                404,
                f"there is no model {name!r} here: {self.id} is loaded, and no request loads "
                "another",
                code="model_not_found",
                param="model",
            )

    def _is_called(self, name: str | None) -> bool:
        if name is None or name == self.id:
            return True
        return any(fnmatchcase(name, alias) for alias in self.aliases)

    @property
    def card(self) -> dict[str, Any]:
        """OpenAI's model object with the fields of Mistral's model cards."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "mistralai",
            "name": self.id,
            "description": f"{self.family}, run by mlx-mixtral",
            "family": self.family,
            "max_context_length": self.context,
            "layers": self.layers,
            "experts": self.experts,
            "aliases": list(self.aliases),
            "default_model_temperature": self.temperature,
            "capabilities": {
                "completion_chat": True,
                "completion_fim": False,
                "function_calling": True,
                "fine_tuning": False,
                "vision": False,
                "classification": False,
            },
            "type": "base",
        }


def _family(config: ModelConfig) -> tuple[str, tuple[str, ...]]:
    shape = (config.num_hidden_layers, config.hidden_size, config.num_local_experts)
    if shape in _RELEASED:
        return _RELEASED[shape]
    # Of another size, the demo for one: the names of the smallest.
    if config.is_moe:
        return "mixtral", _RELEASED[32, 4096, 8][1]
    return "mistral", _RELEASED[32, 4096, 0][1]
