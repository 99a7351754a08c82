"""Several texts in one pass against each text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import quantization, random_weights, tiny_config, write_hf, write_mlx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_mixtral.config import read_config
from mlx_mixtral.generation import kv
from mlx_mixtral.generation.batch import Pass, Take, Text
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache, make_caches
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.loading import load_model
from mlx_mixtral.model.together import Part, together
from mlx_mixtral.model.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "mixture": {},
    "packed": {"quantization": quantization(4, 32)},
    "window": {"num_local_experts": 0, "sliding_window": 20},
    "tied": {"tie_word_embeddings": True, "num_experts_per_tok": 3},
}
KEPT = [None, KVSettings(bits=8), KVSettings(window=9), KVSettings(bits=4, window=30)]
PROMPTS = [[3, 1, 4], [1] * 40, [5], list(range(10, 70)), [9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]


@pytest.fixture(scope="module", params=KINDS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kept_packed: None
) -> Transformer:
    config = tiny_config(num_hidden_layers=3, head_dim=32, **KINDS[request.param])
    write = write_mlx if config.quantization else write_hf
    folder = write(tmp_path_factory.mktemp("model"), config, random_weights(config))
    return load_model(folder, read_config(folder))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    folder = write_hf(tmp_path_factory.mktemp("model"), tiny_config(head_dim=32))
    return load_model(folder, read_config(folder))


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that are full after a few tokens."""
    monkeypatch.setattr(kv, "STEP", 8)
    monkeypatch.setattr(kv, "REWIND", 18)


def alone(model: Transformer, tokens: Sequence[int], cuts: Sequence[int], kept: Any) -> mx.array:
    """Logits [n, V] at the end of each stretch of a text between cuts, the ordinary way."""
    caches = make_caches(model.config, kept)
    return mx.stack([model(mx.array([tokens[a:b]]), caches)[0, -1] for a, b in pairwise(cuts)])


# --- the arithmetic


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_each_text_is_as_alone(model: Transformer, kept: KVSettings | None) -> None:
    """Stretches of several texts, of other lengths each time, some texts absent at times."""
    rng = np.random.default_rng(0)
    texts = [[*prompt, *rng.integers(3, 96, 12).tolist()] for prompt in PROMPTS]
    cuts = [[0] for _ in texts]
    caches = [make_caches(model.config, kept) for _ in texts]
    found: list[list[mx.array]] = [[] for _ in texts]
    while left := [n for n, text in enumerate(texts) if cuts[n][-1] < len(text)]:
        here = [n for n in left if rng.random() < 0.7] or left
        ends = [min(cuts[n][-1] + int(rng.choice([1, 1, 5, 17])), len(texts[n])) for n in here]
        ids = [t for n, end in zip(here, ends, strict=True) for t in texts[n][cuts[n][-1] : end]]
        parts = [Part(end - cuts[n][-1], caches[n]) for n, end in zip(here, ends, strict=True)]
        logits = model.head(together(model, mx.array(ids), parts))
        for row, (n, end) in enumerate(zip(here, ends, strict=True)):
            found[n].append(logits[row])
            cuts[n].append(end)
    for text, cut, rows in zip(texts, cuts, found, strict=True):
        want = alone(model, text, cut, kept)
        # Where last bits differ, a packed key may be rounded to its neighbour.
        tolerance = {None: 1e-4, 8: 0.05, 4: 0.5}[kept.bits if kept else None]
        assert mx.abs(mx.stack(rows) - want).max().item() < tolerance


def test_one_text_alone_is_as_ever(model: Transformer) -> None:
    """With as many rows in every product the numbers are the same, but for the angles' rounding."""
    caches, plain = make_caches(model.config), make_caches(model.config)
    for ids in ([7, 8, 9], [4], [3, 3]):
        hidden = together(model, mx.array(ids), [Part(len(ids), caches)])
        want = model.hidden(mx.array([ids]), plain, last=1)[0]
        assert mx.allclose(hidden, want, atol=1e-6, rtol=0)


