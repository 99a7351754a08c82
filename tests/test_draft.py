"""A draft model changes how fast an answer comes, and nothing else."""

from __future__ import annotations

import io
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_weights, tiny_config, write_hf
from drafts import write_coarser, write_deeper
from test_speculative import SETTINGS, exact, excess, question

from mlx_mixtral import Chat, generate
from mlx_mixtral.cli import main
from mlx_mixtral.config import ModelConfig, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.draft import DraftModel
from mlx_mixtral.generation.loop import Step, generate_tokens
from mlx_mixtral.generation.pace import Pace
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.loading import LanguageModel, load, load_model
from mlx_mixtral.model.transformer import Transformer

KINDS: dict[str, dict[str, Any]] = {
    "moe": {},
    "dense": {"num_local_experts": 0},
    "window": {"num_local_experts": 0, "sliding_window": 40},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class AnyLength(Pace):
    """Lengths by chance, to see that they do not matter."""

    def __init__(self, seed: int = 0, most: int = 6) -> None:
        super().__init__()
        self.random, self.most = random.Random(seed), most
        self.noted: list[tuple[int, int, int]] = []

    def length(self, most: int, behind: int = 0) -> int:
        return max(0, min(self.random.randrange(self.most + 1), most))

    def note(self, length: int, right: int, seconds: float, behind: int = 0) -> None:
        assert seconds > 0
        self.noted.append((length, right, behind))


class ModelAlone(Speculator):
    """Looks nothing up."""

    def looked_up(self, skip: int, most: int) -> list[int]:
        return []


def tiny(
    demo: LanguageModel, folder: Path, config: ModelConfig, spoilt: float = 0
) -> LanguageModel:
    """A tiny random model, the same each time but for ``spoilt`` times as much of noise."""
    weights, noise = random_weights(config), random_weights(config, seed=1)
    mixed = {n: w if "norm" in n else w + spoilt * noise[n] for n, w in weights.items()}
    model = load_model(write_hf(folder, config, mixed), config)
    return replace(demo, config=config, model=model)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, demo: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageModel, dict[str, LanguageModel]]:
    """A model, and drafts that are the same, alike and quite another."""
    folder, config = tmp_path_factory.mktemp("tiny"), tiny_config(**KINDS[request.param])
    spoilt = {"same": 0.0, "alike": 0.1, "other": 9.0}
    drafts = {name: tiny(demo, folder / name, config, s) for name, s in spoilt.items()}
    return tiny(demo, folder / "model", config), drafts


def drafting(lm: LanguageModel, draft: LanguageModel, seed: int = 0, most: int = 6) -> DraftModel:
    drafter = DraftModel(lm, draft)
    drafter.pace = AnyLength(seed, most)
    return drafter


def decoded(
    lm: LanguageModel,
    prompt: list[int],
    settings: Sampling,
    count: int,
    drafter: DraftModel | None = None,
    cache: PromptCache | None = None,
    kind: type[Speculator] = ModelAlone,
) -> tuple[Iterator[Step], Speculator | None]:
    cache = cache or PromptCache(lm.config)
    cache.reuse(prompt)
    speculator = kind(prompt, drafter) if drafter else None
    sampler = Sampler(settings, prompt)
    return generate_tokens(
        lm.model, cache, prompt, sampler, count, speculator=speculator
    ), speculator


# --- the same tokens


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_whoever_drafts_the_tokens_are_the_same(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], settings: dict[str, Any]
):
    lm, drafts = pair
    settings = settings | ({"logit_bias": {5: 2.0}} if "logit_bias" in settings else {})
    for seed, (name, draft) in enumerate(drafts.items()):
        prompt = random.Random(seed).choices(range(90), k=9)
        truth = list(decoded(lm, prompt, Sampling(**settings), 50)[0])
        steps, speculator = decoded(lm, prompt, Sampling(**settings), 50, drafting(lm, draft))
        told = list(steps)
        assert [s.token for s in told] == [s.token for s in truth]
        np.testing.assert_allclose([s.logprob for s in told], [s.logprob for s in truth], atol=1e-3)
        assert speculator is not None
        assert speculator.proposed > 10
        share = speculator.accepted / speculator.proposed
        assert share == 1 if name == "same" else share < 1 if name == "alike" else share < 0.3


