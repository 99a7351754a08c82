"""What was lost in which layer and expert, as a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mlx_mixtral.lab.quality import Comparison, Quality


def plot(found: Quality, file: Path) -> None:
    """Error of the hidden state over the layers; below it, of a mixture of experts, the share
    of tokens that keep their experts, and the error of each expert."""
    comparison = found.comparison
    assert comparison is not None  # the command line asks for a reference
    sparse = comparison.kl_reference_routing is not None
    rows = 3 if sparse else 1
    size = (7.2, 2.2 + 2.4 * rows)
    figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    _hidden(panels[0], comparison)
    if sparse:
        _router(panels[1], comparison)
        _experts(figure, panels[2], comparison)
    panels[-1].set_xlabel("layer")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    kl, same = comparison.kl.mean, comparison.same_top
    figure.suptitle(
        f"{found.model} ({found.bits_per_weight:.2f} bits a weight) against {found.reference}\n"
        f"KL {kl.value:.4g} ± {kl.error:.2g} nats, same top token {same.value:.1%}, "
        f"perplexity x {comparison.perplexity_ratio.value:.4f}",
        fontsize=9,
    )
    figure.savefig(file, dpi=150)


def _hidden(axes: Any, comparison: Comparison) -> None:
    layers = range(len(comparison.layers))
    own = [100 * layer.own for layer in comparison.layers]
    cumulated = [100 * layer.cumulated for layer in comparison.layers]
    axes.plot(layers, cumulated, "o-", markersize=4, label="after all layers so far")
    axes.plot(layers, own, "s-", markersize=4, label="by this layer alone")
    axes.set_ylabel("error of the\nhidden state, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _router(axes: Any, comparison: Comparison) -> None:
    layers = range(len(comparison.layers))
    own = [100 * (layer.router_own or 0) for layer in comparison.layers]
    cumulated = [100 * (layer.router_cumulated or 0) for layer in comparison.layers]
    axes.plot(layers, own, "s-", color="C1", markersize=4, label="given the reference's input")
    axes.plot(layers, cumulated, "o-", color="C0", markersize=4, label="as it runs")
    axes.set_ylabel("tokens with the\nsame experts, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _experts(figure: Any, axes: Any, comparison: Comparison) -> None:
    errors = np.array(
        [
            [np.nan if expert.error is None else 100 * expert.error for expert in layer.experts]
            for layer in comparison.layers
        ]
    )
    image = axes.imshow(errors.T, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_ylabel("expert")
    axes.set_yticks(range(errors.shape[1]))
    figure.colorbar(image, ax=axes, label="error of its answer, %", pad=0.01)
