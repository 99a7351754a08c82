"""What Ollama's API tells of the model: a list of one, its details, and that it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlx_mixtral.generation.kv_file import fingerprint
from mlx_mixtral.server.names import ServedModel
from mlx_mixtral.weights import expected_shapes

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

VERSION = "0.12.11"
"""Of Ollama, whose API of that time this is. Programs refuse what is older than they know."""


@dataclass(frozen=True)
class Listing:
    """The loaded model as Ollama would list it."""

    lm: LanguageModel
    model: ServedModel

    @property
    def tags(self) -> dict[str, Any]:
        """``GET /api/tags``"""
        return {"models": [self._entry | {"modified_at": self._modified}]}

    @property
    def running(self) -> dict[str, Any]:
        """``GET /api/ps``"""
        ever = (datetime.now(UTC) + timedelta(days=36500)).isoformat()
        size = self._entry["size"]
        about = {"expires_at": ever, "size_vram": size, "context_length": self.model.context}
        return {"models": [self._entry | about]}

    @property
    def shown(self) -> dict[str, Any]:
        """``POST /api/show``"""
        config, family = self.lm.config, self.model.family
        info = {
            "general.architecture": family,
            "general.parameter_count": self._parameters,
            f"{family}.context_length": self.model.context,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.num_hidden_layers,
            f"{family}.feed_forward_length": config.intermediate_size,
            f"{family}.attention.head_count": config.num_attention_heads,
            f"{family}.attention.head_count_kv": config.num_key_value_heads,
            f"{family}.rope.freq_base": config.rope_theta,
            f"{family}.vocab_size": config.vocab_size,
        }
        if config.is_moe:
            info[f"{family}.expert_count"] = config.num_local_experts
            info[f"{family}.expert_used_count"] = config.num_experts_per_tok
        return {
            "modelfile": f"FROM {self.model.id}",
            "parameters": f"temperature {self.model.temperature:g}",
            "template": self.lm.template.name,
            "details": self._details,
            "model_info": info,
            "capabilities": ["completion", "tools"],
            "modified_at": self._modified,
        }

    @cached_property
    def _entry(self) -> dict[str, Any]:
        files = self.lm.path.glob("*.safetensors")
        return {
            "name": f"{self.model.id}:latest",
            "model": f"{self.model.id}:latest",
            "size": sum(file.stat().st_size for file in files),
            "digest": fingerprint(self.lm.path),
            "details": self._details,
        }

    @property
    def _details(self) -> dict[str, Any]:
        quantization = self.lm.config.quantization
        bits = quantization.default.bits if quantization else 16
        billions = self._parameters / 1e9
        size = f"{billions:.1f}B" if billions >= 1 else f"{1000 * billions:.1f}M"
        return {
            "parent_model": "",
            "format": "mlx",
            "family": self.model.family,
            "families": [self.model.family],
            "parameter_size": size,
            "quantization_level": f"{bits}-bit",
        }

    @cached_property
    def _parameters(self) -> int:
        return sum(math.prod(shape) for shape in expected_shapes(self.lm.config).values())

    @cached_property
    def _modified(self) -> str:
        seconds = (self.lm.path / "config.json").stat().st_mtime
        return datetime.fromtimestamp(seconds, UTC).isoformat()
