"""Stop strings, matched on text: they may begin and end anywhere, inside tokens too."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on, up to the first stop string, and never a part of one.

    A tail that may still grow into a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """More text; what of it (and of what was held) is certain now."""
        if self.stopped or not text:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            # The one complete first: so it does not matter how the text came in pieces.
            self.stopped = True
            return self._held[: min(found)[1]]
        keep = self._undecided()
        passed, self._held = (
            self._held[: len(self._held) - keep],
            self._held[-keep:] if keep else "",
        )
        return passed

    def flush(self) -> str:
        """No more text comes: what was held back, since no stop string can complete it."""
        rest = "" if self.stopped else self._held
        self._held = ""
        return rest

    def _undecided(self) -> int:
        """The length of the longest tail that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:n]):
                    longest = n
                    break
        return longest
