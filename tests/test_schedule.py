"""Who is computed next: bookkeeping, and the store of beginnings."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import pytest
from checkpoints import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.server.prefixes import WORTH, Prefixes
from mlx_mixtral.server.schedule import LEAST_CHUNK, UNMEASURED, Schedule, Stride


@dataclass(eq=False)
class Thing:
    need: int = 1
    unread: int = 0


def schedule(*needs: int, running: int = 3, room: int = 10) -> Schedule[Thing]:
    made: Schedule[Thing] = Schedule(running, room)
    made.waiting.extend(Thing(need) for need in needs)
    return made


# --- who may begin


def test_no_more_than_are_allowed_and_fit() -> None:
    assert [w.need for w in schedule(1, 1, 1, 1).admit()] == [1, 1, 1]
    assert [w.need for w in schedule(4, 6, 1).admit()] == [4, 6]
    assert [w.need for w in schedule(4, 7, 1).admit()] == [4]  # 1 does not overtake 7
    assert [w.need for w in schedule(10).admit()] == [10]


def test_whoever_ends_makes_room() -> None:
    made = schedule(4, 7, 1)
    (first,) = made.admit()
    assert made.used == 4
    assert not made.ready
    made.remove(first)
    assert made.used == 0
    assert [w.need for w in made.admit()] == [7, 1]
    made.remove(made.running[0])
    made.remove(Thing())  # of no schedule
    assert made.used == 1


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 3)), max_size=30), st.integers(1, 4))
def test_bytes_never_exceed_the_limit(arrivals: list[tuple[int, int]], running: int) -> None:
    made: Schedule[Thing] = Schedule(running, 10)
    began = []
    for need, ends in arrivals:
        made.waiting.append(Thing(need))
        began += list(made.admit())
        for work in made.running[:ends]:
            made.remove(work)
        assert made.used <= 10
        assert len(made.running) <= running
    while made.running or made.waiting:  # and everybody gets a turn
        began += list(made.admit())
        made.remove(made.running[0])
    assert [w.need for w in began] == [need for need, _ in arrivals]


# --- whose prompt is read


def shares(rows: int, *unread: int) -> list[int]:
    made: Schedule[Thing] = Schedule(len(unread), 100)
    made.running = [Thing(1, count) for count in unread]
    found = made.prompts(rows)
    return [found.get(work, 0) for work in made.running]


def test_the_oldest_gets_half_and_the_shortest_the_rest() -> None:
    assert shares(100, 1000, 500, 10) == [50, 40, 10]
    assert shares(100, 1000, 20, 30) == [50, 20, 30]
    assert shares(100, 1000, 20) == [80, 20]
    assert shares(100, 30, 0, 1000) == [30, 0, 70]
    assert shares(100, 0, 0) == [0, 0]
    assert shares(1, 5, 5) == [1, 0]


@given(st.integers(1, 200), st.lists(st.integers(0, 300), max_size=9))
def test_all_rows_are_used_and_no_more(rows: int, unread: list[int]) -> None:
    given_out = shares(rows, *unread)
    assert sum(given_out) == min(rows, sum(unread))
    assert all(got <= want for got, want in zip(given_out, unread, strict=True))
    reading = [n for n, want in enumerate(unread) if want]
    if reading:  # so that nobody waits for ever
        assert given_out[reading[0]] >= min(unread[reading[0]], rows // 2)


def test_rows_follow_the_time_that_they_take() -> None:
    stride = Stride(stall=0.2, calm=1.0)
    assert stride.rows(True, 1000) == UNMEASURED
    stride.note(100, 0.1)
    assert stride.rows(True, 1000) == 200
    assert stride.rows(False, 1000) == 1000
    assert stride.rows(False, 500) == 500
    stride.note(1, 0.1)  # a row alone tells nothing about many
    assert stride.rows(True, 1000) == 200
    for _ in range(20):
        stride.note(LEAST_CHUNK, 60.0)
    assert stride.rows(True, 1000) == LEAST_CHUNK


# --- beginnings


def cache_of(tokens: list[int], window: int | None = None) -> PromptCache:
    """As if a model had been fed the tokens; each one's keys are its number."""
    cache = PromptCache(tiny_config(), KVSettings(window=window))
    for layer in cache.layers:
        keys = mx.broadcast_to(mx.array(tokens, mx.float32)[:, None], (1, 2, len(tokens), 16))
        layer.make_mask(len(tokens))
        layer.update_and_fetch(keys, keys)
    cache.settle(tokens)
    return cache


