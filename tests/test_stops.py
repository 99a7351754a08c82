"""Stop strings against the plain definition: cut the whole text at the first one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral.generation.stops import StopStrings

texts = st.text("ab\n", max_size=12)


@given(st.lists(texts, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_any_pieces_give_the_text_before_the_first_stop(pieces: list[str], stops: list[str]):
    matcher = StopStrings(stops)
    said = ""
    whole, arrived = "".join(pieces), ""
    for piece in pieces:
        arrived += piece
        said += matcher.push(piece)
        # Never any part of a stop string that has begun, nor text after one.
        assert (before(whole, stops)).startswith(said)
        # A stop is noticed with the very piece that completes it.
        assert matcher.stopped == any(stop in arrived for stop in stops)
    assert said + matcher.flush() == before(whole, stops)


def before(text: str, stops: list[str]) -> str:
    """Up to the stop string that is complete first; of those, the longest."""
    for end in range(len(text) + 1):
        if done := [s for s in stops if text[:end].endswith(s)]:
            return text[: end - max(map(len, done))]
    return text


def test_text_that_cannot_become_a_stop_string_passes_at_once():
    matcher = StopStrings(["</s>", "User:"])
    assert matcher.push("Hello") == "Hello"
    assert matcher.push(" Us") == " "
    assert matcher.push("e a lever") == "Use a lever"
    assert matcher.push("<") == ""
    assert matcher.flush() == "<"


def test_without_stop_strings_everything_passes():
    matcher = StopStrings(())
    assert matcher.push("anything") == "anything"
    assert matcher.flush() == ""
