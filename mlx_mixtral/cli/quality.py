"""``mixtral-mlx quality``: what a model's predictions are worth, and what quantizing it cost."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_mixtral.cli.options import ModelName
from mlx_mixtral.cli.sizes import size
from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from mlx_mixtral.lab.divergence import Estimate
    from mlx_mixtral.lab.heldout import Heldout
    from mlx_mixtral.lab.quality import Comparison, Quality
    from mlx_mixtral.lab.reference import Reference


def quality(
    model: ModelName = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What to compare with, as a rule the same model in 16 bits. It need not fit in "
            "memory; its predictions are kept on disk for the next comparison.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to measure on: running text, or chats (.jsonl, one a line: "
            '{"messages": [...]}), of which the last answers count. Default: a mixed text that '
            "comes with the program; for the demo model its own questions.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="Count at most so many tokens of the text.")
    ] = 8192,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the error by layer and expert."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as data.")] = False,
) -> None:
    """Measure a model's perplexity, and against a reference what quantizing it has cost.

    Against a reference: the divergence of its predictions, by layer and by expert the error of
    what they compute, and the share of the loss that is the router's.
    """
    if tokens < 2:
        raise UsageError(f"--tokens has to be at least 2, not {tokens}")
    if plot and reference is None:
        raise UsageError("--plot draws what was lost: name the model to compare with --reference")
    from mlx_mixtral.catalog import default_name, resolve
    from mlx_mixtral.cli.progress import progress_bar
    from mlx_mixtral.lab.plot import check_plot
    from mlx_mixtral.lab.quality import check_comparable
    from mlx_mixtral.lab.quality import quality as measure
    from mlx_mixtral.lab.quality_plot import plot as draw

    if plot:
        check_plot(plot)
    name = model or default_name()
    folder, other = resolve(name), resolve(reference) if reference else None
    if other:
        check_comparable(folder, other)
    cut = _cut([folder, *([other] if other else [])], text, tokens)
    against = (reference, _reference(reference, other, cut)) if reference and other else None
    with progress_bar(f"measuring {name}") as advance:
        found = measure(name, folder, cut, against, advance)
    if plot:
        draw(found, plot)
    _show(found, plot, as_json)


def _cut(folders: list[Path], text: Path | None, tokens: int) -> "Heldout":
    """The text in tokens; a model without tokenizer.model, as mlx-lm leaves one, is measured
    with its reference's."""
    from mlx_mixtral.lab.heldout import heldout

    able = [folder for folder in folders if any(folder.glob("tokenizer.model*"))]
    cuts = [heldout(folder, text, tokens) for folder in able or folders]
    if cuts[0].windows != cuts[-1].windows:
        name = cuts[0].file.name
        raise UsageError(f"{folders[0]} and {folders[-1]} cut {name} into different tokens")
    return cuts[0]


def _reference(name: str, folder: Path, cut: "Heldout") -> "Reference":
    """What the reference makes of the text, from disk or computed now."""
    from mlx_mixtral.cli.progress import progress_bar
    from mlx_mixtral.lab.reference import reference

    with progress_bar(f"reading the reference {name}") as advance:
        return reference(folder, cut, _tell, advance)


def _tell(need: int, folder: Path) -> None:
    print(
        f"the reference's predictions take {size(need)} of disk, kept for the next comparison: "
        f"{folder}",
        file=sys.stderr,
    )


# --- showing


def _show(found: "Quality", picture: Path | None, as_json: bool) -> None:
    from mlx_mixtral.cli.printable import printable

    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    print(printable("\n".join(_lines(found))))
    if picture:
        print(f"\nby layer and expert: {picture}")


def _lines(found: "Quality") -> list[str]:
    """The whole report for a person."""
    title = f"{found.model}: {size(found.nbytes)}, {found.bits_per_weight:.2f} bits a weight"
    if found.reference:
        title += f"; against {found.reference}"
    lines = [title, f"{found.text}: {found.rule}; {found.tokens:,} tokens counted"]
    if found.left_out:
        lines.append(f"of the text: {found.left_out}")
    lines += ["", *_perplexities(found)]
    if found.comparison:
        lines += ["", *_divergence(found.comparison), "", *_layers(found.comparison)]
    return lines


def _perplexities(found: "Quality") -> list[str]:
    comparison = found.comparison
    lines = [f"{'perplexity':<24}{_estimate(found.perplexity)}"]
    if comparison:
        lines[0] += f"; the reference's {_estimate(comparison.perplexity)}"
    if found.llama_perplexity:
        lines.append(f"{'  as llama.cpp cuts it':<24}{_estimate(found.llama_perplexity)}")
        if comparison and comparison.llama_perplexity:
            lines[-1] += f"; the reference's {_estimate(comparison.llama_perplexity)}"
    if comparison:
        lines.append(f"{'  over the reference':<24}{_estimate(comparison.perplexity_ratio)}")
    return lines


def _divergence(comparison: "Comparison") -> list[str]:
    kl = comparison.kl
    parts = {"median": kl.median, "90 %": kl.p90, "95 %": kl.p95, "99 %": kl.p99, "max": kl.max}
    values = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
    same = comparison.same_top
    lines = [
        f"{'KL divergence':<24}{_estimate(kl.mean)} nats a token; {values}",
        f"{'same top token':<24}{same.value:.2%} ± {same.error:.2%}",
    ]
    if comparison.kl_reference_routing:
        led = _estimate(comparison.kl_reference_routing)
        share = comparison.router_share
        lines.insert(1, f"{'  reference routing':<24}{led} with every token sent to its experts")
        if share is not None:
            lines[1] += f": the router's share is {share:.0%}"
    return lines


def _layers(comparison: "Comparison") -> list[str]:
    """A row a layer; errors in percent."""
    lines = [f"Errors in %, {comparison.watched:,} tokens watched"]
    sparse = comparison.kl_reference_routing is not None
    head = "layer   alone  so far"
    if sparse:
        count = len(comparison.layers[0].experts)
        head += "  same experts      " + "".join(f"{f'e{n}':>6}" for n in range(count))
    lines.append(head)
    for number, layer in enumerate(comparison.layers):
        line = f"{number:>5}  {100 * layer.own:>6.2f}  {100 * layer.cumulated:>6.2f}"
        if layer.router_own is not None and layer.router_cumulated is not None:
            line += f"  {layer.router_own:>6.1%}  {layer.router_cumulated:>6.1%}    "
            line += "".join(_cell(expert.error) for expert in layer.experts)
        lines.append(line)
    if sparse:
        lines += ["", f"{'Tokens sent to each expert':<42}" + head[-6 * count :]]
        for number, layer in enumerate(comparison.layers):
            cells = "".join(f"{expert.tokens:>6}" for expert in layer.experts)
            lines.append(f"{number:>5}{'':<37}{cells}")
    return lines


def _cell(error: float | None) -> str:
    return f"{'-':>6}" if error is None else f"{100 * error:>6.2f}"


def _estimate(of: "Estimate") -> str:
    """Digits as far as the error lets them mean anything."""
    digits = 4 if of.value < 100 else 2
    if of.value < 0.1:
        return f"{of.value:.4g} ± {of.error:.2g}"
    return f"{of.value:.{digits}f} ± {of.error:.{digits}f}"
