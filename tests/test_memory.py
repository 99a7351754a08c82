"""What a model takes of the memory, and what is refused for want of it."""

import os

import mlx.core as mx
import pytest
from checkpoints import quantization, tiny_config, write_mlx
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_mixtral import Chat, load, memory
from mlx_mixtral.catalog import resolve
from mlx_mixtral.errors import ContextError, ModelError, UsageError
from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.memory import context_that_fits, working_bytes

CONFIG = tiny_config(max_position_embeddings=8192, head_dim=32)
GB = 10**9


def need(config, context, weights=0, kv=None, dtype=mx.float32):
    kv = kv_bytes(config, context, kv or KVSettings(), dtype)
    return weights + working_bytes(config, dtype) + kv


@given(context=st.integers(512, 8192), spare=st.integers(0, 5000), weights=st.integers(0, GB))
def test_the_longest_context_that_fits(context, spare, weights):
    free = need(CONFIG, context, weights) + spare
    found = context_that_fits(CONFIG, weights, mx.float32, KVSettings(), free)
    assert context <= found <= 8192
    assert need(CONFIG, found, weights) <= free
    assert found == 8192 or need(CONFIG, found + 1, weights) > free


def test_packed_keys_and_values_make_room():
    free = need(CONFIG, 2048)
    found = [
        context_that_fits(CONFIG, 0, mx.float32, KVSettings(bits), free) for bits in (None, 8, 4)
    ]
    assert found[0] == 2048
    assert found[0] < found[1] < found[2]
    assert context_that_fits(CONFIG, 0, mx.float32, KVSettings(window=600), free) == 8192


def test_too_little_is_refused_with_figures_and_ways(monkeypatch):
    weights = 26_300_000_000
    least = need(CONFIG, 512, weights)
    assert context_that_fits(CONFIG, weights, mx.float32, KVSettings(), least) == 767 // 256 * 256
    monkeypatch.setattr(memory, "total_memory", lambda: 36 << 30)
    for platform, told in (("darwin", True), ("linux", False)):
        monkeypatch.setattr("sys.platform", platform)
        with pytest.raises(ModelError) as refused:
            context_that_fits(CONFIG, weights, mx.float32, KVSettings(), least - 1)
        message = str(refused.value)
        assert "26.3 GB" in message
        assert f"{(least - 1) / 1e9:.1f} GB are free" in message
        assert "--force" in message
        assert "\n" not in message
        assert ("sudo sysctl iogpu.wired_limit_mb=" in message) == told
    limit = int(memory.raised_limit_mb(least, 36 << 30))
    assert (limit - 1) << 20 < least <= limit << 20
    assert memory.raised_limit_mb(32 << 30, 36 << 30) is None


def test_a_load_for_which_there_is_no_memory_reads_nothing(monkeypatch):
    monkeypatch.setattr("mlx_mixtral.loading.free_memory", lambda: 10_000_000)
    monkeypatch.setattr("mlx_mixtral.loading._filled", None)
    with pytest.raises(ModelError, match="GB are free here"):
        load("demo")


def test_the_context_is_cut_to_what_there_is_memory_for(monkeypatch):
    config = load("demo").config
    weights = 12_600_000  # a little less than the demo's, with float32 scales
    free = need(config, 1024, weights)
    monkeypatch.setattr("mlx_mixtral.loading.free_memory", lambda: free + 3_000_000)
    lm = load("demo")
    assert 512 <= lm.config.max_position_embeddings < lm.own_context == 2048
    assert Chat(lm).context_limit == lm.config.max_position_embeddings
    with pytest.raises(ContextError):
        Chat(lm).send("word " * lm.config.max_position_embeddings)
    with pytest.raises(ModelError, match=r"there is memory for [\d,]+ tokens .*, not for 2,000"):
        load("demo", context=2000)
    assert load("demo", context=2000, force=True).config.max_position_embeddings == 2000
    assert load("demo", kv=KVSettings(8)).config.max_position_embeddings == 2048


def test_a_context_may_be_asked_for():
    lm = load("demo", context=700)
    assert (lm.config.max_position_embeddings, lm.own_context) == (700, 2048)
    for wrong in (0, 2049):
        with pytest.raises(UsageError, match="the model has 1 to 2048"):
            load("demo", context=wrong)


@pytest.mark.parametrize("bits", [None, 4])
def test_the_reckoning_is_what_the_weights_take(bits, tmp_path, monkeypatch, kept_packed):
    packed = quantization(bits, 32) if bits else None
    config = tiny_config(vocab_size=4096, quantization=packed)
    folder = write_mlx(tmp_path, config)
    reckoned = []

    def spy(config, weights, *rest):
        reckoned.append(weights)
        return context_that_fits(config, weights, *rest)

    monkeypatch.setattr("mlx_mixtral.loading.context_that_fits", spy)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((resolve("demo") / name).read_bytes())
    lm = load(folder)
    held = tree_flatten(lm.model.parameters())
    assert reckoned == [sum(array.nbytes for _, array in held)]


def test_macos_is_told_to_keep_the_need_and_no_more(monkeypatch):
    told = {}
    monkeypatch.setattr(mx, "set_wired_limit", lambda n: told.update(wired=n))
    monkeypatch.setattr(mx, "set_cache_limit", lambda n: told.update(cache=n))
    memory.keep_in_memory(100, 20, 3)
    assert told == {}  # no Mac
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 110})
    memory.keep_in_memory(80, 20, 3)
    assert told == {"wired": 100, "cache": 3}
    memory.keep_in_memory(100, 20, 3)
    assert told == {"wired": 110, "cache": 3}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--context", "5000"], 2, "the model has 1 to 2048"),
        (["--context", "5"], 1, "maximum context length is 5 tokens"),
        (["--context", "100", "--force"], 0, ""),
    ],
)
def test_the_command_line_takes_a_context(options, code, said, spawn):
    process = spawn("generate", "demo", "-p", "What is a violin?", *options, env=dict(os.environ))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, bool(out)) == (code, code == 0)
    assert said in err
    assert err.count("\n") == (code != 0)