def test_many_seeds_on_the_demo(demo: LanguageModel, tmp_path: Path):
    coarse = load(write_coarser(tmp_path, 3))
    accepted = proposed = 0
    for seed in range(12):
        settings = SETTINGS[seed % len(SETTINGS)] | {"seed": seed, "max_tokens": 24}
        ids = question(demo, ["Tell me a story about a dragon.", "What is a violin?"][seed % 2])
        truth = [s.token for s in decoded(demo, ids, Sampling(**settings), 24)[0]]
        steps, speculator = decoded(demo, ids, Sampling(**settings), 24, drafting(demo, coarse))
        assert [s.token for s in steps] == truth
        assert speculator is not None
        accepted, proposed = accepted + speculator.accepted, proposed + speculator.proposed
    assert 0.5 < accepted / proposed < 0.95


def test_a_deeper_demo_says_what_the_demo_says(demo: LanguageModel, tmp_path: Path):
    deep = load(write_deeper(tmp_path, 4))
    for settings in ({}, {"temperature": 0.9, "seed": 4}):
        ids = question(demo, "What is a violin?")
        truth = generate(demo, ids, max_tokens=30, **settings)
        said = generate(deep, ids, max_tokens=30, draft=demo, **settings)
        assert (said.text, said.tokens) == (truth.text, truth.tokens)


