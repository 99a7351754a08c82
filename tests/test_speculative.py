"""Speculation changes how fast an answer comes, and nothing else."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference
from checkpoints import random_weights, tiny_config, write_hf
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral import Chat, generate, stream
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation import speculative
from mlx_mixtral.generation.lookup import GRAM, LOOK_BACK, Lookup
from mlx_mixtral.generation.loop import Step, generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import EAGER, LONGEST_DRAFT, Speculator
from mlx_mixtral.generation.text import answer
from mlx_mixtral.loading import LanguageModel, load_model
from mlx_mixtral.model.transformer import Transformer

STORY = (
    "Lily was a girl who lived near the school. She had a dog called Dot and a green lamp. One "
    "day, Lily and Dot went to the school to play with the lamp. Then the lamp was lost."
)
QUESTIONS = [
    f"Repeat this: {STORY}",
    f"Replace dog by cat in: {STORY}",
    "Tell me a story about a dragon.",
    "Count from 5 to 12.",
]


def question(lm: LanguageModel, text: str) -> list[int]:
    return lm.template.encode([{"role": "user", "content": text}])


# --- the index


def searched(tokens: list[int]) -> tuple[int | None, int]:
    """``at`` and ``run`` of a Lookup, by searching the whole text anew after every token."""
    at, run = None, 0
    for end in range(1, len(tokens) + 1):
        text = tokens[:end]
        if at is not None and text[at] == text[-1]:
            at, run = at + 1, run + 1
            continue
        at = next((p for p in range(end - 1, GRAM - 1, -1) if text[p - GRAM : p] == text[-GRAM:]), None)  # fmt: skip  # noqa: E501
        run = 0
        while at is not None and run < min(at, LOOK_BACK) and text[at - 1 - run] == text[-1 - run]:
            run += 1
    return at, run


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 60))
def test_the_lookup_finds_what_a_search_finds(tokens: list[int], cut: int):
    lookup = Lookup()
    lookup.extend(tokens[:cut])
    lookup.extend(tokens[cut:])
    assert lookup.tokens == tokens
    assert (lookup.at, lookup.run) == searched(tokens)


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 2), st.integers(0, 20))
def test_a_continuation_is_what_repeating_token_by_token_gives(
    tokens: list[int], skip: int, count: int
):
    lookup = Lookup()
    lookup.extend(tokens)
    text = list(tokens)
    for _ in range(skip + count if lookup.at is not None else 0):
        text.append(text[lookup.at + len(text) - len(tokens)])  # type: ignore[operator]
    assert lookup.continuation(skip, count) == text[len(tokens) + skip :]


def test_a_place_is_followed_although_a_later_one_would_fit():
    lookup = Lookup()
    lookup.extend([*b"The old cat sat. The old dog sat. The old cat sat"])
    assert (lookup.at, lookup.run) == (15, 15)
    lookup.extend([*b". The old"])
    assert bytes(lookup.continuation(0, 4)) == b" dog"


# --- how much is drafted


def followed(speculator: Speculator, text: Iterator[int], passes: int) -> list[int]:
    """The lengths of the drafts, when the model says ``text``."""
    lengths = []
    for _ in range(passes):
        draft = speculator.looked_up(0, 1000)
        said = [next(text)]
        while len(said) <= len(draft) and draft[len(said) - 1] == said[-1]:
            said.append(next(text))
        lengths.append(len(draft))
        if draft:
            speculator.judge(len(draft), len(said) - 1, 0.1)
        speculator.extend(said)
    return lengths


def test_nothing_is_drafted_where_nothing_repeats():
    assert followed(Speculator(range(1000)), iter(range(1000, 3000)), 500) == [0] * 500


def test_drafts_grow_while_they_come_true():
    lengths = followed(Speculator([*range(400)]), iter(range(20, 400)), 9)
    assert lengths == [0] * GRAM + [1, 3, 7, 15, 31, 31]
    assert lengths[-1] == LONGEST_DRAFT


def test_what_is_quoted_ends_where_the_prompt_ends():
    prompt = [*range(100)]
    speculator = Speculator(prompt)
    speculator.extend(range(60, 90))
    assert speculator.looked_up(0, 1000) == [*range(90, 100)]
    assert speculator.looked_up(1, 1000) == [*range(91, 100)]
    # But what the answer said before is quoted on, and a circle has no end.
    speculator.extend([*range(90, 100), 7, 8, 9, *range(200, 260), *range(200, 230)])
    assert speculator.looked_up(0, 5) == [*range(230, 235)]
    assert Speculator([]).looked_up(0, 5) == []


def test_drafts_cease_when_they_prove_wrong_and_return_when_the_text_repeats_long_enough():
    # Three tokens that were said before, and then always another.
    trap = [t for n in range(200) for t in (1, 2, 3, 100 + n)]
    speculator = Speculator(trap)
    later = iter([t for n in range(200) for t in (1, 2, 3, 400 + n)])
    lengths = followed(speculator, later, 300)
    assert sum(lengths[:30]) > 0
    assert sum(lengths[60:]) == 0
    novel = [*range(1000, 3000)]
    speculator.extend(novel)
    back = followed(speculator, iter(novel), 60)
    assert LONGEST_DRAFT in back
    assert speculator._needed == EAGER


def test_a_draft_is_never_longer_than_there_is_room():
    speculator = Speculator([7] * 50)
    speculator.extend([7])
    assert [len(speculator.looked_up(1, most)) for most in (-3, 0, 1, 4)] == [0, 0, 1, 4]


# --- the answers of the demo model


SETTINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.2},
    {"repetition_penalty": 1.1, "repetition_window": 5},
    {"logit_bias": {500: 2.0, 2: -1.0}},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 2, "top_p": 0.9, "repetition_penalty": 1.05},
    {"temperature": 1.2, "seed": 3, "min_p": 0.02, "top_k": 50, "logit_bias": {500: 2.0}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_answers_are_the_same_token_by_token(demo: LanguageModel, settings: dict[str, Any]):
    accepted = 0
    for text in QUESTIONS:
        ids = question(demo, text)
        fast = list(stream(demo, ids, max_tokens=40, **settings))
        slow = list(stream(demo, ids, max_tokens=40, speculate=False, **settings))
        assert [p.token for p in fast] == [p.token for p in slow]
        assert [p.text for p in fast] == [p.text for p in slow]
        assert fast[-1].finish_reason == slow[-1].finish_reason
        logprobs = [[p.logprob for p in pieces] for pieces in (fast, slow)]
        np.testing.assert_allclose(*logprobs, atol=1e-3)
        stats = fast[-1].stats
        assert stats is not None
        assert 0 <= stats.accepted_tokens <= stats.drafted_tokens
        accepted += stats.accepted_tokens
        assert slow[-1].stats is not None
        assert slow[-1].stats.drafted_tokens == 0
    assert accepted > 30 or "repetition_penalty" in settings


def test_stop_strings_and_limits_cut_a_verified_run(demo: LanguageModel):
    ids = question(demo, QUESTIONS[0])
    whole = generate(demo, ids, speculate=False)
    for most in (1, 2, 6, 7, 8, 9, 13, 20):
        done = generate(demo, ids, max_tokens=most)
        assert done.tokens == whole.tokens[:most]
        assert done.finish_reason == "length"
    for stop in (whole.text[60:64], whole.text[90:99]):
        assert generate(demo, ids, stop=[stop]).text == whole.text[: whole.text.find(stop)]


def test_the_context_is_filled_and_never_exceeded(small: LanguageModel):
    filler = small.tokenizer.encode("one two three four five " * 60)
    limit = small.config.max_position_embeddings
    for spare in (1, 2, 9, 40):
        prompt = [1, *filler][: limit - spare]
        settings = {"logit_bias": {2: -100.0}}
        fast = generate(small, prompt, **settings)
        assert len(fast.tokens) == spare
        assert fast.tokens == generate(small, prompt, speculate=False, **settings).tokens
    assert fast.stats.accepted_tokens > 0


def test_wherever_a_stream_is_cut_the_cache_knows_its_tokens(demo: LanguageModel):
    ids = question(demo, QUESTIONS[0])
    tokens = generate(demo, ids, speculate=False).tokens
    for cut in (1, 6, 7, 8, 15, 20, len(tokens)):
        cache = PromptCache(demo.config)
        pieces = answer(demo, ids, Sampling(), cache)
        for _ in range(cut):
            next(pieces)
        pieces.close()
        assert cache.tokens == (ids + tokens)[: len(ids) + cut]
        assert {layer.offset for layer in cache.layers} == {len(cache.tokens)}
        rest = list(answer(demo, ids + tokens[:cut], Sampling(max_tokens=4), cache))
        fresh = generate(demo, ids + tokens[:cut], max_tokens=4, speculate=False)
        assert [p.token for p in rest][: len(fresh.tokens)] == fresh.tokens


def test_an_interrupt_ends_within_a_verified_run(demo: LanguageModel):
    ids, cache = question(demo, QUESTIONS[0]), PromptCache(demo.config)
    for at in (7, 11, 18):
        seen: list[Any] = []
        for piece in answer(demo, ids, Sampling(), cache, lambda seen=seen, at=at: len(seen) >= at):
            seen.append(piece)
        assert len(seen) == at + 1
        assert seen[-1].finish_reason == "interrupted"
        assert len(cache.tokens) == cache.layers[0].offset == len(ids) + at + 1


def test_a_chat_goes_on_as_after_a_fresh_prefill(demo: LanguageModel):
    chat = Chat(demo, temperature=0)
    accepted = 0
    for text in (QUESTIONS[0], "Repeat your last answer.", QUESTIONS[1], "What is 3 + 4?"):
        said = chat.send(text)
        accepted += said.stats.accepted_tokens
        prompt = demo.template.encode(chat.messages[:-1])
        assert said.tokens == generate(demo, prompt, speculate=False).tokens
    assert accepted > 50


def test_a_setting_that_is_no_switch_is_refused():
    with pytest.raises(UsageError, match="speculate"):
        Sampling.of(speculate="yes")


# --- any draft at all, on tiny random models


class Guess(Speculator):
    """Drafts the true answer with some tokens spoilt: every kind of partial success."""

    def __init__(self, truth: list[int], seed: int, right: float) -> None:
        super().__init__([])
        self.truth, self.known, self.right = truth, 0, right
        self.random = random.Random(seed)

    def extend(self, tokens: Any) -> None:
        self.known += len(tokens)

    def looked_up(self, skip: int, most: int) -> list[int]:
        length = max(0, min(self.random.randrange(8), most))
        start = self.known + skip
        draft = (self.truth[start:] + [0] * length)[:length]
        return [t if self.random.random() < self.right else (t + 1) % 90 for t in draft]


KINDS: dict[str, dict[str, Any]] = {
    "moe": {},
    "moe 8": {"num_local_experts": 8},
    "dense": {"num_local_experts": 0},
    "window": {"num_local_experts": 0, "sliding_window": 40},
}


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    folder = write_hf(tmp_path_factory.mktemp("tiny"), tiny_config(**KINDS[request.param]))
    return load_model(folder, read_config(folder))


def decoded(
    model: Transformer,
    prompt: list[int],
    settings: Sampling,
    count: int,
    speculator: Speculator | None,
    cache: PromptCache | None = None,
) -> Iterator[Step]:
    cache = cache or PromptCache(model.config)
    cache.reuse(prompt)
    sampler = Sampler(settings, prompt)
    return generate_tokens(model, cache, prompt, sampler, count, speculator=speculator)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_whatever_is_drafted_the_tokens_are_the_same(tiny: Transformer, settings: dict[str, Any]):
    settings = {k: v for k, v in settings.items() if k != "logit_bias"} | {"logit_bias": {5: 2.0}}
    for seed, right in enumerate((0.0, 0.5, 0.8, 0.95, 1.0)):
        prompt = random.Random(seed).choices(range(90), k=9)
        args = tiny, prompt, Sampling(**settings), 50
        truth = list(decoded(*args, None))
        guess = Guess([s.token for s in truth], seed, right)
        told = list(decoded(*args, guess))
        assert [s.token for s in told] == [s.token for s in truth]
        np.testing.assert_allclose([s.logprob for s in told], [s.logprob for s in truth], atol=1e-3)
        assert guess.proposed > 0
        assert (guess.accepted == guess.proposed) == (right == 1.0)


def test_wherever_it_is_cut_the_caches_hold_what_was_told(tiny: Transformer):
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    settings = Sampling()
    truth = [s.token for s in decoded(tiny, prompt, settings, 60, None)]
    for cut in range(1, 50, 3):
        cache = PromptCache(tiny.config)
        steps = decoded(tiny, prompt, settings, 60, Guess(truth, cut, 0.9), cache)
        told = [next(steps).token for _ in range(cut)]
        steps.close()  # type: ignore[attr-defined]
        assert told == truth[:cut]
        assert cache.tokens == prompt + told
        assert {layer.offset for layer in cache.layers} == {len(cache.tokens)}
        more = [s.token for s in decoded(tiny, prompt + told, settings, 5, None, cache)]
        assert more == truth[cut : cut + 5]


def test_a_full_window_does_not_end_speculation(tmp_path: Path):
    folder = write_hf(tmp_path, tiny_config(num_local_experts=0, sliding_window=20))
    model, prompt = load_model(folder, read_config(folder)), [3, 1, 4, 1, 5]
    truth = [s.token for s in decoded(model, prompt, Sampling(), 90, None)]
    guess = Guess(truth, 0, 0.9)
    assert [s.token for s in decoded(model, prompt, Sampling(), 90, guess)] == truth
    assert guess.accepted > 30


def test_an_exception_while_verifying_leaves_an_empty_cache(
    demo: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    cache = PromptCache(demo.config)

    def broken(self: Sampler, logits: mx.array) -> tuple[mx.array, mx.array]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "successive", broken)
    with pytest.raises(KeyboardInterrupt):
        list(answer(demo, question(demo, QUESTIONS[0]), Sampling(), cache))
    assert cache.tokens == []
    assert {layer.offset for layer in cache.layers} == {0}


# --- the distribution


class Stubborn(Speculator):
    """Drafts the same tokens always."""

    def looked_up(self, skip: int, most: int) -> list[int]:
        return [2, 4, 1][: max(0, most)]


def exact(folder: Path, prompt: list[int], count: int, temperature: float) -> dict[Any, float]:
    """The probability of each continuation of ``count`` tokens, from the naive network."""
    config, weights = reference.read(folder)
    probabilities: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        longer = {}
        for said, p in probabilities.items():
            logits = reference.logits(config, weights, np.array([*prompt, *said]))[-1]
            for token, share in enumerate(reference.softmax(logits / temperature)):
                longer[(*said, token)] = p * share
        probabilities = longer
    return probabilities


def excess(counts: Counter[Any], probabilities: dict[Any, float]) -> float:
    """By how many of its standard deviations Pearson's chi-square exceeds its mean."""
    draws = counts.total()
    rare = [c for c, p in probabilities.items() if p * draws < 5]
    cells = [(counts[c], p * draws) for c, p in probabilities.items() if p * draws >= 5]
    cells.append((sum(counts[c] for c in rare), sum(probabilities[c] for c in rare) * draws))
    chi_square = sum((seen - due) ** 2 / due for seen, due in cells)
    freedom = len(cells) - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def test_sampled_answers_have_the_exact_distribution(tmp_path: Path):
    small = {"vocab_size": 5, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    config = tiny_config(**small)
    folder = write_hf(tmp_path, config, random_weights(config, seed=3))
    model, prompt, counts = load_model(folder, read_config(folder)), [1, 3, 0], Counter[Any]()
    accepted = proposed = 0
    for seed in range(2500):
        speculator = Stubborn([])
        settings = Sampling(temperature=1.3, seed=seed)
        steps = decoded(model, prompt, settings, 3, speculator)
        counts[tuple(step.token for step in steps)] += 1
        accepted += speculator.accepted
        proposed += speculator.proposed
    assert 0 < accepted < proposed
    assert excess(counts, exact(folder, prompt, 3, 1.3)) < 3
    # The test would see it if drafts were accepted a little too often, or temperature forgotten.
    assert excess(counts, exact(folder, prompt, 3, 1.0)) > 10


def test_the_prompt_is_looked_through_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr(speculative.Lookup, "extend", lambda self, tokens: seen.extend(tokens))
    speculator = Speculator([1, 2, 3])
    assert seen == []
    speculator.extend([4])
    speculator.extend([5])
    assert seen == [1, 2, 3, 4, 5]