def held(cache: PromptCache | None) -> list[int]:
    if cache is None:
        return []
    layer = cache.layers[0]
    assert layer.offset == len(cache.tokens)
    assert layer.parts[0][0, 0, : layer.held, 0].tolist() == cache.tokens
    return cache.tokens


TEXT = list(range(100))


def test_the_longest_common_beginning_is_lent() -> None:
    kept = Prefixes(1 << 30)
    kept.keep(cache_of(TEXT[:40] + [0] * 30))
    kept.keep(cache_of(TEXT[:60] + [0] * 30))
    kept.keep(cache_of([7] * 90))
    assert kept.known(TEXT) == 60
    assert held(kept.lend(TEXT)) == TEXT[:60]
    assert held(kept.lend(TEXT[:30])) == TEXT[:29]  # its last token has to be computed
    assert held(kept.lend(TEXT, live=[cache_of(TEXT[:70])])) == TEXT[:70]
    assert kept.lend(TEXT[: WORTH - 1] + [0] * 50) is None


def test_what_is_continued_is_not_kept_twice() -> None:
    kept = Prefixes(1 << 30)
    kept.keep(cache_of(TEXT[:40]))
    one = kept.nbytes
    longer = kept.lend(TEXT)
    assert held(longer) == TEXT[:40]
    assert kept.nbytes == 0
    kept.keep(cache_of(TEXT[:40]))
    kept.keep(cache_of(TEXT))
    assert kept.nbytes == one  # both take a step of 256 places
    assert held(kept.lend([*TEXT, 1])) == TEXT


def test_bytes_are_limited_and_the_least_used_go() -> None:
    one = cache_of(TEXT).nbytes
    kept = Prefixes(2 * one)
    for n in (1, 2):
        kept.keep(cache_of([n] * 50))
    assert kept.lend([1] * 30) is not None
    kept.keep(cache_of([3] * 50))
    assert kept.nbytes == 2 * one
    assert [kept.known([n] * 30) for n in (1, 2, 3)] == [29, 0, 29]
    kept.clear()
    assert kept.nbytes == 0
    nothing = Prefixes(0)
    nothing.keep(cache_of(TEXT))
    assert nothing.nbytes == 0


def test_what_a_window_left_out_is_not_lent() -> None:
    cache = PromptCache(tiny_config(), KVSettings(window=8))
    tokens = [n % 90 for n in range(1200)]
    for _ in range(12):
        part = mx.zeros((1, 2, 100, 16))
        for layer in cache.layers:
            layer.make_mask(100)
            layer.update_and_fetch(part, part)
    cache.settle(tokens)
    earliest = cache.layers[0].earliest
    assert 0 < earliest < 1200
    kept = Prefixes(1 << 30)
    kept.keep(cache_of(tokens[:50], window=8))
    kept.keep(cache)
    assert kept.known(tokens[: earliest + 1]) == earliest
    assert kept.known(tokens[:earliest]) == 50  # the short one was not thrown out for the long
    assert held(kept.lend(tokens[:100])) == tokens[:50]


@pytest.mark.parametrize("length", [16, 17, 60])
def test_one_that_is_lent_is_a_copy(length: int) -> None:
    kept = Prefixes(1 << 30)
    kept.keep(cache_of(TEXT))
    lent = kept.lend([*TEXT[:length], 1, 2, 3])
    assert lent is not None
    for layer in lent.layers:
        layer.update_and_fetch(mx.zeros((1, 2, 5, 16)), mx.zeros((1, 2, 5, 16)))
    again = kept.lend([*TEXT, 1])
    assert held(again) == TEXT
