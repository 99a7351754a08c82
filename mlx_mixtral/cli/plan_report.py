"""What ``mixtral-mlx plan`` found, for a person."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_mixtral.cli.sizes import size

if TYPE_CHECKING:
    from mlx_mixtral.cli.plan import Subject
    from mlx_mixtral.lab.chips import Mac
    from mlx_mixtral.lab.planning import Estimate, Use

WIDTH = 79
SPEEDS = (
    "Tokens a second: with a full context to with an empty one, by what others have reported of "
    "llama.cpp and MLX; this program has not been measured on a Mac yet."
)


def lines_for_one(
    subject: "Subject", use: "Use", mac: "Mac", estimates: "Sequence[Estimate]"
) -> list[str]:
    """A row for each form of the model on one Mac, and what to do."""
    lines = [*_about(subject, use, estimates[0]), ""]
    least = "" if mac.measured else "at least "
    lines += _wrapped(
        f"{_called(mac)}, {mac.chip.bandwidth / 1e9:g} GB/s: of {size(mac.memory)} of memory "
        f"macOS gives the GPU {least}{size(mac.gpu_limit)}."
    )
    lines += ["", f"{'':<11}{'disk':>9}{'weights':>10}{'in all':>10}   {'fits':<19}tokens a second"]
    for e in estimates:
        cells = f"{e.name:<11}{size(e.disk):>9}{size(e.resident):>10}{size(e.need):>10}"
        lines.append(f"{cells}   {_verdict(e):<19}{speed(e) if e.possible else '-'}".rstrip())
    lines += ["", *_raising(mac, estimates), *_advice(subject, mac, estimates)]
    return [*lines, "", *_wrapped(SPEEDS), *_from_disk(mac, estimates)]


def lines_for_many(
    subject: "Subject", use: "Use", found: "Sequence[tuple[Mac, list[Estimate]]]"
) -> list[str]:
    """A row for each Mac with the best forms of the model."""
    from mlx_mixtral.lab.planning import recommended

    lines = [*_about(subject, use, found[0][1][0]), ""]
    head = f"{'Mac':<18}{'GPU limit':>9}   {'best that fits':<21}with a raised limit"
    rows, without = [], []
    for mac, estimates in found:
        fitting = recommended([e for e in estimates if e.fits])
        raised = recommended(estimates, raised=True)
        if raised is None:
            without.append(mac)
            continue
        raised = None if raised == fitting else raised
        cells = f"{_called(mac):<18}{size(mac.gpu_limit):>9}   {_best(fitting):<21}{_best(raised)}"
        rows.append(cells.rstrip())
    lines += [head, *rows] if rows else []
    if without:
        names = "; ".join(_called(mac) for mac in without)
        lines += ["", *_wrapped(f"No form of it fits: {names}.")]
    lines += ["", *_wrapped(SPEEDS)]
    return [*lines, "", "One Mac in full: mixtral-mlx plan --chip 'M3 Max' --memory 64GB"]


def speed(estimate: "Estimate") -> str:
    """A range in whole tokens, rounded outward."""
    low, high = estimate.tokens_a_second
    return f"{math.floor(low + 1e-6)}-{math.ceil(high - 1e-6)}"


def _about(subject: "Subject", use: "Use", estimate: "Estimate") -> list[str]:
    kv = f"{size(estimate.kv)} for the keys and values of {use.context:,} tokens"
    text = f"{subject.name}: beside the weights {kv}, {size(estimate.work)} to work in."
    if subject.download:
        text += f" To download in 16 bits: {size(subject.download)}."
    return _wrapped(text)


def _called(mac: "Mac") -> str:
    return f"{mac.chip.name}, {mac.gigabytes} GB"


def _verdict(estimate: "Estimate") -> str:
    if estimate.fits:
        return "yes"
    return f"limit {estimate.wired_limit_mb} MB" if estimate.possible else "no"


def _best(estimate: "Estimate | None") -> str:
    return f"{estimate.name}, {speed(estimate)}" if estimate else "-"


def _raising(mac: "Mac", estimates: "Sequence[Estimate]") -> list[str]:
    """How to make room for what does not fit as it is, and what that risks."""
    raised = next((e for e in estimates if not e.fits and e.possible), None)
    if raised is None or raised.wired_limit_mb is None:
        return []
    left = mac.memory - (raised.wired_limit_mb << 20)
    risk = (
        f"for {raised.name}: it leaves {size(left)} to macOS and all other programs. If that is "
        "too little, the Mac stalls or restarts: close what you do not need. A restart takes the "
        "limit back."
    )
    command = f"    sudo sysctl iogpu.wired_limit_mb={raised.wired_limit_mb}"
    return ["A higher limit makes room,", "", command, "", *_wrapped(risk), ""]


def _advice(subject: "Subject", mac: "Mac", estimates: "Sequence[Estimate]") -> list[str]:
    """One sentence."""
    from mlx_mixtral.lab.planning import recommended

    best = recommended(estimates)
    if best is None:
        return _wrapped(_too_large(subject, mac))
    if len(estimates) == 1:
        text = f"Recommended: mixtral-mlx chat {subject.source}"
    else:
        text = f"Recommended: mixtral-mlx convert {subject.source} -o OUT --recipe {best.name}"
    if not best.fits:
        return _wrapped(f"{text}, with the limit raised: nothing fits without.")
    if best == estimates[-1] or best.name in ("8bit", "as it is"):
        return _wrapped(f"{text}, which fits.")
    room = best.gpu_limit - best.need + best.disk
    return _wrapped(f"{text}, the best that fits; --fit {room / 1e9 - 0.05:.1f}GB uses all room.")


def _from_disk(mac: "Mac", estimates: "Sequence[Estimate]") -> list[str]:
    """What does not fit, with experts read from the SSD."""
    rows = [
        f"{e.name:<11}{e.from_disk.experts:>8.1f} experts a layer in memory"
        f"{'{:.2g} to {:.2g}'.format(*e.from_disk.tokens_a_second):>16} tokens a second"
        for e in estimates
        if e.from_disk and not e.fits
    ]
    if not rows:
        return []
    option = f"--memory {mac.gpu_limit // 10**8 / 10:g}GB"
    text = (
        f"What does not fit can run with experts read from the SSD ({option}). How fast is a "
        "projection from this program's hit rates, published ones, and SSDs' published speeds:"
    )
    return ["", *_wrapped(text), "", *rows]


def _too_large(subject: "Subject", mac: "Mac") -> str:
    text = f"No form of {subject.name} fits a Mac with {mac.gigabytes} GB"
    if subject.config.is_moe:
        return f"{text} whole: take Mistral 7B (mixtral-mlx plan 7b-instruct), or see below."
    return f"{text} at this context: give a smaller --context."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)
