"""What rounding a matrix loses: mx.quantize (`--effort fast`) against `--effort better`.

    python examples/quantizers.py [--shape 14336 4096]

The error is the root mean square of the difference, in groups of 64, relative to that of the
weights. The demo's matrices are all of those that are multiplied, the router aside; it comes
in 6 bits, so these are weights that were rounded once before.
"""

import argparse
import time

import mlx.core as mx
import numpy as np

from convert.quantize import Effort, dequantize, quantize
from mlx_mixtral import load
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.weights import expected_shapes, open_weights

PARAMETERS = 46.7e9
"""Of Mixtral 8x7B."""


def gaussian_with_outliers(rows: int, columns: int) -> mx.array:
    """One in a hundred is five times as wide."""
    rng = np.random.default_rng(0)
    wide = np.where(rng.random((rows, columns)) < 0.01, 5, 1)
    return mx.array((0.02 * wide * rng.standard_normal((rows, columns))).astype(np.float32))


def matrices_of_the_demo() -> list[mx.array]:
    folder = load("demo").path
    config = read_config(folder)
    tensors, found = open_weights(folder, config), []
    for path, shape in expected_shapes(config).items():
        if f"{path}.scales" in tensors:
            parts = [tensors[f"{path}.{kind}"].read() for kind in ("weight", "scales", "biases")]
            found.append(
                dequantize(tuple(parts), config.quantization.of(path)).reshape(-1, shape[-1])
            )
    return found


def lost(weights: list[mx.array], bits: int, effort: Effort) -> float:
    """The relative error over all of them."""
    error = size = 0.0
    for weight in weights:
        weight = weight.astype(mx.bfloat16)
        spec = QuantSpec(bits, 64)
        made = dequantize(quantize(weight, mx.bfloat16, spec, effort), spec)
        whole = np.array(weight.astype(mx.float32), np.float64)
        error += float(((np.array(made, np.float64) - whole) ** 2).sum())
        size += float((whole**2).sum())
    return (error / size) ** 0.5


def seconds(rows: int, columns: int, effort: Effort) -> float:
    weight = gaussian_with_outliers(rows, columns).astype(mx.bfloat16)
    mx.eval(weight)
    start = time.perf_counter()
    mx.eval(quantize(weight, mx.bfloat16, QuantSpec(4, 64), effort))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=2, default=(1024, 1024))
    rows, columns = parser.parse_args().shape
    of = {"Gaussian with outliers": [gaussian_with_outliers(512, 1024)]}
    of["demo model"] = matrices_of_the_demo()
    print(f"{'':22}  bits    fast  better")
    for name, weights in of.items():
        for bits in (8, 6, 5, 4, 3, 2):
            fast, better = (lost(weights, bits, effort) for effort in ("fast", "better"))
            print(f"{name:22}  {bits:4}  {fast:6.4f}  {better:6.4f}  ({better / fast - 1:+.1%})")
    print(f"\n{rows} x {columns}, one thread, and from that 8x7B, 4 bits:")
    for effort in ("fast", "better"):
        took = seconds(rows, columns, effort)
        hours = took / (rows * columns) * PARAMETERS / 3600
        print(f"{effort:6}  {took:6.2f} s  {hours:5.2f} h")


if __name__ == "__main__":
    main()
