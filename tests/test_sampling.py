"""The choice of tokens against distributions computed by hand."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.sampling import Choice, Sampler, Sampling, choose_each

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def drawn(prompt: tuple[int, ...] = (3,), **settings: object) -> np.ndarray:
    """Share of each token over 4000 draws, all from one seed."""
    sampler = Sampler(Sampling.of(seed=1, **settings), prompt)
    tokens, _ = sampler(mx.array(np.tile(LOGITS, (4000, 1)), mx.float32))
    counts = Counter(tokens.tolist())
    return np.array([counts[i] / 4000 for i in range(len(LOGITS))])


def near(shares: np.ndarray, probabilities: np.ndarray) -> bool:
    """Within four standard deviations everywhere, and nothing where nothing may be."""
    deviation = np.sqrt(probabilities * (1 - probabilities) / 4000)
    return bool(np.all(np.abs(shares - probabilities) <= 4 * deviation))


def keep(mask: list[int]) -> np.ndarray:
    return softmax(np.where(mask, LOGITS, -np.inf))


def test_temperature_zero_takes_the_likeliest():
    token, logprob = Sampler(Sampling(), [0])(mx.array(LOGITS[None], mx.float32))
    assert token.item() == 0
    assert logprob.item() == pytest.approx(math.log(softmax(LOGITS)[0]), abs=1e-6)


def test_temperature():
    assert near(drawn(temperature=1.0), softmax(LOGITS))
    assert near(drawn(temperature=2.0), softmax(LOGITS / 2))
    assert not near(drawn(temperature=2.0), softmax(LOGITS))


def test_top_k():
    assert near(drawn(temperature=1.0, top_k=2), keep([1, 1, 0, 0, 0, 0]))
    assert near(drawn(temperature=1.0, top_k=1000), softmax(LOGITS))


def test_top_p():
    # Probabilities .55 .20 .12 .07 .03 .00: the first two reach .7, the first three .8.
    assert near(drawn(temperature=1.0, top_p=0.7), keep([1, 1, 0, 0, 0, 0]))
    assert near(drawn(temperature=1.0, top_p=0.8), keep([1, 1, 1, 0, 0, 0]))


def test_min_p():
    assert near(drawn(temperature=1.0, min_p=0.2), keep([1, 1, 1, 0, 0, 0]))


def test_logit_bias_forbids_and_forces():
    assert drawn(temperature=1.0, logit_bias={0: -100.0})[0] == 0
    assert drawn(temperature=1.0, logit_bias={5: 100.0})[5] == 1
    token, _ = Sampler(Sampling(logit_bias={3: 50.0}), [0])(mx.array(LOGITS[None], mx.float32))
    assert token.item() == 3


def test_logit_bias_leaves_the_reported_probability_alone():
    _, logprob = Sampler(Sampling(logit_bias={3: 50.0}), [0])(mx.array(LOGITS[None], mx.float32))
    assert logprob.item() == pytest.approx(math.log(softmax(LOGITS)[3]), abs=1e-6)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    penalized = LOGITS.copy()
    penalized[0] /= 1.5
    penalized[4] *= 1.5
    assert near(drawn((0, 4), temperature=1.0, repetition_penalty=1.5), softmax(penalized))
    assert not near(drawn((1,), temperature=1.0, repetition_penalty=1.5), softmax(penalized))


def test_repetition_penalty_remembers_what_it_chose_within_its_window():
    sampler = Sampler(Sampling(repetition_penalty=100.0, repetition_window=2), [5, 5])
    chosen = [sampler(mx.array(LOGITS[None], mx.float32))[0].item() for _ in range(5)]
    # 0 (2 -> .02), then 1 (1 -> .01), then 2: 0 is two back still; then 0 is free again.
    assert chosen == [0, 1, 2, 0, 1]


def test_a_seed_repeats_and_another_differs_whatever_else_draws():
    settings = Sampling(temperature=1.0, seed=7)

    def draw(settings: Sampling, disturb: bool) -> list[int]:
        sampler = Sampler(settings, [0])
        out = []
        for _ in range(50):
            if disturb:
                mx.random.seed(123)
                mx.eval(mx.random.normal((3,)))
            out.append(sampler(mx.array(LOGITS[None], mx.float32))[0].item())
        return out

    assert draw(settings, False) == draw(settings, True)
    assert draw(settings, False) != draw(Sampling(temperature=1.0, seed=8), False)


def test_without_a_seed_each_sampler_has_its_own_and_tells_it():
    first, second = Sampler(Sampling(temperature=1.0), [0]), Sampler(Sampling(temperature=1.0), [0])
    assert first.seed != second.seed


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": -1},
        {"top_k": 2.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_window": 0},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": (3,)},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: math.inf}},
        {"temprature": 1.0},
    ],
)
def test_a_bad_setting_is_one_clear_line_that_names_it(bad: dict[str, object]):
    with pytest.raises(UsageError) as caught:
        Sampling.of(**bad)
    assert next(iter(bad)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stop_may_be_one_text():
    assert Sampling(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


# --- what was said already


def test_frequency_and_presence_penalties_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the answer, not the prompt."""
    frequency, presence = 0.4, -0.3
    settings = Sampling(frequency_penalty=frequency, presence_penalty=presence)
    sampler, counts = Sampler(settings, [0, 0, 1]), np.zeros(len(LOGITS))
    for _ in range(40):
        want = LOGITS - frequency * counts - presence * (counts > 0)
        token, logprob = sampler(mx.array(LOGITS[None], mx.float32))
        best = int(token.item())
        assert want[best] == pytest.approx(want.max(), abs=1e-5)
        assert logprob.item() == pytest.approx(math.log(softmax(LOGITS)[best]), abs=1e-5)
        counts[best] += 1
    assert (counts > 0).sum() > 2


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.2, "temperature": 1.0, "seed": 1}])
def test_penalties_where_several_places_are_chosen_at_once(more: dict[str, float]) -> None:
    """As in verifying a draft: each place is penalized for those before it, and taken back."""
    settings = Sampling.of(frequency_penalty=0.7, presence_penalty=0.4, **more)
    rows = mx.array(np.random.default_rng(0).normal(size=(9, 6)), mx.float32)
    one, several = Sampler(settings, [0]), Sampler(settings, [0])
    singly = [int(one(rows[n : n + 1])[0].item()) for n in range(9)]
    at_once = several.successive(rows[:6])[0].tolist()
    assert at_once == singly[:6]
    several.keep(4)
    assert several.successive(rows[4:])[0].tolist() == singly[4:]


