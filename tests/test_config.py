"""config.py: every spelling of a configuration, and one clear line for a bad one."""

import json
from typing import Any

import pytest
from checkpoints import quantization, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec, read_config
from mlx_mixtral.errors import ModelError

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# As published with Mixtral-8x7B-v0.1 (transformers 4.36).
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
MAGNET_8X7B = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
    "moe": {"num_experts_per_tok": 2, "num_experts": 8},
}


def hf(**changes: Any) -> dict[str, Any]:
    return MIXTRAL_8X7B | changes


def dense(**changes: Any) -> dict[str, Any]:
    raw = {k: v for k, v in MIXTRAL_8X7B.items() if "experts" not in k and k != "rope_theta"}
    return raw | {"model_type": "mistral"} | changes


def test_the_magnet_and_hugging_face_describe_the_same_mixtral():
    assert ModelConfig.from_hf(MIXTRAL_8X7B) == ModelConfig.from_params(MAGNET_8X7B)


def test_mixtral_has_no_window_whatever_its_config_says():
    assert ModelConfig.from_hf(hf(sliding_window=4096)).sliding_window is None


@pytest.mark.parametrize(("said", "meant"), [(4096, 4096), (None, None), (0, None)])
def test_a_dense_window(said, meant):
    assert ModelConfig.from_hf(dense(sliding_window=said)).sliding_window == meant


@pytest.mark.parametrize(
    ("raw", "theta"),
    [
        (hf(rope_theta=5e5), 5e5),
        (hf(rope_theta=None), 1e6),
        (hf(rope_parameters={"rope_type": "default", "rope_theta": 7e4}, rope_theta=None), 7e4),
        (hf(rope_parameters={"rope_type": "default", "rope_theta": 7e4}), 7e4),
        (hf(rope_scaling=None), 1e6),
        (dense(), 1e4),
    ],
)
def test_rope_theta(raw, theta):
    assert ModelConfig.from_hf(raw).rope_theta == theta


def test_mistrals_own_rule_for_rope_theta():
    assert ModelConfig.from_params(MAGNET_8X7B).rope_theta == 1e6
    assert ModelConfig.from_params(MAGNET_8X7B | {"sliding_window": 4096}).rope_theta == 1e4
    assert ModelConfig.from_params(MAGNET_8X7B | {"rope_theta": 3e5}).rope_theta == 3e5


def test_params_of_the_dense_7b():
    raw = {k: v for k, v in MAGNET_8X7B.items() if k != "moe"} | {"sliding_window": 4096}
    config = ModelConfig.from_params(raw)
    assert not config.is_moe
    assert config.sliding_window == 4096


def test_head_dim_is_explicit_or_follows():
    assert ModelConfig.from_hf(hf(head_dim=64)).head_dim == 64
    assert ModelConfig.from_hf(hf(head_dim=None)).head_dim == 128
    assert ModelConfig.from_hf(MIXTRAL_8X7B).head_dim == 128


@pytest.mark.parametrize(("eos", "ids"), [(2, (2,)), ([2, 32000], (2, 32000)), (None, (2,))])
def test_one_end_token_or_several(eos, ids):
    assert ModelConfig.from_hf(hf(eos_token_id=eos)).eos_token_ids == ids


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(num_local_experts=0, sliding_window=7, rope_theta=1e4),
        tiny_config(tie_word_embeddings=True, eos_token_ids=(2, 5), head_dim=20),
        tiny_config(quantization=quantization(4, **{"lm_head": 8, "model.embed_tokens": None})),
        tiny_config(quantization=quantization(4, 32, "mxfp4")),
    ],
)
def test_what_is_written_is_what_is_read(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert read_config(tmp_path) == config


# --- quantization


def test_quantization_with_overrides():
    settings = {
        "group_size": 64,
        "bits": 4,
        "lm_head": {"group_size": 32, "bits": 8},
        "model.layers.0.block_sparse_moe.gate": False,
        "model.layers.1.self_attn.q_proj": True,
        "model.embed_tokens": {"bits": 6},
    }
    for raw in (hf(quantization=settings), hf(quantization_config=settings)):
        found = ModelConfig.from_hf(raw).quantization
        assert found.of("lm_head") == QuantSpec(8, 32)
        assert found.of("model.embed_tokens") == QuantSpec(6, 64)
        assert found.of("model.layers.0.block_sparse_moe.gate") is None
        assert found.of("model.layers.1.self_attn.q_proj") == QuantSpec(4, 64)
        assert found.of("anything else") == QuantSpec(4, 64)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"group_size": 64, "bits": 7}, "7 bits"),
        ({"group_size": 16, "bits": 4}, "groups of 16"),
        ({"group_size": 64, "bits": "4"}, "4 bits"),
        ({"group_size": 64}, "bits"),
        ({"bits": 4}, "group_size"),
        ({"group_size": 32, "bits": 4, "mode": "fp1"}, "fp1"),
        ({"group_size": 64, "bits": 4, "mode": "mxfp4"}, "mxfp4"),
        ({"group_size": 64, "bits": 4, "mode": ["affine"]}, "affine"),
        ({"group_size": 64, "bits": 4, "lm_head": {"bits": 7}}, "7 bits"),
    ],
)
def test_quantization_that_mlx_does_not_have(spec, words):
    with pytest.raises(ModelError, match=words):
        Quantization.from_dict(spec)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_foreign_quantization_is_refused_by_name(method):
    with pytest.raises(ModelError, match=method):
        ModelConfig.from_hf(hf(quantization_config={"quant_method": method, "bits": 4}))


