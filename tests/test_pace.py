"""The length of drafts, in simulations with known costs and chances."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mlx_mixtral.generation.pace import LENGTHS, PURSE, SHARE, SURE, Pace

Cost = Callable[[int], float]


def given_tokens(p: float, length: int) -> float:
    return sum(p**n for n in range(length + 1))


def dense(n: int) -> float:
    """A draft model at a tenth of the cost, and a pass that hardly minds more tokens."""
    return 1 + 0.12 * n


def experts(n: int) -> float:
    """A pass reads the experts that its tokens choose, two of eight each; draft at a tenth."""
    return 0.2 + 0.4 * 8 * (1 - 0.75 ** (n + 1)) + 0.1 * n


def costly(n: int) -> float:
    """The same with a draft at half the cost: Mistral 7B for Mixtral 8x7B."""
    return experts(n) + 0.4 * n


def linear(n: int) -> float:
    """Each token takes two thirds of a step, as on MLX's CPU backend."""
    return 1 + 0.75 * n


class Simulation:
    """Answers whose drafts come true by chance. Times vary, and now and then somebody waits."""

    def __init__(self, cost: Cost, seed: int = 0, to_read: float = 0.0) -> None:
        self.pace, self.cost, self.to_read = Pace(), cost, to_read
        self.random, self.behind = random.Random(seed), 0
        self.lengths: list[int] = []

    def rate(self, p: float, tokens: int) -> float:
        """Tokens a second over so many."""
        said, seconds = 0, 0.0
        while said < tokens:
            length = self.pace.length(100, self.behind)
            right = 0
            while right < length and self.random.random() < p:
                right += 1
            took = self.cost(length) * self.random.lognormvariate(0, 0.05)
            took += self.behind * self.to_read if length else 0.0
            pause = 50.0 if self.random.random() < 0.01 else 0.0
            self.pace.note(length, right, took + pause, self.behind if length else 0)
            self.behind = 0 if length else self.behind + 1
            self.lengths.append(length)
            said, seconds = said + right + 1, seconds + took
        return said / seconds


@pytest.mark.parametrize("cost", [dense, experts, costly, linear], ids=lambda f: f.__name__)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.8, 0.9, 0.97, 1.0])
def test_it_comes_close_to_the_best_fixed_length(cost: Cost, p: float):
    best = max(given_tokens(p, n) / cost(n) for n in range(max(LENGTHS) + 1))
    reached = [Simulation(cost, seed).rate(p, 2000) / best for seed in range(6)]
    assert sum(reached) / 6 > 0.95


@pytest.mark.parametrize("cost", [experts, costly, linear], ids=lambda f: f.__name__)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_where_no_draft_pays_little_is_lost(cost: Cost, p: float):
    reached = [Simulation(cost, seed).rate(p, 600) for seed in range(6)]
    assert sum(reached) / 6 > 0.97
    later = Simulation(cost)
    later.rate(p, 600)
    assert later.rate(p, 2000) > 0.99


def test_trials_become_rare():
    simulation = Simulation(costly)
    simulation.rate(0.2, 4000)
    trials = [n for n, length in enumerate(simulation.lengths) if length]
    assert 5 < len(trials) < 30
    assert len([n for n in trials if n > 2000]) <= 2


def test_a_trial_is_not_made_where_reading_up_would_cost_too_much():
    cheap, dear = Simulation(experts, to_read=0.001), Simulation(experts, to_read=0.2)
    cheap.rate(0.2, 3000)
    assert dear.rate(0.2, 3000) > 0.97
    assert sum(map(bool, dear.lengths[300:])) < sum(map(bool, cheap.lengths[300:]))


def test_it_follows_a_text_that_changes():
    simulation = Simulation(dense)
    for p in (0.9, 0.1, 0.9):
        simulation.rate(p, 1500)
        best = max(given_tokens(p, n) / dense(n) for n in LENGTHS)
        assert simulation.rate(p, 1500) > 0.93 * best


def test_whatever_the_estimates_say_the_loss_is_bounded():
    """Costs that change so that each length looks good once and is bad for ever after."""
    pace, seconds, said, seen = Pace(), 0.0, 0, dict.fromkeys(LENGTHS, 0)
    while said < 3000:
        length = pace.length(100)
        seen[length] += 1
        took = 1.0 if seen[length] <= SURE else 1.0 + length
        pace.note(length, 0, took)
        seconds, said = seconds + took, said + 1
    assert seconds - said < 3 * PURSE + 2 * SHARE * said


def test_nothing_is_drafted_before_ordinary_steps_were_measured_nor_where_there_is_no_room():
    pace = Pace()
    for _ in range(SURE):
        assert pace.length(100) == 0
        pace.note(0, 0, 1.0)
    assert pace.length(100) > 0
    assert [pace.length(most) for most in (-1, 0, 1)] == [0, 0, 1]


def test_a_slow_first_time_is_not_the_last_word():
    pace = Pace()
    for n in range(40):
        length = pace.length(3)
        first = length and not pace._times.get(length)
        pace.note(length, length, 30.0 if first else 1.0 + 0.1 * length)
        assert n < 30 or length == 3