@pytest.mark.parametrize("value", [-2.1, 2.1, float("nan"), "1", True])
def test_penalties_out_of_range(value: object) -> None:
    for name in ("frequency_penalty", "presence_penalty"):
        with pytest.raises(UsageError, match=f"{name} has to be a number from -2 to 2"):
            Sampling.of(**{name: value})


# --- only some tokens


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.9}])
def test_only_allowed_tokens_are_chosen(settings: dict[str, float]) -> None:
    """The filters work on what is allowed; the log-probability stays the model's own."""
    allowed = [0, 0, 1, 1, 1, 0]
    sampler = Sampler(Sampling.of(temperature=1.0, seed=1, **settings), [3])
    tokens, logprobs = sampler(
        mx.array(np.tile(LOGITS, (4000, 1)), mx.float32), mx.array(allowed, mx.bool_)
    )
    counts = Counter(tokens.tolist())
    shares = np.array([counts[i] / 4000 for i in range(len(LOGITS))])
    kept = {"top_k": [0, 0, 1, 1, 0, 0], "top_p": [0, 0, 1, 0, 0, 0], "min_p": [0, 0, 1, 0, 0, 0]}
    assert near(shares, keep(kept[next(iter(settings))] if settings else allowed))
    want = np.log(softmax(LOGITS))[tokens.tolist()]
    assert np.allclose(logprobs, want, atol=1e-5)


def test_a_row_for_each_of_several_samplers() -> None:
    """As many one by one would choose, greedy ones together with others or among themselves."""
    rows = mx.array(np.random.default_rng(1).normal(size=(4, 6)), mx.float32)
    kinds: list[dict[str, float]] = [{}, {"temperature": 1.0, "seed": 5}, {}, {"top_k": 2}]
    for chosen in ([0, 1, 2, 3], [0, 2], [1], [0]):
        make = [partial(Sampler, Sampling.of(**kinds[n]), [0]) for n in chosen]
        masks = [mx.array([0, 1, 1, 1, 0, 0], mx.bool_) if n == 2 else None for n in chosen]
        picked = mx.array(chosen)
        choices = [Choice(one(), 1, mask) for one, mask in zip(make, masks, strict=True)]
        together = choose_each(choices, rows[picked])
        singly = [
            one()(rows[n : n + 1], mask)[0].item()
            for one, n, mask in zip(make, chosen, masks, strict=True)
        ]
        assert together.tolist() == singly


def test_several_rows_of_a_sampler_beside_others() -> None:
    """As one after another; what did not count leaves no trace."""
    rows = mx.array(np.random.default_rng(2).normal(size=(7, 6)), mx.float32)
    kinds = [Sampling(temperature=1.0, seed=5), Sampling(), Sampling(presence_penalty=2.0, seed=1)]
    several, single = ([Sampler(kind, [0]) for kind in kinds] for _ in range(2))
    chosen = choose_each(
        [Choice(several[0], 3), Choice(several[1], 1), Choice(several[2], 3)], rows
    )
    each = [0, 0, 0, 1, 2, 2, 2]
    assert chosen.tolist() == [
        single[n].choose(rows[row : row + 1]).item() for row, n in enumerate(each)
    ]
    again = Sampler(kinds[0], [0])
    again.choose(rows[:1])
    several[0].keep(1)
    assert several[0].choose(rows[4:5]).item() == again.choose(rows[4:5]).item()