def test_as_many_hidden_states_as_asked_for(mixture: Transformer) -> None:
    first, second = PROMPTS[0], PROMPTS[4]
    caches = [make_caches(mixture.config) for _ in range(2)]
    hidden = together(
        mixture, mx.array(first + second), [Part(3, caches[0], 2), Part(10, caches[1], 10)]
    )
    want = mx.concatenate(
        [mixture.hidden(mx.array([first]))[0, 1:], mixture.hidden(mx.array([second]))[0]]
    )
    assert mx.allclose(hidden, want, atol=1e-5)


# --- passes


def texts_of(model: Transformer, settings: Sequence[Sampling], **more: Any) -> list[Text]:
    return [
        Text(PromptCache(model.config), prompt, Sampler(setting, prompt), **more)
        for prompt, setting in zip(PROMPTS, settings, strict=False)
    ]


def run(model: Transformer, texts: Sequence[Text], steps: int, chunk: int = 16) -> None:
    """Read and answer: overlapping passes wherever all texts are being answered."""
    lengths = [len(text.tokens) for text in texts]
    now: Pass | None = None
    while any(len(t.tokens) < n + steps for t, n in zip(texts, lengths, strict=True)):
        if now and len(now.texts) == len(texts):
            after = Pass(model, [Take(text, 1) for text in now.texts], now)
        else:
            after = None
        for text, told in now.told() if now else []:
            text.take([one.token for one in told])
        if after:
            after.choose_late()
        now = after or Pass(model, [Take(t, min(t.unread, chunk)) for t in texts if t.unread > 0])
        if not after:
            now.choose_late()


SETTINGS = [
    Sampling(),
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.7, top_p=0.9, top_k=20, min_p=0.01, seed=4),
    Sampling(repetition_penalty=1.3, logit_bias={5: 2.0}),
    Sampling(temperature=1.0, seed=5, frequency_penalty=1.5, presence_penalty=0.5),
]


@pytest.mark.parametrize("settings", [SETTINGS, [Sampling()] * 5], ids=["all kinds", "greedy"])
def test_the_same_tokens_alone_and_together(
    mixture: Transformer, settings: Sequence[Sampling]
) -> None:
    texts = texts_of(mixture, settings)
    run(mixture, texts, 20)
    for text, prompt, setting in zip(texts, PROMPTS, settings, strict=True):
        steps = generate_tokens(
            mixture, PromptCache(mixture.config), prompt, Sampler(setting, prompt), 20
        )
        assert text.tokens[len(prompt) :][:20] == [step.token for step in steps]


def test_what_is_told_beside_a_token(mixture: Transformer) -> None:
    texts = texts_of(mixture, SETTINGS[:3], top=4)
    texts[1].top = 0
    now = Pass(mixture, [Take(text, len(text.tokens)) for text in texts])
    for (text, [told]), prompt in zip(now.told(), PROMPTS, strict=False):
        logits = np.array(mixture(mx.array([prompt]))[0, -1])
        want = logits - np.logaddexp.reduce(logits)
        assert told.logprob == pytest.approx(want[told.token], abs=1e-4)
        assert [i for i, _ in told.top] == np.argsort(-want)[: text.top].tolist()
        likeliest = np.sort(want)[::-1][: text.top].tolist()
        assert [p for _, p in told.top] == pytest.approx(likeliest, abs=1e-4)
        assert told.experts is None


def test_the_experts_told_are_those_of_the_text(mixture: Transformer) -> None:
    """Which ones they are, the ordinary path tells: without them the logits would be others."""
    from mlx_mixtral.experts.recorded import recorded

    texts = texts_of(mixture, SETTINGS[:3])
    texts[0].routing = texts[1].routing = True
    unread = Text(PromptCache(mixture.config), list(range(3, 40)), Sampler(Sampling(), []))
    takes = [Take(unread, 20), *(Take(text, len(text.tokens)) for text in texts)]
    told = dict(Pass(mixture, takes).told())
    assert told[texts[2]][0].experts is None
    for text in texts[:2]:
        with recorded(mixture.model.layers) as records:
            mixture(mx.array([text.tokens]))
        want = tuple(tuple(r.indices[-1].tolist()) for r in records if r.indices is not None)
        assert told[text][0].experts == want


