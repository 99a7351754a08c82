"""What stays in memory, and how much of it there is: bookkeeping without tensors."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral.budget import PROGRAM, Budget, Demand, slots_within
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.experts.policy import Counters, Fading, Slots
from mlx_mixtral.lab.chips import CHIPS, mac
from mlx_mixtral.lab.projection import HITS_HERE, HITS_PUBLISHED, from_disk, ssd
from mlx_mixtral.lab.routing import POLICIES, Clairvoyant, Frequent, Recent, hits

ODDS = [0.25] * 4


# --- policies


def test_what_was_nearly_chosen_stays():
    policy = Fading(4, 0.5)
    policy.used([0, 1], [0.4, 0.3, 0.25, 0.05])
    policy.used([0, 3], [0.5, 0.05, 0.05, 0.4])
    assert [policy.worth(e) for e in range(4)] == pytest.approx([0.7, 0.2, 0.175, 0.425])


def test_old_thoughts_fade_away():
    policy = Fading(2)
    policy.used([0], [1.0, 0.0])
    for _ in range(5000):
        policy.used([1], [0.0, 1.0])
    assert policy.worth(0) == 0
    assert policy.worth(1) == pytest.approx(2)


def test_lru_and_lfu_by_hand():
    chosen = [[0, 1], [0, 1], [2, 0], [1, 3]]
    recent, frequent = Recent(chosen, 4), Frequent(chosen, 4)
    for token in chosen:
        recent.used(token, ODDS)
        frequent.used(token, ODDS)
    by = sorted(range(4), key=recent.worth)
    assert by == [0, 2, 3, 1], "of one token's experts, the one that it weighs most is the later"
    assert [frequent.worth(e) for e in range(4)] == [3, 3, 1, 1]


def test_clairvoyance_by_hand():
    chosen = [[0], [1], [2], [0], [1], [0]]
    policy = Clairvoyant(chosen, 4)
    policy.used(chosen[0], ODDS)
    policy.used(chosen[1], ODDS)
    assert sorted(range(4), key=policy.worth) == [3, 1, 0, 2]


def best_by_trying(chosen, count):
    """The most hits that any sequence of evictions gives."""
    states = {frozenset(): 0}
    for experts in chosen:
        following: dict[frozenset[int], int] = {}
        for held, found in states.items():
            need, score = set(experts), found + len(held & set(experts))
            options = [held | need] if len(held | need) <= count else subsets(held, need, count)
            for option in options:
                following[option] = max(score, following.get(option, 0))
        states = following
    return max(states.values())


def subsets(held, need, count):
    spare, room = sorted(held - need), count - len(need)
    picks = [c for n in range(2 ** len(spare)) if len(c := [e for i, e in enumerate(spare) if n >> i & 1]) == room]  # fmt: skip # noqa: E501
    return [frozenset(need | set(pick)) for pick in picks]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_no_policy_beats_clairvoyance_and_it_is_the_best(seed, count):
    rng = random.Random(seed)
    chosen = [rng.sample(range(5), 2) for _ in range(14)]
    odds = [[rng.random() for _ in range(5)] for _ in chosen]
    rates = {name: hits(chosen, odds, make(chosen, 5), count) for name, make in POLICIES.items()}
    assert rates["clairvoyant"] == max(rates.values())
    assert round(rates["clairvoyant"] * 28) == best_by_trying(chosen, count)


@given(st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True), max_size=40))
def test_slots_hold_what_was_asked_for_last(chosen):
    slots, policy = Slots(3), Fading(8)
    for experts in chosen:
        policy.used(experts, [0.1] * 8)
        for expert in experts:
            if expert not in slots.slot_of:
                if (victim := slots.victim(policy, experts)) is not None:
                    slots.drop(victim)
                slots.place(expert)
        assert set(experts) <= set(slots.slot_of)
        places = list(slots.slot_of.values())
        assert len(set(places)) == len(places) <= 3
        assert set(places) <= {0, 1, 2}


def test_counters():
    counters = Counters(rows=8, asked=16, hits=12, ahead=2, reads=8, wasted=2, bytes=800)
    counters.reading, counters.waiting = 0.5, 0.25
    told = counters.told(layers=4)
    assert (told.hit_rate, told.ahead_rate, told.wasted) == (0.75, 0.125, 0.25)
    assert (told.bytes_a_token, told.disk_rate, told.waiting_s) == (400, 1600, 0.125)
    assert told.bound_tps == 4
    later = counters.copy()
    later.asked += 2
    assert later.since(counters) == Counters(asked=2)
    assert Counters().told(4).bound_tps is None


# --- budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("12GB", Budget(bytes=12 * 10**9)),
        (" 12.5 gb ", Budget(bytes=125 * 10**8)),
        ("800MB", Budget(bytes=800 * 10**6)),
        ("2G", Budget(bytes=2 * 10**9)),
        ("1GiB", Budget(bytes=1 << 30)),
        (5000, Budget(bytes=5000)),
        ("50%", Budget(share=0.5)),
        ("100 %", Budget(share=1.0)),
    ],
)
def test_budgets(text, budget):
    assert Budget.of(text) == budget


@pytest.mark.parametrize("text", ["", "GB", "12XB", "-3GB", "0GB", "0%", "101%", "1e9", "12 GB x"])
def test_no_budgets(text):
    with pytest.raises(UsageError, match="say 12GB, 800MB or 50%"):
        Budget.of(text)


DEMAND = Demand(shared=100, expert=[10, 20, 10], experts=4, rest=50)


def test_a_budget_is_used_up_and_no_more():
    for more in range(150):
        slots = slots_within(Budget(bytes=DEMAND.least + more), DEMAND)
        taken = PROGRAM + DEMAND.rest + DEMAND.held(slots)
        assert min(slots) >= 1
        assert max(slots) <= 4
        assert taken <= DEMAND.least + more
        assert slots == (4, 4, 4) or taken + 20 > DEMAND.least + more
        assert (slots == (4, 4, 4)) == (DEMAND.least + more >= DEMAND.most)


def test_too_little_says_what_the_minimum_is():
    demand = Demand(10**9, [10**8] * 4, 8, 5 * 10**8)
    with pytest.raises(
        ModelError, match=r"^1\.00 GB are not enough; the minimum is 2\.08 GB: 1\.00"
    ):
        slots_within(Budget(bytes=10**9), demand)
    assert slots_within(Budget(bytes=demand.least), demand) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("share", "slots"), [(0.01, (1, 1, 1)), (0.5, (2, 2, 2)), (0.6, (3, 2, 2)), (0.99, (4, 4, 4))]
)
def test_shares(share, slots):
    assert slots_within(Budget(share=share), DEMAND) == slots


# --- projections


def test_a_projection_by_hand():
    """M2, 4 of 8 experts of 99 MB a layer in 32 layers: what ANCHORS' kind of reckoning gives."""
    expert, room = 99 * 10**6, 4 * 32 * 99 * 10**6
    found = from_disk(mac("M2", 16), room, expert, 32, 8, 2, (10.0, 20.0))
    low, high = found.tokens_a_second
    assert found.experts == 4
    assert low == pytest.approx(1 / (0.1 + 0.4 * 64 * expert / (0.7 * 1.6e9) + 32 * 0.35e-3))
    assert high == pytest.approx(1 / (0.05 + (1 - 0.689) * 64 * expert / 3.0e9 + 32 * 0.2e-3))
    assert from_disk(mac("M2", 16), 31 * expert, expert, 32, 8, 2, (10.0, 20.0)) is None


def test_more_room_is_never_slower():
    speeds = [
        from_disk(mac("M4", 24), n * 10**9, 10**8, 32, 8, 2, (10.0, 20.0)).tokens_a_second
        for n in range(4, 30)
    ]
    for side in zip(*speeds, strict=True):
        assert list(side) == sorted(side)
    assert all(low <= high for low, high in speeds)
    assert np.isclose(HITS_HERE[8], HITS_PUBLISHED[8])


def test_every_chip_has_an_ssd():
    for chip in CHIPS:
        low, high = ssd(chip)
        assert 1e9 < low <= high < 20e9
