"""Many jobs at once against each one alone; and that whatever happens, each one ends once."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from checkpoints import tiny_config, write_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_mixtral import generate
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import ContextError, MixtralError, UsageError
from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.generation.text import Completion
from mlx_mixtral.loading import LanguageModel, load_model
from mlx_mixtral.server import engine as engine_module
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.grammar import Grammars, json_grammar, keeper
from mlx_mixtral.server.jobs import Busy, Done, Event, Job, Piece, TokenInfo
from mlx_mixtral.server.prefixes import Prefixes
from mlx_mixtral.server.requests import Request
from mlx_mixtral.server.schedule import Schedule, Stride
from mlx_mixtral.server.tickets import Ticket
from mlx_mixtral.server.worker import Worker

STEP = kv_bytes(tiny_config(vocab_size=4096), 256, dtype=mx.float32)
"""Bytes of keys and values of a text of up to 256 tokens."""


@pytest.fixture(scope="module")
def lm(demo: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Says random things without an end, quickly."""
    config = tiny_config(vocab_size=4096, max_position_embeddings=1024)
    folder = write_hf(tmp_path_factory.mktemp("model"), config)
    return replace(demo, config=config, model=load_model(folder, read_config(folder)))


@pytest.fixture
def engine(lm: LanguageModel) -> Iterator[Callable[..., Engine]]:
    """Makes engines, started."""
    made: list[Engine] = []

    def make(of: LanguageModel = lm, **options: Any) -> Engine:
        made.append(Engine(of, **options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop(drain=False)
        assert_empty(one)


def assert_empty(one: Engine) -> None:
    status = one.status()
    assert (status.running, status.waiting, status.kv_bytes) == (0, 0, 0)
    assert not status.alive
    assert status.prefix_bytes <= status.prefix_limit


def job(prompt: Sequence[int], max_tokens: int | None = 20, **more: Any) -> Job:
    known = {name: more.pop(name) for name in list(more) if name in Job.__dataclass_fields__}
    return Job(tuple(prompt), Sampling(max_tokens=max_tokens, **more), **known)


async def events_of(ticket: Ticket) -> list[Event]:
    async with asyncio.timeout(120):  # rather than wait for ever for what is lost
        return [event async for event in ticket]


def answers(one: Engine, jobs: Sequence[Job]) -> list[list[Event]]:
    async def all_of_them() -> list[list[Event]]:
        return await asyncio.gather(*(events_of(one.submit(job)) for job in jobs))

    return asyncio.run(all_of_them())


def done(events: Sequence[Event]) -> Done:
    """The last event, which alone is an end."""
    *pieces, last = events
    assert isinstance(last, Done)
    assert all(isinstance(piece, Piece) for piece in pieces)
    return last


def infos(events: Sequence[Event]) -> list[TokenInfo]:
    return [info for piece in events if isinstance(piece, Piece) for info in piece.tokens]


def said(events: Sequence[Event]) -> tuple[str, list[int], str]:
    text = "".join(piece.text for piece in events if isinstance(piece, Piece))
    return text, [info.id for info in infos(events)], done(events).reason


def alone(lm: LanguageModel, job: Job) -> tuple[str, list[int], str]:
    whole: Completion = generate(lm, job.prompt, **vars(job.sampling) | {"speculate": False})
    tokens = whole.tokens
    return whole.text, tokens, whole.finish_reason


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.8, "top_p": 0.9, "seed": 2},
    {"repetition_penalty": 1.2, "logit_bias": {7: 3.0}},
    {"temperature": 1.0, "frequency_penalty": 1.0, "presence_penalty": 0.5, "seed": 3},
    {"max_tokens": 1},
    {"temperature": 1.0, "top_k": 50, "min_p": 0.001, "seed": 4, "max_tokens": 33},
]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 4096, n).tolist() for n in rng.choice([1, 5, 30, 100, 200], count)]


# --- the same answers as alone