def test_a_model_without_experts_tells_of_none(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, tiny_config(num_local_experts=0))
    dense = load_model(folder, read_config(folder))
    texts = texts_of(dense, [Sampling()], routing=True)
    ((_, [told]),) = Pass(dense, [Take(texts[0], 3)]).told()
    assert told.experts is None


class Only:
    """Forces nothing."""

    def __init__(self, mask: Callable[[], np.ndarray]) -> None:
        self._mask = mask

    def forced(self) -> list[int]:
        return []

    def mask(self, after: Sequence[int]) -> np.ndarray:
        assert not after
        return self._mask()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 95), min_size=1, max_size=20))
def test_only_what_is_allowed_is_chosen(mixture: Transformer, allowed: list[int]) -> None:
    """Masks differ from token to token; one text has none."""
    rounds = iter([allowed[::-1], allowed[:1], allowed] * 5)
    known = []

    def mask() -> np.ndarray:
        known.append(len(texts[1].tokens))
        bits = np.zeros(96, np.uint8)
        bits[next(rounds)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    texts = texts_of(mixture, [Sampling()] * 3)
    texts[1].constraint = Only(mask)
    run(mixture, texts, 4)
    answer = texts[1].tokens[len(PROMPTS[1]) :][:4]
    assert set(answer) <= set(allowed)
    assert answer[1] == allowed[0]
    assert known == [*range(len(PROMPTS[1]), known[-1] + 1)]  # asked when all before it is told
    plain = texts_of(mixture, [Sampling()] * 3)
    run(mixture, plain, 4)
    assert [texts[n].tokens for n in (0, 2)] == [plain[n].tokens for n in (0, 2)]


def test_a_mask_shorter_than_the_vocabulary_allows_nothing_beyond(mixture: Transformer) -> None:
    (text,) = texts_of(mixture, [Sampling(temperature=100.0, seed=1)])
    text.constraint = Only(lambda: np.array([0xFFFFFFFF], np.uint32))
    run(mixture, [text], 30)
    assert max(text.tokens[3:]) < 32


def test_pooled_hidden_states(mixture: Transformer) -> None:
    """In chunks, beside others."""
    embedded = Text(PromptCache(mixture.config), PROMPTS[3], None)
    texts = [*texts_of(mixture, SETTINGS[:2]), embedded]
    while embedded.unread:
        takes = [Take(t, min(7, t.unread)) for t in texts if t.unread]
        for text, told in Pass(mixture, takes).told():
            text.take([one.token for one in told])
    want = mixture.hidden(mx.array([PROMPTS[3]]))[0].sum(axis=0)
    assert embedded.pooled is not None
    assert mx.allclose(embedded.pooled, want, atol=1e-3)


# --- what a fork shares


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_a_fork_and_its_origin_do_not_disturb_each_other(
    mixture: Transformer, kept: KVSettings | None
) -> None:
    cache = PromptCache(mixture.config, kept)
    cuts = [0, 40, 60, 61, 62, 63]
    text = PROMPTS[3]
    for begin, end in pairwise(cuts[:3]):
        mixture(mx.array([text[begin:end]]), cache.layers)
    cache.settle(text)
    shared = max(50, cache.layers[0].earliest)
    fork = cache.fork(shared)
    assert fork.tokens == text[:shared]
    # In turns, and each against a text of its own.
    copies = [(fork, shared, (80, 81, 82)), (cache, 60, (83, 84, 85)), (fork, shared + 3, (7, 8))]
    said: dict[int, list[int]] = {id(fork): text[:shared], id(cache): text}
    for one, length, more in copies:
        before = said[id(one)]
        assert one.layers[0].offset == length == len(before)
        rows = [mixture(mx.array([[token]]), one.layers)[0, -1] for token in more]
        said[id(one)] = [*before, *more]
        want = alone(mixture, said[id(one)], [0, 40, *range(length, length + len(more) + 1)], kept)
        assert mx.abs(mx.stack(rows) - want[2:]).max().item() < 1e-4
