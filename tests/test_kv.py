"""Keys and values in windows, packed, taken back: against attention written out in NumPy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_ids, tiny_config, write_hf
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral import Chat, generate
from mlx_mixtral.config import ModelConfig, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation import kv, prefill, prompt_cache
from mlx_mixtral.generation.kv import KVSettings, LayerKV, Layout, kv_bytes
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache, make_caches
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.loading import LanguageModel, load_model
from mlx_mixtral.model import attend as attention
from mlx_mixtral.model.attend import attend
from mlx_mixtral.model.transformer import Transformer

HEADS, KV_HEADS, DIM, GROUP = 4, 2, 32, 32
SCALE = DIM**-0.5
WINDOWED = {"num_local_experts": 0, "sliding_window": 20}


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that are full after a few tokens."""
    monkeypatch.setattr(kv, "STEP", 8)
    for module in (kv, prompt_cache):
        monkeypatch.setattr(module, "REWIND", 18)


# --- one layer


class Text:
    """All queries, keys and values of a text, and what attention over them is."""

    def __init__(self, layout: Layout, length: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.layout = layout
        self.q = random.normal(size=(1, HEADS, length, DIM)).astype(np.float32)
        self.k, self.v = random.normal(size=(2, 1, KV_HEADS, length, DIM)).astype(np.float32)

    def attended(self, begin: int, end: int) -> np.ndarray:
        """What the queries of these positions make of the text: [1, H, end - begin, hd]."""
        k, v = (self._as_stored(x)[0].astype(np.float64) for x in (self.k, self.v))
        out = np.zeros((1, HEADS, end - begin, DIM))
        for p in range(begin, end):
            window = self.layout.window or p + 1
            seen = [s for s in range(p + 1) if s > p - window or s < self.layout.sinks]
            for h in range(HEADS):
                shared = h // (HEADS // KV_HEADS)
                scores = k[shared, seen] @ self.q[0, h, p] * SCALE
                weights = np.exp(scores - scores.max())
                out[0, h, p - begin] = weights @ v[shared, seen] / weights.sum()
        return out

    def _as_stored(self, x: np.ndarray) -> np.ndarray:
        if not self.layout.bits:
            return x
        packed = mx.quantize(mx.array(x), GROUP, self.layout.bits)
        return np.array(mx.dequantize(*packed, GROUP, self.layout.bits))

    def feed(self, layer: LayerKV, n: int) -> np.ndarray:
        begin, end = layer.offset, layer.offset + n
        mask = layer.make_mask(n)
        new = (mx.array(x[:, :, begin:end]) for x in (self.k, self.v))
        keys, values = layer.update_and_fetch(*new)
        q = mx.array(self.q[:, :, begin:end])
        return np.array(attend(q, keys, values, SCALE, mask))


layouts = st.builds(
    Layout,
    window=st.none() | st.integers(1, 30),
    sinks=st.sampled_from([0, 4]),
    bits=st.sampled_from([None, 8, 4]),
    group_size=st.just(GROUP),
).filter(lambda layout: layout.window is not None or not layout.sinks)
moves = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=12)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("few_rows", [0, 8])
def test_however_it_is_fed_and_taken_back_each_query_sees_what_it_should(
    few_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FEW_ROWS", few_rows)
    gone_back = left_out = 0

    @given(layout=layouts, moves=moves)
    def check(layout: Layout, moves: list[tuple[int, int]]) -> None:
        nonlocal gone_back, left_out
        text, layer = Text(layout, sum(n for n, _ in moves)), LayerKV(layout)
        highest = 0
        for n, back in moves:
            before = layer.offset
            got = text.feed(layer, n)
            np.testing.assert_allclose(got, text.attended(before, layer.offset), atol=2e-5)
            highest = max(highest, layer.offset)
            assert layer.places == layout.places(highest)
            assert layer.earliest <= max(0, highest - kv.REWIND)
            assert n > kv.REWIND or layer.earliest <= before  # what was fed can be taken back
            left_out += layer.gap > 0
            back = min(back, layer.offset - layer.earliest)
            layer.trim(back)
            gone_back += back > 0 and layer.gap > 0

    check()
    assert gone_back > 20
    assert left_out > 20


def test_the_invariants_hold_at_the_real_sizes_too() -> None:
    layout = Layout(window=100, sinks=4)
    text, layer = Text(layout, 1700), LayerKV(layout)
    for n in (600, 200, 1, 40, 300, 1, 1):
        before = layer.offset
        got = text.feed(layer, n)
        np.testing.assert_allclose(got, text.attended(before, layer.offset), atol=2e-5)
        assert layer.places == layout.places(layer.offset) <= layout.most
        layer.trim(3)
    while layer.gap < 700:
        text.feed(layer, 1)
    assert layer.earliest >= layer.offset - kv.REWIND - kv.STEP


def test_what_a_window_left_out_cannot_be_gone_back_to() -> None:
    layout = Layout(window=10, sinks=4)
    text, layer = Text(layout, 1000), LayerKV(layout)
    text.feed(layer, 900)
    layer.trim(kv.REWIND)
    with pytest.raises(ValueError, match="before"):
        layer.trim(1)


def test_masks_are_made_only_where_something_is_hidden() -> None:
    layer = LayerKV(Layout(window=10, sinks=4))
    text = Text(layer.layout, 30)
    assert layer.make_mask(14) == "causal"
    assert layer.make_mask(15).shape == (15, 15)
    assert layer.make_mask(3, return_array=True).tolist() == np.tril(np.ones((3, 3))).tolist()
    text.feed(layer, 13)
    assert layer.make_mask(1) is None
    text.feed(layer, 1)
    assert layer.make_mask(1).tolist() == [[*[True] * 4, False, *[True] * 10]]
    # A window that the model has besides: the smaller counts, and has no sinks.
    assert layer.make_mask(1, window_size=3).tolist() == [[*[False] * 12, *[True] * 3]]
    assert layer.make_mask(1, window_size=11).tolist() == layer.make_mask(1).tolist()
    whole = LayerKV(Layout())
    text.feed(whole, 20)
    assert whole.make_mask(1) is None
    assert whole.make_mask(2) == "causal"


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("rows", [1, 3, attention.FEW_ROWS + 1])
def test_the_type_of_the_activations_is_kept(dtype: mx.Dtype, rows: int) -> None:
    layer = LayerKV(Layout(window=20, bits=8, group_size=GROUP))
    q = mx.ones((1, HEADS, rows, DIM), dtype)
    k = mx.ones((1, KV_HEADS, rows, DIM), dtype)
    for _ in range(3):
        mask = layer.make_mask(rows)
        assert attend(q, *layer.update_and_fetch(k, k), SCALE, mask).dtype == dtype


# --- settings


@pytest.mark.parametrize("bad", [{"bits": 6}, {"bits": True}, {"window": 0}, {"window": 2.5},
                                 {"bits": "8"}, {"window": -4}])  # fmt: skip
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        KVSettings(**bad)


def test_settings_for_a_model() -> None:
    dense = tiny_config(**WINDOWED)
    assert Layout.of(dense, KVSettings()) == Layout(20, 0, None, group_size_of(dense))
    assert Layout.of(dense, KVSettings(window=20)).sinks == 0
    assert Layout.of(dense, KVSettings(window=30)).window == 20
    assert Layout.of(dense, KVSettings(window=19)) == Layout(19, 4, None, group_size_of(dense))
    assert Layout.of(tiny_config(head_dim=128), KVSettings(8)).group_size == 64
    assert Layout.of(tiny_config(head_dim=96), KVSettings(8)).group_size == 32
    with pytest.raises(UsageError, match="heads of 16"):
        Layout.of(tiny_config(head_dim=16), KVSettings(8))


def group_size_of(config: ModelConfig) -> int:
    return 64 if config.head_dim % 64 == 0 else 32


@pytest.mark.parametrize("settings", [KVSettings(), KVSettings(8), KVSettings(4, 100),
                                      KVSettings(None, 300)], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_bytes_are_told_exactly(demo: LanguageModel, settings: KVSettings, dtype: mx.Dtype) -> None:
    config = demo.config
    layer = LayerKV(Layout.of(config, settings))
    new = mx.zeros((1, config.num_key_value_heads, 20, config.head_dim), dtype)
    for _ in range(60):
        layer.update_and_fetch(new, new)
        want = kv_bytes(config, layer.offset, settings, dtype)
        assert layer.nbytes * config.num_hidden_layers == want
    assert kv_bytes(config, 1, settings, dtype) == kv_bytes(config, 256, settings, dtype)


def test_the_published_model_takes_128_kib_a_token() -> None:
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = tiny_config(hidden_size=4096, head_dim=128, **shape)
    assert kv_bytes(config, 32768) == 32768 * 128 * 1024
    assert kv_bytes(config, 32768, KVSettings(8)) == 32768 * 68 * 1024
    assert kv_bytes(config, 32768, KVSettings(4)) == 32768 * 36 * 1024


# --- in the model


@pytest.fixture(scope="module", params=[{}, WINDOWED], ids=["full", "own window"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    folder = tmp_path_factory.mktemp("tiny")
    write_hf(folder, tiny_config(head_dim=32, **request.param))
    return load_model(folder, read_config(folder))


SETTINGS = [KVSettings(), KVSettings(8), KVSettings(4), KVSettings(None, 9), KVSettings(8, 13)]


def fed(model: Transformer, ids: mx.array, sizes: list[int], caches: list[Any]) -> mx.array:
    logits, at = [], 0
    while at < ids.shape[1]:
        n = sizes[len(logits) % len(sizes)]
        logits.append(model(ids[:, at : at + n], caches))
        at += n
    return mx.concatenate(logits, axis=1)


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("sizes", [[1], [7], [40], [33, 1, 1, 5]], ids=str)
def test_in_pieces_as_at_once(tiny: Transformer, settings: KVSettings, sizes: list[int]) -> None:
    ids = random_ids(tiny.config, length=90)
    whole = fed(tiny, ids, [90], make_caches(tiny.config, settings))
    got = fed(tiny, ids, sizes, make_caches(tiny.config, settings))
    np.testing.assert_allclose(got, whole, atol=2e-4)


@pytest.mark.parametrize("sizes", [[90], [40, 1], [1], [33, 5]], ids=str)
def test_unpacked_and_whole_it_gives_the_very_logits_of_mlx_lms_cache(
    tiny: Transformer, sizes: list[int]
) -> None:
    from mlx_lm.models.cache import KVCache

    ids = random_ids(tiny.config, length=90)
    layers = tiny.config.num_hidden_layers
    if tiny.config.sliding_window:  # ours leaves out what is hidden, so sums are ordered otherwise
        ids = ids[:, :20]
    want = fed(tiny, ids, sizes, [KVCache() for _ in range(layers)])
    assert mx.array_equal(fed(tiny, ids, sizes, make_caches(tiny.config)), want)


@pytest.mark.usefixtures("short_steps")
def test_a_window_gives_the_logits_of_mlx_lms_ring(tiny: Transformer) -> None:
    from mlx_lm.models.cache import RotatingKVCache

    ids = random_ids(tiny.config, length=90)
    layers, own = tiny.config.num_hidden_layers, tiny.config.sliding_window
    if own:
        for sizes in ([1], [8, 1], [33, 5]):
            want = fed(tiny, ids, sizes, [RotatingKVCache(own) for _ in range(layers)])
            got = fed(tiny, ids, sizes, make_caches(tiny.config))
            np.testing.assert_allclose(got, want, atol=1e-4)
    else:
        # With first tokens to keep it is right token by token only.
        want = fed(tiny, ids, [1], [RotatingKVCache(13, keep=4) for _ in range(layers)])
        got = fed(tiny, ids, [1], make_caches(tiny.config, KVSettings(window=9)))
        np.testing.assert_allclose(got, want, atol=1e-4)


# --- prefixes


def test_a_prefix_is_reused_as_far_as_the_window_allows(tiny: Transformer) -> None:
    cache = PromptCache(tiny.config, KVSettings(window=9))
    ids = [int(i) for i in random_ids(tiny.config, length=900)[0]]
    mx.eval(tiny(mx.array([ids]), cache.layers))
    cache.settle(ids)
    assert cache.tokens == ids
    earliest = cache.layers[0].earliest
    assert 300 < earliest <= len(ids) - kv.REWIND

    def parting_at(place: int) -> list[int]:
        return [*ids[:place], (ids[place] + 1) % 90, 0]

    for near in (len(ids) - 5, earliest):
        assert cache.reuse(parting_at(near)) == near
        assert cache.tokens == ids[:near]
        assert cache.layers[0].offset == near
    assert cache.reuse(parting_at(earliest - 1)) == 0
    assert (cache.tokens, cache.layers[0].offset, cache.nbytes) == ([], 0, 0)


def test_what_diverges_late_costs_little_even_when_quantized(demo: LanguageModel) -> None:
    cache = PromptCache(demo.config, KVSettings(8))
    ids = list(range(10, 310))
    mx.eval(demo.model(mx.array([ids]), cache.layers))
    cache.settle(ids)
    assert cache.reuse([*ids[:200], 5, 6]) == 200
    assert cache.reuse([7, *ids]) == 0


# --- generation


def decoded(
    lm: LanguageModel, ids: list[int], kv: KVSettings, settings: Sampling, count: int, guess: bool
) -> tuple[list[int], Speculator]:
    cache, speculator = PromptCache(lm.config, kv), Speculator(ids)
    steps = generate_tokens(
        lm.model,
        cache,
        ids,
        Sampler(settings, ids),
        count,
        speculator=speculator if guess else None,
    )
    return [step.token for step in steps], speculator


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("settings", [KVSettings(8), KVSettings(4), KVSettings(None, 60),
                                      KVSettings(8, 60)], ids=str)  # fmt: skip
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5, "seed": 3}], ids=str)
def test_speculation_changes_no_token(
    demo: LanguageModel, settings: KVSettings, sampling: dict[str, Any]
) -> None:
    text = "Repeat this: " + "The cat sat on the mat. " * 6
    ids = demo.template.encode([{"role": "user", "content": text}])
    args = demo, ids, settings, Sampling(**sampling, logit_bias={2: -100.0}), 80
    told, speculator = decoded(*args, guess=True)
    assert told == decoded(*args, guess=False)[0]
    assert speculator.accepted > 10


@pytest.mark.parametrize("settings", [{"kv_bits": 8}, {"kv_window": 30}, {}], ids=str)
def test_chunks_of_a_prompt_change_nothing(
    demo: LanguageModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = demo.template.encode([{"role": "user", "content": "Say it: " + "one two three " * 60}])
    whole = generate(demo, ids, max_tokens=20, **settings)
    for chunk in (1, 7, 64):
        monkeypatch.setattr(prefill, "prefill_chunk", lambda chunk=chunk: chunk)
        assert generate(demo, ids, max_tokens=20, **settings).tokens == whole.tokens


def test_a_long_text_in_a_window_stays_within_its_memory(tiny: Transformer) -> None:
    settings, ids = KVSettings(window=64), [1, 5, 6, 7]
    cache = PromptCache(tiny.config, settings)
    steps = generate_tokens(tiny, cache, ids, Sampler(Sampling(), ids), 1900)
    settled = 0
    for n, _ in enumerate(steps):
        if n == 900:
            mx.reset_peak_memory()
            settled = mx.get_active_memory()
    assert 0 < mx.get_peak_memory() < settled + 3 * cache.nbytes
    assert cache.nbytes == kv_bytes(tiny.config, 10**6, settings, mx.float32)
    assert len(cache.tokens) == 1903  # the last one was told, and not yet fed


# --- quality

QUESTIONS = ["Hello!", "My name is Anna.", "What is a violin?", "What is 3 + 4?", "Who are you?",
             "How do you say dog in French?", "Tell me a story.", "What is my name?"]  # fmt: skip


@pytest.fixture(scope="module")
def conversation(demo: LanguageModel) -> mx.array:
    chat = Chat(demo, temperature=0.7, seed=1)
    for text in QUESTIONS:
        chat.send(text)
    return mx.array([demo.template.encode(chat.messages[:-1])])


@pytest.mark.parametrize(("bits", "kl", "same"), [(8, 5e-5, 0.99), (4, 0.01, 0.96)])
def test_packed_keys_and_values_change_little(
    demo: LanguageModel, conversation: mx.array, bits: int, kl: float, same: float
) -> None:
    """Mean divergence (nats) from what unquantized ones say, and share of the same top token."""
    p, q = (
        np.array(fed(demo.model, conversation, [16], make_caches(demo.config, kv))[0], np.float64)
        for kv in (KVSettings(), KVSettings(bits))
    )
    divergence, top = divergences(p, q)
    print(f"{bits} bits, {len(p)} tokens: KL {divergence.mean():.2e}, same top {top.mean():.4f}")
    assert 0 < divergence.mean() < kl
    assert top.mean() > same


def divergences(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of logits [T, V]: KL(p || q) at each place, and whether the top token is the same: [2, T]."""
    p, q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - x.max(-1, keepdims=True) for x in (p, q))  # fmt: skip
    return np.stack([(np.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)])
