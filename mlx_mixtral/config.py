"""What a model is: its shapes and constants, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import ModelError
from mlx_mixtral.jsonfile import read_json

# Legal bits and group sizes of each of MLX's quantization modes.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((1, 2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

# Far above every release. A damaged or hostile config.json should not cost memory.
LARGEST = 1 << 24
MOST_PARTS = 1024


@dataclass(frozen=True)
class QuantSpec:
    """How one matrix is quantized: ``bits`` a weight, ``group_size`` weights to a scale."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ModelError(
                f"quantization mode {self.mode!r} is unknown; MLX has {', '.join(MODES)}"
            )
        bits, groups = MODES[self.mode]
        if self.bits not in bits or self.group_size not in groups:
            raise ModelError(
                f"{self.mode} quantization takes bits {bits} and group sizes {groups}, "
                f"not {self.bits} bits in groups of {self.group_size}"
            )

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> QuantSpec:
        try:
            return cls(spec["bits"], spec["group_size"], spec.get("mode", "affine"))
        except KeyError as key:
            raise ModelError(f"config.json: quantization lacks {key}") from None

    def to_dict(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Quantization:
    """The quantization of a whole model: a default, and paths that differ (None: 16 bit).

    Whether a matrix is quantized at all is told by its ``.scales``; this says how.
    """

    default: QuantSpec
    overrides: Mapping[str, QuantSpec | None] = field(default_factory=dict)

    def of(self, path: str) -> QuantSpec | None:
        """The spec of a module path such as ``model.layers.0.self_attn.q_proj``."""
        return self.overrides.get(path, self.default)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Quantization:
        """From the ``quantization`` entry of an MLX config.json."""
        overrides: dict[str, QuantSpec | None] = {}
        for path, spec in settings.items():
            if isinstance(spec, Mapping):
                overrides[path] = QuantSpec.from_dict({**settings, **spec})
            elif spec is False:
                overrides[path] = None
        return cls(QuantSpec.from_dict(settings), overrides)

    def to_dict(self) -> dict[str, Any]:
        paths = {p: s.to_dict() if s else False for p, s in self.overrides.items()}
        return {**self.default.to_dict(), **paths}


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and constants of a Mixtral, or of a dense Mistral (``num_local_experts`` 0).

    Names are those of Hugging Face's config.json. ``sliding_window`` is the number of
    tokens a token attends to, itself included, or None for all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_ids: tuple[int, ...] = (2,)
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        positive = [
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        ]  # fmt: skip
        for name in positive:
            if not 1 <= (value := getattr(self, name)) <= LARGEST:
                raise ModelError(f"config: {name} is {value}; it has to be 1 to {LARGEST}")
        for name in ("num_hidden_layers", "num_local_experts"):
            if (value := getattr(self, name)) > MOST_PARTS:
                raise ModelError(f"config: {name} is {value}; no Mistral model has so many")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"config: {self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ModelError(f"config: head_dim {self.head_dim} is odd; RoPE turns pairs")
        if self.num_local_experts and not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ModelError(
                f"config: {self.num_experts_per_tok} experts a token of {self.num_local_experts}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"config: sliding_window is {self.sliding_window}")

    @property
    def is_moe(self) -> bool:
        return self.num_local_experts > 0

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """From a Hugging Face config.json, as transformers 4 or 5 (or mlx-lm) writes it.

        Raises:
            ModelError: another architecture, a missing entry, or a feature that neither
                Mixtral nor Mistral 7B has.
        """
        kind = raw.get("model_type")
        if kind not in ("mixtral", "mistral"):
            raise ModelError(
                f"the architecture is {kind!r}; this program runs mixtral and mistral models only"
            )
        moe = kind == "mixtral"
        _refuse_unsupported(raw)
        heads = _integer(raw, "num_attention_heads")
        hidden = _integer(raw, "hidden_size")
        return cls(
            vocab_size=_integer(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_integer(raw, "intermediate_size"),
            num_hidden_layers=_integer(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(raw, "num_key_value_heads", heads),
            head_dim=_integer(raw, "head_dim", hidden // max(heads, 1)),
            rms_norm_eps=_number(raw, "rms_norm_eps", 1e-5),
            rope_theta=_rope_theta(raw, 1e6 if moe else 1e4),
            max_position_embeddings=_integer(raw, "max_position_embeddings", 32768),
            # Early Mixtral configs say 4096 by mistake: it was trained without a window.
            sliding_window=None if moe or not raw.get("sliding_window")
            else _integer(raw, "sliding_window"),
            num_local_experts=_integer(raw, "num_local_experts", 8) if moe else 0,
            num_experts_per_tok=_integer(raw, "num_experts_per_tok", 2),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            bos_token_id=_integer(raw, "bos_token_id", 1),
            eos_token_ids=_eos(raw),
            quantization=_quantization(raw),
        )  # fmt: skip

    @classmethod
    def from_params(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """From Mistral's own params.json, as released with the magnet links."""
        moe = _mapping(raw, "moe")
        window = _integer(raw, "sliding_window", 0)
        return cls(
            vocab_size=_integer(raw, "vocab_size", 32000),
            hidden_size=_integer(raw, "dim"),
            intermediate_size=_integer(raw, "hidden_dim"),
            num_hidden_layers=_integer(raw, "n_layers"),
            num_attention_heads=_integer(raw, "n_heads"),
            num_key_value_heads=_integer(raw, "n_kv_heads"),
            head_dim=_integer(raw, "head_dim"),
            rms_norm_eps=_number(raw, "norm_eps", 1e-5),
            # Mistral's own loader: 1e6 unless there is a sliding window (7B v0.1).
            rope_theta=_number(raw, "rope_theta", 1e4 if window else 1e6),
            max_position_embeddings=_integer(raw, "max_seq_len", 32768),
            sliding_window=window or None,
            num_local_experts=_integer(moe, "num_experts") if moe else 0,
            num_experts_per_tok=_integer(moe, "num_experts_per_tok") if moe else 2,
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers 4, mlx-lm and ``from_hf`` read."""
        eos = self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids)
        config: dict[str, Any] = {
            "architectures": ["MixtralForCausalLM" if self.is_moe else "MistralForCausalLM"],
            "model_type": "mixtral" if self.is_moe else "mistral",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        }
        if self.is_moe:
            config["num_local_experts"] = self.num_local_experts
            config["num_experts_per_tok"] = self.num_experts_per_tok
        if self.quantization:
            # mlx-lm reads either key, other tools only the second.
            config["quantization"] = self.quantization.to_dict()
            config["quantization_config"] = self.quantization.to_dict()
        return config


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder, from config.json or params.json.

    Raises:
        ModelError: neither file is there, one cannot be read, or the model is not Mistral's.
    """
    for name, parse in (
        ("config.json", ModelConfig.from_hf),
        ("params.json", ModelConfig.from_params),
    ):
        if (path := folder / name).is_file():
            try:
                return parse(read_json(path))
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from None
    raise ModelError(f"{folder} has no config.json; a model folder holds one beside its weights")


def _integer(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(
            f"{key} is missing" if value is None else f"{key} is {value!r}, not an integer"
        )
    return value


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{key} is {value!r}, not a JSON object")
    return value


def _eos(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """One end token, or a list of them; </s> where none is named."""
    value = raw.get("eos_token_id")
    listed = value if isinstance(value, list) else [2 if value is None else value]
    if not listed or any(type(token) is not int for token in listed):
        raise ModelError(f"eos_token_id is {value!r}, not a token id or a list of them")
    return tuple(listed)


def _number(raw: Mapping[str, Any], key: str, default: float) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ModelError(f"{key} is {value!r}, not a positive number")
    return float(value)


def _rope_theta(raw: Mapping[str, Any], default: float) -> float:
    """transformers 5 nests it in rope_parameters, older versions have it at the top."""
    nested = _mapping(raw, "rope_parameters")
    scaling = _mapping(raw, "rope_scaling")
    for settings in (nested, scaling):
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise ModelError(f"RoPE scaling {kind!r} is not supported; no Mistral release uses it")
    return _number(nested if "rope_theta" in nested else raw, "rope_theta", default)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"activation {activation!r} is not supported; Mistral's models use silu")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ModelError(f"{key} is set; Mistral's models have no biases")


def _quantization(raw: Mapping[str, Any]) -> Quantization | None:
    copy = _mapping(raw, "quantization_config")
    if foreign := copy.get("quant_method"):
        raise ModelError(f"the weights are quantized by {foreign!r}, which is not MLX's format")
    settings = _mapping(raw, "quantization") or copy
    return Quantization.from_dict(settings) if settings else None