def test_drawing_the_same_numbers_makes_two_models_agree(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    settings = Sampling(temperature=1.0, seed=3)

    def share() -> float:
        steps, speculator = decoded(lm, PROMPT, settings, 150, drafting(lm, drafts["alike"]))
        assert speculator is not None
        list(steps)
        return speculator.accepted / speculator.proposed

    coupled = share()
    other = Sampler(replace(settings, seed=99), PROMPT)
    monkeypatch.setattr(Sampler, "fork", lambda self: other)
    assert share() < 0.5 * coupled


# --- the distribution


def draws(lm: LanguageModel, draft: LanguageModel, count: int) -> Counter[Any]:
    counts, accepted, proposed = Counter[Any](), 0, 0
    drafter = drafting(lm, draft, most=2)
    for seed in range(count):
        settings = Sampling(temperature=1.3, seed=seed)
        drafter.reset()
        steps, speculator = decoded(lm, [1, 3, 0], settings, 4, drafter)
        counts[tuple(step.token for step in steps)[:3]] += 1
        assert speculator is not None
        accepted, proposed = accepted + speculator.accepted, proposed + speculator.proposed
    assert 0 < accepted < proposed
    return counts


def test_sampled_answers_have_the_exact_distribution(
    demo: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small = {"vocab_size": 5, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    config = tiny_config(**small)
    lm, bad = tiny(demo, tmp_path / "lm", config), tiny(demo, tmp_path / "bad", config, 9.0)
    probabilities = exact(tmp_path / "lm", [1, 3, 0], 3, 1.3)
    assert excess(draws(lm, bad, 800), probabilities) < 3

    def greedy(self: Sampler, logits: mx.array) -> tuple[mx.array, mx.array]:
        """What is wrong: a drafted token counts if it is the likeliest."""
        tokens, logprobs = successive(self, logits)
        return mx.concatenate([mx.argmax(logits[:-1], axis=-1), tokens[-1:]]), logprobs

    successive = Sampler.successive
    monkeypatch.setattr(Sampler, "successive", greedy)
    assert excess(draws(lm, bad, 800), probabilities) > 10


# --- what the draft model has read


def test_wherever_it_is_cut_the_draft_knows_what_was_told(
    pair: tuple[LanguageModel, dict[str, LanguageModel]],
):
    lm, drafts = pair
    truth = [s.token for s in decoded(lm, PROMPT, Sampling(), 60)[0]]
    for cut in range(1, 50, 4):
        drafter, cache = drafting(lm, drafts["alike"], cut), PromptCache(lm.config)
        steps, _ = decoded(lm, PROMPT, Sampling(), 60, drafter, cache)
        told = [next(steps).token for _ in range(cut)]
        steps.close()  # type: ignore[attr-defined]
        assert told == truth[:cut]
        read = drafter._cache
        assert read.tokens == (PROMPT + told)[: len(read.tokens)]
        assert {layer.offset for layer in read.layers} == {len(read.tokens)}
        # And it goes on from there as one that has read everything anew.
        on = PROMPT + told
        for again in (drafter, drafting(lm, drafts["alike"])):
            again.pace = AnyLength(cut)
            steps, speculator = decoded(lm, on, Sampling(), 9, again)
            assert [s.token for s in steps] == truth[cut : cut + 9]
            assert speculator is not None
            counts = speculator.proposed, speculator.accepted
        assert counts == (speculator.proposed, speculator.accepted)


def test_what_it_proposes_is_what_it_would_say_itself(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    """After any history of right and wrong drafts: nothing wrong is left in its cache."""
    lm, drafts = pair
    drafter, propose, seen = drafting(lm, drafts["alike"], 5), DraftModel.propose, 0

    def compared(
        self: DraftModel, text: list[int], length: int, last: mx.array, *rest: Any
    ) -> mx.array:
        nonlocal seen
        found = propose(self, text, length, last, *rest)
        sequence = [*text[:length], int(last.item())]
        own = drafts["alike"].model
        for token in found.tolist():  # type: ignore[union-attr]
            assert int(mx.argmax(own(mx.array([sequence]))[0, -1]).item()) == token
            sequence.append(token)
            seen += 1
        return found

    monkeypatch.setattr(DraftModel, "propose", compared)
    list(decoded(lm, PROMPT, Sampling(), 60, drafter)[0])
    assert seen > 40


def fed(monkeypatch: pytest.MonkeyPatch, model: Transformer) -> list[int]:
    """How many tokens each pass of a model takes in, from now on."""
    lengths: list[int] = []
    hidden = Transformer.hidden

    def counted(self: Transformer, ids: mx.array, *rest: Any, **more: Any) -> mx.array:
        if self is model:
            lengths.append(ids.shape[1])
        return hidden(self, ids, *rest, **more)

    monkeypatch.setattr(Transformer, "hidden", counted)
    return lengths


def test_in_a_chat_it_reads_only_what_is_new(
    demo: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    coarse = load(write_coarser(tmp_path, 3))
    chat, plain = (Chat(demo, temperature=0, draft=d, max_tokens=30) for d in (coarse, None))
    plain.sampling = replace(plain.sampling, speculate=False)
    assert chat._draft is not None
    chat._draft.pace = AnyLength(2)
    lengths = fed(monkeypatch, coarse.model)
    for text in ("My name is Anna and I have a dog.", "What is my name?", "What is a violin?"):
        before = len(chat._draft._cache.tokens)
        said = chat.send(text)
        assert said.tokens == plain.send(text).tokens
        assert said.stats.accepted_tokens > 0
        new = said.stats.prompt_tokens + said.stats.completion_tokens - before
        assert sum(lengths) <= new + said.stats.drafted_tokens
        lengths.clear()
    chat.reset()
    assert chat._draft._cache.tokens == []


def test_the_first_token_does_not_wait_for_the_draft_to_read(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    lengths = fed(monkeypatch, drafts["alike"].model)
    steps, _ = decoded(lm, PROMPT, Sampling(), 30, drafting(lm, drafts["alike"]))
    next(steps)
    assert lengths == []
    list(steps)
    assert lengths[0] >= len(PROMPT)


def test_a_long_text_is_read_in_chunks(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    monkeypatch.setattr("mlx_mixtral.generation.draft.chunk_after", lambda config, at: 16)
    prompt = random.Random(0).choices(range(90), k=50)
    truth = [s.token for s in decoded(lm, prompt, Sampling(), 20)[0]]
    lengths = fed(monkeypatch, drafts["same"].model)
    steps, speculator = decoded(lm, prompt, Sampling(), 20, drafting(lm, drafts["same"]))
    assert [s.token for s in steps] == truth
    assert lengths[:3] == [16, 16, 16]
    assert max(lengths) <= 17
    assert speculator is not None
    assert speculator.accepted == speculator.proposed > 0


def test_no_step_of_a_draft_waits_for_another(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    drafter = drafting(lm, drafts["alike"])
    drafter.begin(PROMPT)
    last = mx.array([4], mx.uint32)
    monkeypatch.setattr(mx, "eval", None)
    monkeypatch.setattr(mx, "async_eval", lambda *_: None)
    found = drafter.propose(PROMPT, len(PROMPT), last, 5, Sampler(Sampling(), PROMPT))
    assert found.shape == (5,)


def test_it_stops_drafting_where_its_own_context_ends(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    short = replace(drafts["same"], config=replace(lm.config, max_position_embeddings=30))
    truth = [s.token for s in decoded(lm, PROMPT, Sampling(), 60)[0]]
    drafter, cache_of = drafting(lm, short), []
    steps, speculator = decoded(lm, PROMPT, Sampling(), 60, drafter)
    for _ in truth:
        next(steps)
        cache_of.append(drafter._cache.layers[0].offset)
    assert speculator is not None
    assert 5 < speculator.accepted == speculator.proposed
    assert 25 <= max(cache_of) <= 30
    steps, speculator = decoded(lm, truth, Sampling(), 5, drafter)
    assert len(list(steps)) == 5
    assert speculator is not None
    assert speculator.proposed == 0


def test_what_repeats_is_looked_up_and_the_draft_reads_it_later(
    demo: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    story = "Lily had a dog called Dot and a green lamp. One day the lamp was lost in the school."
    ids = question(demo, f"Repeat this: {story}")
    drafter = drafting(demo, demo, most=2)
    lengths = fed(monkeypatch, demo.model)
    steps, speculator = decoded(demo, ids, Sampling(), 25, drafter, kind=Speculator)
    told = [s.token for s in steps]
    assert told == [s.token for s in decoded(demo, ids, Sampling(), 25)[0]]
    assert speculator is not None
    assert isinstance(drafter.pace, AnyLength)
    own = sum(length for length, _, _ in drafter.pace.noted)
    assert 0 < own < speculator.proposed
    assert lengths


def test_an_error_leaves_both_caches_empty(
    pair: tuple[LanguageModel, dict[str, LanguageModel]], monkeypatch: pytest.MonkeyPatch
):
    lm, drafts = pair
    drafter, cache = drafting(lm, drafts["alike"]), PromptCache(lm.config)
    steps, _ = decoded(lm, PROMPT, Sampling(), 60, drafter, cache)
    for _ in range(9):
        next(steps)

    def broken(self: Sampler, logits: mx.array) -> tuple[mx.array, mx.array]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "successive", broken)
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    for held in (cache, drafter._cache):
        assert held.tokens == []
        assert {layer.offset for layer in held.layers} == {0}


# --- who may draft for whom


def test_a_draft_with_another_vocabulary_is_refused_in_one_line(
    demo: LanguageModel, tmp_path: Path
):
    fewer = replace(demo, config=replace(demo.config, vocab_size=4090))
    folder = write_coarser(tmp_path / "other", 4)
    extra = {"4095": {"content": "<|im_end|>", "special": True}}
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"added_tokens_decoder": extra})
    )
    swapped = copy(demo.tokenizer)
    a, b, *rest = reversed(swapped._surfaces)
    swapped._surfaces = [*reversed(rest), a, b]
    for draft in (fewer, load(folder), replace(demo, tokenizer=swapped)):
        for use in (Chat, lambda lm, draft: generate(lm, "Hello", draft=draft)):
            with pytest.raises(UsageError, match="vocabular") as caught:
                use(demo, draft=draft)  # type: ignore[operator]
            assert "\n" not in str(caught.value)


def test_without_speculation_nobody_drafts(demo: LanguageModel):
    said = generate(demo, "Hello", draft=demo, speculate=False, max_tokens=10)
    assert said.stats.drafted_tokens == 0


def test_its_config_is_read_like_any_other(tmp_path: Path):
    assert read_config(write_coarser(tmp_path, 3)).quantization is not None


def test_a_saved_conversation_goes_on_with_the_draft(demo: LanguageModel, tmp_path: Path):
    Chat(demo, draft=demo).save(tmp_path / "talk.json")
    chat = Chat.load(demo, tmp_path / "talk.json", draft=demo)
    assert chat.draft is demo
    assert chat._draft is not None


def test_the_commands_take_a_draft(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path):
    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    story = "Tell me a story about a dragon."
    short = ["--max-tokens", "40", "--temperature", "0.7", "--seed", "2"]
    generated = ["generate", "demo", "-p", story, "--json", *short]
    alone, drafted = (json.loads(run(*generated, *d)[1]) for d in ([], ["--draft", "demo"]))
    assert alone["text"] == drafted["text"]
    assert alone["drafted_tokens"] == 0 < drafted["accepted_tokens"]
    lines = f"{story}\nWhat is a violin?\n"
    chats = [run("chat", "demo", *short, *d, stdin=lines) for d in ([], ["--draft", "demo"])]
    assert chats[0] == chats[1]
    code, out, err = run(*generated, "--draft", "no-such-model")
    assert (code, out, err.count("\n")) == (1, "", 1)
    other = write_coarser(tmp_path, 4)
    (other / "added_tokens.json").write_text('{"<|im_end|>": 4096}')
    code, out, err = run(*generated, "--draft", str(other))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "vocabularies differ" in err
