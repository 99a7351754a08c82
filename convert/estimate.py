"""How long quantizing will take on this machine, told by a few samples of it.

Reading and writing are not counted: a disk takes them at the same time.
"""

import math
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from convert.feedback import Feedback, rounded
from convert.plan import Job, Plan
from convert.quantize import Effort, quantize
from convert.run import in_parallel
from mlx_mixtral.config import QuantSpec

_SIDE = 1024


def expected_seconds(plan: Plan) -> float:
    """Of quantizing all that ``plan`` quantizes; takes about a second itself."""
    simple: dict[Effort, int] = {"fast": 0, "better": 0}
    for job in plan.jobs:
        if job.spec and not job.kept and not _calibrated(job):
            simple["fast" if job.effort == "fast" else "better"] += math.prod(job.part.shape)
    seconds = sum(size * _seconds_a_weight(effort) for effort, size in simple.items() if size)
    return seconds + (_best(plan) if plan.calibrated else 0)


def _calibrated(job: Job) -> bool:
    """Embeddings have no inputs to be calibrated by."""
    return job.effort == "best" and "embed_tokens" not in job.name


def _seconds_a_weight(effort: Effort) -> float:
    weight = mx.random.normal((256, _SIDE)).astype(mx.bfloat16)
    mx.eval(weight)

    def sample(_: int) -> None:
        quantize(weight, mx.bfloat16, QuantSpec(4, 64), effort)

    count = 6
    in_parallel(sample, range(count))  # warm
    return _timed(lambda: in_parallel(sample, range(count))) / (count * weight.size)


def _best(plan: Plan) -> float:
    """From the operations that each matrix takes, and what this machine does of each a second."""
    x = np.ones((_SIDE, _SIDE), np.float32)
    product = _timed(lambda: x @ x) / (2 * _SIDE**3)
    moments = np.eye(_SIDE, dtype=np.float32)
    factor = _timed(lambda: Feedback.of(moments.copy)) / (_SIDE**3 / 3)
    feedback = Feedback.of(moments.copy)
    narrow = np.ones((256, _SIDE), np.float32)
    few = Feedback(feedback.shares[:256, :256], feedback.importance[:256])
    step = _timed(lambda: rounded(narrow, few, QuantSpec(4, 64), mx.bfloat16)) / narrow.size
    tokens = plan.calibration.ids.size if plan.calibration else 0
    config = plan.config
    share = config.num_experts_per_tok / config.num_local_experts if config.is_moe else 1
    seconds = 0.0
    for job in plan.jobs:
        if not _calibrated(job):
            continue
        rows, columns = job.part.shape
        mine = tokens * (share if job.count > 1 else 1)
        # One of gate and up, and of q, k and v, finds the moments of the other there.
        first = not any(name in job.name for name in ("up_proj", "k_proj", "v_proj"))
        products = 2 * mine * rows * columns + rows * columns**2 + first * 2 * mine * columns**2
        seconds += products * product + first * columns**3 / 3 * factor + rows * columns * step
    return seconds


def _timed(work: Callable[[], object]) -> float:
    work()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