def test_tokens_are_those_of_a_job_alone(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    jobs = [
        job(prompt, **SETTINGS[n % len(SETTINGS)] | {"speculate": n % 2 == 0})
        for n, prompt in enumerate(prompts(14))
    ]
    for one in (engine(running=8), engine(running=3, stall_s=1e-6, calm_s=1e-6)):
        for asked, events in zip(jobs, answers(one, jobs), strict=True):
            assert said(events) == alone(lm, asked)


QUESTIONS = ["What is a violin?", "What is the capital of France?", "Tell me a story about a dog."]


def test_answers_of_the_demo(demo: LanguageModel, engine: Callable[..., Engine]) -> None:
    """End tokens, stop texts and characters of several bytes included."""
    ids = [demo.template.encode([{"role": "user", "content": text}]) for text in QUESTIONS]
    jobs = [job(prompt, None, seed=5, temperature=t) for prompt in ids for t in (0, 1.0)]
    jobs += [job(ids[0], 40, stop=("string", "bow")), job(ids[2], 40, stop=(" dog",))]
    byte = [demo.tokenizer.encode("é☃")]
    jobs += [job(byte[0], 12, temperature=3.0, seed=n) for n in range(4)]
    one = engine(demo)
    for asked, events in zip(jobs, answers(one, jobs), strict=True):
        assert said(events) == alone(demo, asked)
    texts = [said(events)[0] for events in answers(one, jobs[-6:-4])]
    assert texts[0].endswith("is a ")
    assert one.status().finished == {"stop": 8, "length": 6} or one.status().finished["stop"] >= 8


def test_what_is_counted(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one = engine()
    jobs = [job(prompt, 10) for prompt in prompts(5)]
    ends = [done(events) for events in answers(one, jobs)]
    for asked, end in zip(jobs, ends, strict=True):
        assert end.prompt_tokens == len(asked.prompt)
        assert end.completion_tokens == 10
        assert end.cached_tokens == 0
        assert 0 <= end.waited_s <= end.first_s
        assert end.tokens_per_second > 0
    status = one.status()
    assert status.completion_tokens == 50
    assert status.prompt_tokens == sum(len(asked.prompt) for asked in jobs)
    assert status.finished == {"length": 5}
    assert status.alive
    assert status.accepting
    assert status.kv_bytes == 0
    seeds = {end.seed for end in ends}
    assert len(seeds) == 5  # each has one, which repeats it


def test_log_probabilities_and_routing(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    plain, full, none = answers(
        engine(),
        [
            job([5, 6, 7], 3),
            job([5, 6, 7], 3, top_logprobs=3, routing=True),
            job([5, 6, 7], 3, top_logprobs=0),
        ],
    )
    for events in (plain, none):
        assert [(info.top, info.experts) for info in infos(events)] == [((), None)] * 3
    for before, info in zip(infos(plain), infos(full), strict=True):
        assert info.id == before.id == info.top[0][0]
        assert info.logprob == pytest.approx(before.logprob, abs=1e-5)
        assert info.logprob == pytest.approx(info.top[0][1], abs=1e-5)
        assert info.experts is not None
        assert [len(chosen) for chosen in info.experts] == [2, 2]


# --- drafts

STORY = (
    "Lily was a girl who lived near the school. She had a dog called Dot and a green lamp. One "
    "day, Lily and Dot went to the school to play with the lamp. Then the lamp was lost."
)


def test_what_repeats_takes_fewer_passes(
    demo: LanguageModel, engine: Callable[..., Engine]
) -> None:
    asked = [
        job(demo.template.encode([{"role": "user", "content": f"{what}: {STORY}"}]), 200, **more)
        for what in ("Repeat this", "Replace dog by cat in")
        for more in ({}, {"temperature": 0.5, "seed": 3}, {"repetition_penalty": 1.01})
    ]
    passes = {}
    for speculate in (False, True):
        one = engine(demo, running=2)
        jobs = [replace(j, sampling=replace(j.sampling, speculate=speculate)) for j in asked]
        found = answers(one, jobs)
        assert [said(events) for events in found] == [alone(demo, wanted) for wanted in asked]
        passes[speculate] = one.status().passes
        drafted = [done(events).drafted_tokens for events in found]
        accepted = [done(events).accepted_tokens for events in found]
        assert all(drafted) == speculate
        assert all(0 <= a <= d for a, d in zip(accepted, drafted, strict=True))
        assert one.status().accepted_tokens == sum(accepted)
        assert one.status().drafted_tokens == sum(drafted)
        assert sum(accepted) > sum(drafted) / 2 or not speculate
    assert passes[True] < passes[False] / 2


def test_drafts_tell_no_less(demo: LanguageModel, engine: Callable[..., Engine]) -> None:
    """Log-probabilities, alternatives and experts of tokens that were foretold."""
    prompt = demo.template.encode([{"role": "user", "content": f"Repeat this: {STORY}"}])
    asked = job(prompt, 60, top_logprobs=3, routing=True)
    plain = replace(asked, sampling=replace(asked.sampling, speculate=False))
    (with_drafts,), (without,) = answers(engine(demo), [asked]), answers(engine(demo), [plain])
    assert done(with_drafts).accepted_tokens > 20
    for one, other in zip(infos(with_drafts), infos(without), strict=True):
        assert (one.id, one.experts) == (other.id, other.experts)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert next(i for i, _ in one.top) == one.id
        assert dict(one.top).keys() == dict(other.top).keys()


def test_a_prediction_comes_true_from_the_first_token(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    """The random model repeats nothing by itself."""
    wanted = job([7, 8, 9, 10], 60)
    right = predicted(lm, wanted, 1000)
    wrong = replace(wanted, prediction=tuple(range(5, 65)))
    one = engine()
    ends = []
    for asked in (wanted, right, wrong):
        (events,) = answers(one, [asked])
        assert said(events) == answer_alone(lm, wanted)
        ends.append(done(events))
    assert ends[0].drafted_tokens == 0
    assert ends[1].accepted_tokens >= 50
    assert ends[2].drafted_tokens == 0


def test_drafts_leave_no_room_for_more_rows_than_pay(
    lm: LanguageModel, engine: Callable[..., Engine], takes: list[list[int]]
) -> None:
    jobs = [predicted(lm, job([n, n + 1, n + 2], 60), 1000) for n in range(20, 26)]
    found = answers(engine(running=6), jobs)
    assert [said(events) for events in found] == [answer_alone(lm, one) for one in jobs]
    assert max(map(sum, takes[6:])) <= 32
    assert max(map(max, takes[6:])) > 1


def test_a_stop_within_a_draft_ends_the_answer_there(
    demo: LanguageModel, engine: Callable[..., Engine]
) -> None:
    prompt = demo.template.encode([{"role": "user", "content": f"Repeat this: {STORY}"}])
    jobs = [job(prompt, 200, stop=("green",)), *(job(prompt, most) for most in (1, 2, 20, 21))]
    one = engine(demo, running=1, prefix_bytes=1 << 28)
    for asked, events in zip(jobs, answers(one, jobs), strict=True):
        assert said(events) == alone(demo, asked)
    # What is kept of them goes on rightly.
    text = "Repeat this: " + STORY
    talk = [("user", text), ("assistant", said(answers(one, jobs[:1])[0])[0]), ("user", "Why?")]
    prompt = demo.template.encode([{"role": who, "content": what} for who, what in talk])
    (events,) = answers(one, [job(prompt, 30)])
    assert done(events).cached_tokens > 20
    assert said(events) == alone(demo, job(prompt, 30))


# --- grammars


class Words:
    """Lets through a number, then an end; a check of how it is used as well."""

    def forced(self) -> Sequence[int]:
        return ()

    def __init__(self, allowed: Sequence[int], length: int, fails: str = "") -> None:
        self.allowed, self.length, self.fails = allowed, length, fails
        self.accepted: list[int] = []
        self.asked = 0
        self.threads: set[str] = set()

    def mask(self, after: Sequence[int]) -> np.ndarray | None:
        assert not after
        self.threads.add(threading.current_thread().name)
        assert self.asked == len(self.accepted)  # once a token
        self.asked += 1
        if self.fails == "mask":
            raise RuntimeError("no mask")
        if self.asked == 2:
            return None
        bits = np.zeros(4096, np.uint8)
        bits[[] if self.fails == "nothing" else self.allowed] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None:
        if self.fails == "accept" and self.accepted:
            raise MixtralError("broken at last")
        self.accepted.append(token)

    @property
    def done(self) -> bool:
        return len(self.accepted) == self.length


def test_grammars_hold(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    grammars = [Words(range(100 * n, 100 * n + 9), 12) for n in range(1, 4)]
    jobs = [job(p, 20) for p in prompts(3)]
    with_them = [
        job([4, 5, 6], 20, grammar=grammar, temperature=1.0, seed=n)
        for n, grammar in enumerate(grammars)
    ]
    found = answers(engine(), [*with_them, *jobs])
    for grammar, events in zip(grammars, found, strict=False):
        tokens = said(events)[1]
        assert done(events).reason == "stop"
        assert len(tokens) == 12
        assert {t for n, t in enumerate(tokens) if n != 1} <= set(grammar.allowed)
        assert tokens == grammar.accepted
        assert grammar.threads == {"engine"}
    for asked, events in zip(jobs, found[3:], strict=True):
        assert said(events) == alone(lm, asked)


RECORD = {
    "type": "object",
    "properties": {
        "the_name_of_the_person": {"type": "string", "maxLength": 6},
        "whether_it_is_true": {"type": "boolean"},
        "a_constant": {"const": "always the same text"},
        "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["the_name_of_the_person", "whether_it_is_true", "a_constant", "numbers"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "seed": 4, "top_p": 0.9},
     {"temperature": 0.7, "seed": 5, "presence_penalty": 1.0, "repetition_penalty": 1.1}],
    ids=["greedy", "sampled", "top-p", "penalties"],
)  # fmt: skip
def test_what_a_grammar_forces_is_read_at_once(
    demo: LanguageModel, engine: Callable[..., Engine], settings: dict[str, Any]
) -> None:
    """The same tokens, chances and experts as token by token, in fewer passes."""
    grammars = Grammars(demo.tokenizer, demo.config.vocab_size)
    prompt = demo.template.encode([{"role": "user", "content": "Describe someone."}])
    found, passes = {}, {}
    for ahead in (False, True):
        one = engine(demo)
        asked = [
            job(
                prompt,
                most,
                **settings,
                speculate=ahead,
                top_logprobs=2,
                routing=True,
                grammar=keeper(grammars.compiled(json_grammar(RECORD))),
            )
            for most in (200, 30, 31, 32)
        ]
        found[ahead] = answers(one, asked)
        passes[ahead] = one.status().passes
    for plain, jumped in zip(found[False], found[True], strict=True):
        assert said(plain) == said(jumped)
        for one_token, same in zip(infos(plain), infos(jumped), strict=True):
            assert one_token.logprob == pytest.approx(same.logprob, abs=2e-3)
            assert one_token.experts == same.experts
        assert done(jumped).accepted_tokens == done(jumped).drafted_tokens
    text, _, reason = said(found[True][0])
    assert reason == "stop"
    jsonschema.validate(json.loads(text), RECORD)
    assert passes[True] < passes[False] / 2


@pytest.mark.parametrize(
    ("fails", "message"),
    [("mask", "no mask"), ("accept", "broken at last"), ("nothing", "allows no token")],
)
def test_a_grammar_that_fails_ends_its_own_job_only(
    lm: LanguageModel, engine: Callable[..., Engine], fails: str, message: str
) -> None:
    one = engine()
    other = job([9, 9, 9], 30)
    failed, went_on = answers(one, [job([1, 2], 30, grammar=Words([5], 9, fails)), other])
    assert done(failed).reason == "grammar"
    assert message in done(failed).message
    assert said(went_on) == alone(lm, other)
    assert one.status().restarts == 0


# --- embeddings


def test_embeddings_are_mean_hidden_states(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    texts = [tuple(p) for p in prompts(10)]
    one = engine(running=4)

    async def both() -> tuple[np.ndarray, list[Event]]:
        ticket = one.submit(job([5, 6], 200))
        return await one.embed(texts), await events_of(ticket)

    found, events = asyncio.run(both())
    assert said(events) == alone(lm, job([5, 6], 200))
    assert found.shape == (10, 64)
    assert found.dtype == np.float32
    for row, text in zip(found, texts, strict=True):
        want = np.array(lm.model.hidden(mx.array([text]))[0]).mean(axis=0)
        assert np.abs(row - want).max() < 1e-4
    with pytest.raises(UsageError):
        asyncio.run(one.embed([(1, 2), ()]))
    with pytest.raises(ContextError):
        asyncio.run(one.embed([tuple([3] * 1024)]))
    assert asyncio.run(one.embed([])).shape == (0, 64)


# --- prompts that begin alike


def test_a_conversation_is_continued(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one = engine(prefix_bytes=10 * STEP)
    first = job(range(10, 110), 20)
    (events,) = answers(one, [first])
    longer = job([*first.prompt, *said(events)[1], 7, 8, 9], 20)
    branch = job([*range(10, 90), 5, 5, 5], 20)
    again, other = answers(one, [longer])[0], answers(one, [branch])[0]
    assert done(again).cached_tokens == 119  # the last token of an answer is read by nobody
    assert done(other).cached_tokens == 80
    assert said(again) == alone(lm, longer)
    assert said(other) == alone(lm, branch)
    assert one.status().cached_tokens == 199


def test_prefixes_are_kept_from_run_to_run(
    lm: LanguageModel, engine: Callable[..., Engine], tmp_path: Path, caplog: Any
) -> None:
    folder = tmp_path / "prefixes"
    options = {"prefix_bytes": 3 * STEP, "prefix_folder": folder}
    first = engine(**options)
    texts = [[n, *range(10, 110)] for n in (5, 6)]
    _, before = answers(first, [job(text, 20) for text in texts])
    first.stop(drain=True)
    assert len(list(folder.iterdir())) == 2
    (folder / "damaged.prefix.kv").write_bytes(b"?")
    second = engine(**options)
    longer = job([*texts[1], *said(before)[1], 7, 8], 20)
    (events,) = answers(second, [longer])
    assert done(events).cached_tokens == 120
    assert said(events) == alone(lm, longer)
    second.stop(drain=False)  # in a hurry nothing is written
    assert len(list(folder.iterdir())) == 3
    third = engine(**options)
    answers(third, [longer])
    third.stop(drain=True)
    assert len(list(folder.iterdir())) == 3  # the other, the longer one, and what is not ours
    assert "damaged.prefix.kv" in caplog.text
    with pytest.raises(UsageError, match="cannot be made"):
        Engine(lm, prefix_folder=folder / "damaged.prefix.kv" / "x")


def test_alike_prompts_are_read_once(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one = engine(running=8, kv_bytes=40 * STEP)
    text = tuple(range(100, 700))
    jobs = [job(text, 20, temperature=1.0, seed=n) for n in range(6)]
    jobs.append(job([*text[:300], 1, 2, 3], 20))
    found = answers(one, jobs)
    assert sorted(done(events).cached_tokens for events in found) == [0, 300, *[599] * 5]
    for asked, events in zip(jobs, found, strict=True):
        assert said(events) == alone(lm, asked)


@pytest.mark.parametrize("kept", [KVSettings(window=30), None])
def test_kept_prefixes_change_no_answer(
    lm: LanguageModel, engine: Callable[..., Engine], kept: KVSettings | None
) -> None:
    """Random conversations that branch, with room for a few of them."""
    one = engine(kv=kept, running=3, prefix_bytes=4 * STEP)
    rng = random.Random(0)
    texts = [tuple(rng.randrange(3, 4096) for _ in range(120)) for _ in range(3)]
    for _ in range(6):
        jobs = []
        for _ in range(4):
            text = rng.choice(texts)
            cut = rng.randrange(20, len(text))
            jobs.append(job([*text[:cut], *(rng.randrange(3, 4096) for _ in range(9))], 12))
        for asked, events in zip(jobs, answers(one, jobs), strict=True):
            options = {"kv_window": kept.window} if kept else {}
            whole = generate(lm, asked.prompt, **vars(asked.sampling), **options)
            assert said(events)[1] == whole.tokens
            texts.append((*asked.prompt, *whole.tokens))
    assert one.status().cached_tokens > 500


# --- limits


class Gate(Words):
    """Holds the engine's thread until it is opened."""

    def __init__(self) -> None:
        super().__init__([5], 1)
        self.open, self.reached = threading.Event(), threading.Event()

    def mask(self, after: Sequence[int]) -> np.ndarray | None:
        self.reached.set()
        assert self.open.wait(20)
        return super().mask(after)


def test_the_queue_is_bounded(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one, gate = engine(running=1, waiting=2), Gate()
    tickets = [one.submit(job([1], 5, grammar=gate))]
    assert gate.reached.wait(20)
    tickets += [one.submit(job([n], 5)) for n in (3, 4)]
    with pytest.raises(Busy) as refused:
        one.submit(job([6], 5))
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 60
    with pytest.raises(Busy):
        asyncio.run(one.embed([(1, 2)]))
    status = one.status()
    assert (status.running, status.waiting, status.refused) == (1, 2, 2)
    gate.open.set()
    ends = [done(asyncio.run(events_of(ticket))) for ticket in tickets]
    assert [end.reason for end in ends] == ["stop", "length", "length"]
    assert done(answers(one, [job([6], 5)])[0]).reason == "length"


def test_memory_is_set_aside_for_all_that_runs(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    one, gate = engine(running=4, kv_bytes=3 * STEP), Gate()
    tickets = [one.submit(job([1], 256 - 1, grammar=gate))]
    assert gate.reached.wait(20)
    tickets += [one.submit(job([n], length)) for n, length in ((3, 5), (4, 300), (5, 5))]
    gate.open.set()
    found = [asyncio.run(events_of(ticket)) for ticket in tickets]
    assert [done(events).reason for events in found] == ["stop", "length", "length", "length"]
    for bad in (job([3] * 700, 200), job([3] * 900, None)):
        with pytest.raises(ContextError, match="MB are set aside"):
            one.submit(bad)
    with pytest.raises(ContextError, match="maximum context length is 1024"):
        one.submit(job([3] * 1024, 1))
    with pytest.raises(UsageError, match="empty"):
        one.submit(job([], 1))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        one.submit(job([4096], 1))


def test_without_a_limit_an_answer_gets_a_share(
    lm: LanguageModel, engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "OPEN_ENDED", 10)
    short = replace(lm, config=replace(lm.config, max_position_embeddings=300))

    def most(of: Engine, prompt: int) -> int:
        return done(answers(of, [job([3] * prompt, None)])[0]).completion_tokens

    one = engine(short, running=4, kv_bytes=4 * STEP)
    assert most(one, 12) == 256 - 12
    assert most(one, 270) == 30  # what it takes is more than its share
    assert most(engine(short, running=1, kv_bytes=4 * STEP), 12) == 288


# --- who gives up, and what fails


def test_cancelled_while_waiting_and_while_running(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    one, gate = engine(running=2), Gate()
    held = one.submit(job([1], 5, grammar=gate))
    assert gate.reached.wait(20)
    other, running, waiting = (one.submit(job([n], 400)) for n in (3, 4, 6))
    for ticket in (running, waiting, waiting):
        ticket.cancel()
    gate.open.set()
    assert done(asyncio.run(events_of(held))).reason == "stop"
    assert done(asyncio.run(events_of(running))).reason == "cancelled"
    ended = done(asyncio.run(events_of(waiting)))
    assert (ended.reason, ended.completion_tokens) == ("cancelled", 0)
    assert done(asyncio.run(events_of(other))).reason == "length"
    assert one.status().finished == {"stop": 1, "cancelled": 2, "length": 1}


@pytest.mark.parametrize("died", [False, True], ids=["a pass", "the thread"])
def test_what_fails_ends_what_ran_and_no_more(
    lm: LanguageModel,
    engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    died: bool,
) -> None:
    one, gate = engine(running=2, prefix_bytes=STEP), Gate()
    answers(one, [job(range(50, 90), 3)])
    tickets = [one.submit(job([1], 5, grammar=gate))]
    assert gate.reached.wait(20)
    tickets += [one.submit(job([n], 30)) for n in (3, 4)]
    waiting = one.submit(job([8], 30))
    before = one._thread

    def fails(*_: object) -> None:
        monkeypatch.undo()
        raise SystemExit("gone") if died else RuntimeError("no\nmemory")

    with caplog.at_level(logging.CRITICAL + 1):
        monkeypatch.setattr("mlx_mixtral.server.worker.Pass", fails)
        gate.open.set()
        ends = [done(asyncio.run(events_of(ticket))) for ticket in tickets]
        assert [end.reason for end in ends] == ["stop", "error", "error"]
        assert ends[1].message == ("SystemExit: gone" if died else "RuntimeError: no memory")
        assert said(asyncio.run(events_of(waiting))) == alone(lm, job([8], 30))
    status = one.status()
    assert status.restarts == died
    assert status.alive
    assert (one._thread is before) != died
    assert status.prefix_bytes <= STEP


def test_a_reader_that_is_gone_holds_up_nobody(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    one, gate = engine(), Gate()

    async def leave() -> Ticket:
        ticket = one.submit(job([1], 5, grammar=gate))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(ticket), 0.1)
        asyncio.create_task(anext(ticket))  # noqa: RUF006  (left waiting as the loop closes)
        await asyncio.sleep(0)
        return ticket

    ticket = asyncio.run(leave())
    gate.open.set()
    assert done(answers(one, [job([2], 9)])[0]).reason == "length"
    assert done(asyncio.run(events_of(ticket))).reason == "stop"


def test_an_event_that_comes_as_the_reader_begins_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = Ticket()
    look, last = ticket._take, [Done("stop")]

    def look_and_miss() -> Event | None:
        seen = look()
        if last:
            ticket.put(last.pop())
        return seen

    monkeypatch.setattr(ticket, "_take", look_and_miss)
    assert asyncio.run(asyncio.wait_for(events_of(ticket), 20)) == [Done("stop")]


# --- the end of it all


def test_draining_finishes_what_was_accepted(
    lm: LanguageModel, engine: Callable[..., Engine]
) -> None:
    one = engine(running=2)
    jobs = [job(prompt, 40) for prompt in prompts(6)]
    tickets = [one.submit(asked) for asked in jobs]
    one.stop(drain=True)
    for asked, ticket in zip(jobs, tickets, strict=True):
        assert said(asyncio.run(events_of(ticket))) == alone(lm, asked)
    with pytest.raises(Busy) as refused:
        one.submit(jobs[0])
    assert refused.value.retry_after is None
    assert not one.status().accepting


def test_a_drain_can_be_cut_short(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one = engine(running=2)
    tickets = [one.submit(job([n], 900)) for n in range(3, 9)]
    drain = threading.Thread(target=one.stop, kwargs={"drain": True})
    drain.start()
    one.stop(drain=False)
    drain.join(20)
    assert not drain.is_alive()
    reasons = [done(asyncio.run(events_of(ticket))).reason for ticket in tickets]
    assert reasons.count("cancelled") >= 4


def test_a_model_that_cannot_compute_does_not_start(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlx_mixtral.server.engine.Pass", None)
    one = Engine(lm)
    with (
        caplog.at_level(logging.CRITICAL + 1),
        pytest.raises(MixtralError, match="cannot compute"),
    ):
        one.start()
    assert not one.status().alive
    with pytest.raises(Busy):
        one.submit(job([1]))


def test_a_process_may_just_end() -> None:
    code = (
        "from mlx_mixtral import load\n"
        "from mlx_mixtral.server.engine import Engine\n"
        "from mlx_mixtral.server.jobs import Job\n"
        "from mlx_mixtral.generation.sampling import Sampling\n"
        "engine = Engine(load('demo'))\n"
        "engine.start()\n"
        "engine.submit(Job((1, 5, 6), Sampling(max_tokens=500)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- step by step, without threads


def worker_of(lm: LanguageModel, running: int = 3, room: int = 8, kept: int = 3) -> Worker:
    # So slow a model that of prompts a pass takes the least that it can.
    stride = Stride(1e-9, 1e-9)
    schedule: Schedule[Request] = Schedule(running, room * STEP)
    return Worker(lm, KVSettings(), schedule, Prefixes(kept * STEP), stride)


def put(worker: Worker, asked: Job, need: int = STEP) -> Request:
    request = Request(asked.prompt, asked, asked.sampling.max_tokens or 1, need)
    worker.schedule.waiting.append(request)
    return request


def told(request: Request) -> list[Event]:
    return list(request.ticket._events)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many tokens of each text the passes take, pass by pass."""
    from mlx_mixtral.generation.batch import Pass, Take

    noted = []

    def noting(model: Any, takes: list[Take], before: Pass | None) -> Pass:
        noted.append([take.rows for take in takes])
        return Pass(model, takes, before)

    monkeypatch.setattr("mlx_mixtral.server.worker.Pass", noting)
    return noted


def test_answers_go_on_while_a_long_prompt_is_read(
    lm: LanguageModel, takes: list[list[int]]
) -> None:
    worker = worker_of(lm)
    first = put(worker, job([3, 4], 200))
    for _ in range(5):
        worker.step()
    long, short = put(worker, job([5] * 800, 5)), put(worker, job([6] * 40, 5))
    del takes[:]
    before = len(infos(told(first)))
    while not infos(told(long)):
        worker.step()
    assert max(sum(counts) for counts in takes[1:]) <= 65  # the first is a guess
    assert all(counts[0] == 1 for counts in takes)
    assert len(infos(told(first))) - before >= len(takes) - 1
    assert short.over  # before the long one began to answer


def test_what_fails_leaves_nothing_behind(lm: LanguageModel) -> None:
    worker = worker_of(lm, running=2)
    put(worker, job([7] * 20, 1))
    while worker.step():
        pass
    assert worker.prefixes.nbytes
    asked = [put(worker, job([n] * 90, 9)) for n in (3, 4, 5)]
    for _ in range(3):
        worker.step()
    worker.fail("broken")
    assert worker.prefixes.nbytes == worker.schedule.used == 0
    assert [done(told(request)).message for request in asked[:2]] == ["broken", "broken"]
    while worker.step():
        pass
    assert said(told(asked[2])) == answer_alone(lm, job([5] * 90, 9))


@pytest.mark.parametrize("steps", [0, 1, 2, 12, 13])
def test_cancelled_within_a_step(lm: LanguageModel, steps: int) -> None:
    """Waiting, in the middle of its prompt, or of its answer."""
    worker = worker_of(lm)
    other, request = put(worker, job([3], 40)), put(worker, job([5] * 200, 40))
    for _ in range(steps):
        worker.step()
    request.ticket.cancel()
    worker.step()
    assert done(told(request)).reason == "cancelled"
    assert worker.schedule.running == [other]
    assert worker.schedule.used == STEP
    assert worker.prefixes.nbytes == (STEP if steps else 0)
    while worker.step():
        pass
    assert said(told(other)) == answer_alone(lm, job([3], 40))


def test_the_next_pass_begins_before_the_last_is_told(
    lm: LanguageModel, takes: list[list[int]]
) -> None:
    worker = worker_of(lm)
    request = put(worker, job([3, 4], 6))
    ahead = []
    while worker.step():
        ahead.append(len(takes) - len(infos(told(request))))
    assert ahead == [1, 1, 1, 1, 1, 1]
    assert len(takes) == 6  # and none in vain


VARIANTS = [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "presence_penalty": 1.0}]
Move = tuple[str, int, int, int]
MOVES = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7), st.integers(1, 25), st.integers(0, 2)),
    st.tuples(st.just("step"), st.integers(1, 9), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("embed"), st.integers(0, 7), st.just(0), st.just(0)),
)
# Some begin alike.
TEXTS = [[n % 2 + 5, *range(20, 20 + 17 * n), n] for n in range(3, 11)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, max_size=25), st.integers(1, 4), st.integers(2, 6), st.integers(0, 4))
def test_any_schedule_ends_every_job_once_and_rightly(
    lm: LanguageModel, moves: list[Move], running: int, room: int, kept: int
) -> None:
    worker, asked = worker_of(lm, running, room, kept), []
    for move, which, length, variant in moves:
        if move == "put":
            wanted = job(TEXTS[which], length, **({"seed": 9} | VARIANTS[variant]))
            if length % 2:
                wanted = predicted(lm, wanted, which)
            asked.append((wanted, put(worker, wanted, STEP * (1 + which % 2))))
        elif move == "embed":
            request = Request(tuple(TEXTS[which]), None, 0, STEP)
            worker.schedule.waiting.append(request)
            asked.append((None, request))
        elif move == "cancel" and asked:
            asked[which % len(asked)][1].ticket.cancel()
        for _ in range(which if move == "step" else 0):
            worker.step()
            assert worker.schedule.used <= room * STEP
            assert worker.prefixes.nbytes <= kept * STEP
            taken = [r.text.cache.nbytes for r in worker.schedule.running if r.text]
            assert sum(taken) <= worker.schedule.used
    while worker.step():
        pass
    assert (worker.schedule.used, worker._requests, worker._now) == (0, {}, None)
    for wanted, request in asked:
        end = done(told(request))
        if end.reason == "cancelled":
            assert request.ticket.cancelled
        elif wanted is None:
            assert np.abs(request.embedding - embedded(lm, request.prompt)).max() < 1e-4
        else:
            assert said(told(request)) == answer_alone(lm, wanted)


_alone: dict[tuple[Any, ...], Any] = {}


def answer_alone(lm: LanguageModel, wanted: Job) -> tuple[str, list[int], str]:
    key = (wanted.prompt, repr(wanted.sampling))
    if key not in _alone:
        _alone[key] = alone(lm, wanted)
    return _alone[key]


def predicted(lm: LanguageModel, wanted: Job, wrong: int) -> Job:
    """With its right answer foretold, but for one token."""
    answer = answer_alone(lm, wanted)[1]
    return replace(wanted, prediction=(*answer[:wrong], 4000, *answer[wrong + 1 :]))


def embedded(lm: LanguageModel, prompt: tuple[int, ...]) -> np.ndarray:
    if prompt not in _alone:
        _alone[prompt] = np.array(lm.model.hidden(mx.array([prompt]))[0]).mean(axis=0)
    return _alone[prompt]


# --- for a while


def test_a_crowd_that_comes_and_goes(lm: LanguageModel, engine: Callable[..., Engine]) -> None:
    one = engine(running=6, waiting=10, kv_bytes=12 * STEP, prefix_bytes=4 * STEP)
    crowd(lm, one, seconds=3.0)


def crowd(lm: LanguageModel, one: Engine, seconds: float) -> dict[str, int]:
    """Clients in several threads submit, read, leave and are refused; every answer is right."""
    ends: dict[str, int] = {"refused": 0}
    failures: list[BaseException] = []
    until = time.monotonic() + seconds

    async def client(rng: random.Random) -> None:
        wanted = job(
            rng.choice(TEXTS)[: rng.randrange(1, 200)],
            rng.randrange(1, 25),
            **({"seed": 9} | VARIANTS[rng.randrange(2)]),
        )
        try:
            ticket = one.submit(wanted)
        except Busy:
            ends["refused"] += 1
            await asyncio.sleep(0.005)
            return
        leaves = rng.randrange(1, 20) if rng.random() < 0.3 else None
        events: list[Event] = []
        async for event in ticket:
            events.append(event)
            if len(events) == leaves:
                ticket.cancel()
        reason = done(events).reason
        ends[reason] = ends.get(reason, 0) + 1
        text, tokens, _ = said(events)
        whole = answer_alone(lm, replace_length(wanted))
        assert tokens == whole[1][: len(tokens)], (wanted, tokens, whole)
        assert whole[0].startswith(text), (wanted, text, whole)
        assert reason in ("length", "cancelled", "stop"), reason
        assert reason != "length" or len(tokens) == wanted.sampling.max_tokens

    async def clients(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < until:
            await asyncio.gather(*(client(rng) for _ in range(5)))

    def run(seed: int) -> None:
        try:
            asyncio.run(clients(seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert one.status().finished.get("error", 0) == 0
    return ends


def replace_length(wanted: Job) -> Job:
    """Its answer's beginning is that of the longest one."""
    return replace(wanted, sampling=replace(wanted.sampling, max_tokens=25))
