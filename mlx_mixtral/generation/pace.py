"""How long a draft should be, so that it pays. No tensors, and no clock of its own.

If each drafted token is right with probability p, a draft of n gives 1 + p + ... + p^n tokens
(Leviathan, Kalman, Matias 2023, arXiv:2211.17192): the right ones and one more. What it takes
to draft and to verify them no formula tells: it depends on the device, and in a mixture of
experts on how many experts the tokens choose together. So p is counted and the time is
measured, and the length with the most tokens a second wins, be it 0.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

# Lengths to choose among: few, because the time of each has to be measured.
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 11, 15)
# How often a length has to be measured to be judged, by the better time: the first is often slow.
SURE = 2
# Measurements that are remembered; their median (of two, the lower) ignores a reader's pause.
KEPT = 7
# Of a time not measured yet: each drafted token adds this share of an ordinary step.
SLOPE = 0.25
# Right tokens and all tokens before anything was drafted, and how fast the past is forgotten.
RIGHT, TRIED, MEMORY = 2.0, 3.0, 0.96
# Where drafting does not pay, trials of it may lose this share of the time in the long run.
SHARE = 0.01
# The most that may be lost before that, or be lost again of what was won; in ordinary steps.
PURSE = 6.0
# Ordinary steps before the first trial; twice as many before each further one.
PAUSE = 8
# So few tokens a draft model reads along with the last one, in about the same time.
NEAR = 2
# A cycle may take longer than usual by this share for no reason.
NOISE = 0.1


class Pace:
    """Learns what drafts cost and give, and chooses their length.

    Gains and losses of drafts against ordinary steps are booked in a purse. While it holds
    that drafts pay, they go on; where it holds that they do not, trials go on as the purse
    allows, ever more rarely. An empty purse stops both, so that whatever the estimates say,
    the loss stays within ``PURSE`` steps and a ``SHARE`` of the time.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._right, self._tried = RIGHT, TRIED
        self._purse = PURSE
        self._pause = self._waited = PAUSE
        self._reading: deque[float] = deque(maxlen=KEPT)  # seconds a token

    def length(self, most: int, behind: int = 0) -> int:
        """Tokens to draft now.

        Args:
            most: no more than that.
            behind: tokens that the draft model would have to read first.
        """
        if not self._sure(0):
            return 0
        lengths = [n for n in LENGTHS if n <= most and self._may_be_tried(n)]
        if len(lengths) < 2:
            return 0
        best = max(lengths, key=self._rate)
        if best:
            self._pause = self._waited = PAUSE
            return best
        trial = max(lengths[1:], key=self._rate)
        gain = self._gain(trial, self._expected(trial))
        gain -= behind * median_low(self._reading or [0.0]) / self.seconds(0)
        if self._waited < self._pause or self._purse + gain < 0:
            return 0
        self._waited, self._pause = 0, 2 * self._pause
        return trial

    def note(self, length: int, right: int, seconds: float, behind: int = 0) -> None:
        """Take note of a cycle: of its draft of ``length`` tokens the first ``right`` held.

        Args:
            behind: tokens that the draft model read first.
        """
        times = self._times.setdefault(length, deque(maxlen=KEPT))
        if behind <= NEAR:
            times.append(seconds)
        elif self._sure(length):
            # The draft model read what was said since its last draft: no matter of the length.
            excess = max(0.0, seconds - (1 + NOISE) * self.seconds(length))
            self._reading.append(excess / behind)
            self._book(-excess / self.seconds(0))
        if length:
            self._right = MEMORY * self._right + right
            self._tried = MEMORY * self._tried + min(right + 1, length)
            self._book(self._gain(length, right + 1))
        else:
            self._waited += 1
            self._book(SHARE)

    def seconds(self, length: int) -> float:
        """What a cycle takes: as measured; else as cheap as a token of a draft has ever been."""
        if self._sure(length):
            return median_low(self._times[length])
        one = median_low(self._times[0])
        sure = [n for n in self._times if n and self._sure(n)]
        slope = min([SLOPE, *((self.seconds(n) / one - 1) / n for n in sure)])
        return one * (1 + slope * length)

    def _expected(self, length: int) -> float:
        """Tokens that a draft gives on average."""
        p = self._right / self._tried
        return sum(p**n for n in range(length + 1))

    def _rate(self, length: int) -> float:
        return self._expected(length) / self.seconds(length)

    def _gain(self, length: int, tokens: float) -> float:
        """Ordinary steps that a draft saves, given how many tokens it gives."""
        return tokens - self.seconds(length) / self.seconds(0)

    def _book(self, steps: float) -> None:
        self._purse = max(-PURSE, min(self._purse + steps, PURSE))

    def _may_be_tried(self, length: int) -> bool:
        """Whether the purse could bear it if each drafted token took an ordinary step."""
        return self._sure(length) or length + 1 - self._expected(length) <= self._purse

    def _sure(self, length: int) -> bool:
        return len(self._times.get(length, ())) >= SURE