# --- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"model_type": "qwen2_moe"}, "'qwen2_moe'"),
        ({"model_type": None}, "architecture"),
        ({"model_type": ["mixtral"]}, "architecture"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"hidden_size": 4096.0}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_local_experts": 10**9}, "num_local_experts"),
        ({"vocab_size": 10**18}, "vocab_size"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 5}, "evenly"),
        ({"head_dim": 63}, "odd"),
        ({"num_experts_per_tok": 9}, "9 experts a token of 8"),
        ({"num_experts_per_tok": 0}, "0 experts"),
        ({"num_local_experts": -1}, "-1"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"rope_parameters": "default"}, "rope_parameters"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [2, None]}, "eos_token_id"),
        ({"quantization": 4}, "quantization"),
        ({"quantization_config": "gptq"}, "quantization"),
    ],
)
def test_a_bad_config_is_refused_in_one_line_that_names_it(changes, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf(**changes)))
    with pytest.raises(ModelError, match=words) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": None}, "dim is missing"),
        ({"moe": [8, 2]}, "moe"),
        ({"moe": {"num_experts": 8}}, "num_experts_per_tok is missing"),
        ({"sliding_window": "4096"}, "sliding_window"),
    ],
)
def test_bad_params_are_refused(changes, words, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(MAGNET_8X7B | changes))
    with pytest.raises(ModelError, match=words) as error:
        read_config(tmp_path)
    assert "params.json" in str(error.value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b'{"a":' * 50_000, b"[" * 100_000]
)
def test_broken_json(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"config\.json") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(tmp_path)


SCALAR = st.sampled_from(
    [None, True, 0, -1, 3, 10**9, 10**400, 0.5, -1.0, float("nan"), float("inf"), "", "default"]
)
INNER = st.sampled_from(["rope_type", "type", "rope_theta", "bits", "group_size", "mode",
                         "quant_method", "num_experts", "num_experts_per_tok", "path"])  # fmt: skip
SHALLOW = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(INNER, SCALAR, max_size=2)
ANY_JSON = SHALLOW | st.lists(SHALLOW, max_size=2) | st.dictionaries(INNER, SHALLOW, max_size=3)
KEYS = sorted({*MIXTRAL_8X7B, "head_dim", "rope_parameters", "rope_scaling", "quantization",
               "quantization_config", "sliding_window", "attention_bias"})  # fmt: skip


@FUZZ
@given(st.sampled_from(["mixtral", "mistral"]), st.dictionaries(st.sampled_from(KEYS), ANY_JSON))
def test_any_value_anywhere_is_a_config_or_a_clear_refusal(kind, changes):
    try:
        ModelConfig.from_hf(hf(model_type=kind) | changes)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017


@FUZZ
@given(st.dictionaries(st.sampled_from([*MAGNET_8X7B, "sliding_window", "rope_theta"]), ANY_JSON))
def test_any_value_in_params_is_a_config_or_a_clear_refusal(changes):
    try:
        ModelConfig.from_params(MAGNET_8X7B | changes)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
