"""Makes golden.npz: small matrices packed, and unpacked again, by the programs that others use.

Not run by the tests. It needs torch, transformers and, installed without their dependencies,
auto-gptq 0.7.1, gptqmodel 7.7.0, autoawq 0.2.9 and hqq 0.2.8:

    python tests/golden_gptq/make.py
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch


def bare(*packages):
    """Put packages in place without running their own start, which wants a GPU and much else."""
    for name in packages:
        top, *rest = name.split(".")
        spec = sys.modules.get(top) or importlib.util.find_spec(top)
        root = spec.__path__ if rest else spec.submodule_search_locations
        module = types.ModuleType(name)
        module.__path__ = [str(Path(root[0], *rest))]
        module.DEBUG_ON, module.DEVICE_THREAD_POOL = False, None
        sys.modules[name] = module


bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
bare("gptqmodel", "gptqmodel.models")

from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear as AutoGptq  # noqa: E402
from awq.modules.linear.gemm import WQLinear_GEMM as AwqGemm  # noqa: E402
from awq.modules.linear.gemv import WQLinear_GEMV as AwqGemv  # noqa: E402
from awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from gptqmodel.utils.backend import BACKEND  # noqa: E402
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module  # noqa: E402
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # noqa: E402

OUT, IN = 32, 128
ROWS = 8  # of the weights as the program unpacks them, to keep the file small
rng = np.random.default_rng(7)
golden = {}


def draw(bits, size, *, zeros="middle", shuffled=False):
    """Codes [OUT, IN], scales [OUT, G], zeros [OUT, G], the group of each column, the weights."""
    groups = np.arange(IN) // size
    if shuffled:
        groups = rng.permutation(groups)
    codes = rng.integers(0, 1 << bits, (OUT, IN))
    # Few digits, so that what the packers compute from the weights is exactly the codes again.
    scales = rng.integers(512, 1024, (OUT, IN // size)) / 2.0**16
    zero = np.full(scales.shape, 1 << bits - 1)
    if zeros != "middle":
        zero = rng.integers(0 if zeros == "any" else 1, 1 << bits, scales.shape)
    weights = scales[:, groups] * (codes - zero[:, groups])
    return codes, scales, zero, groups, weights


def linear(weights):
    module = torch.nn.Linear(IN, OUT, bias=False)
    module.weight.data = torch.tensor(weights, dtype=torch.float32)
    return module


def keep(name, module, drawn, weights):
    codes, _, zeros, _, _ = drawn
    for kind in ("qweight", "qzeros", "scales", "g_idx"):
        if getattr(module, kind, None) is not None:
            value = getattr(module, kind)
            golden[f"{name}/{kind}"] = (
                value.to(torch.float16 if kind == "scales" else torch.int32).numpy().copy()
            )
    golden[f"{name}/codes"] = codes.astype(np.uint8)
    golden[f"{name}/zeros"] = zeros.astype(np.uint8)
    if weights is not None:
        golden[f"{name}/weights"] = np.asarray(weights, np.float16)[:ROWS]


def tensors(drawn):
    _, scales, zeros, groups, _ = drawn
    return (
        torch.tensor(scales, dtype=torch.float32),
        torch.tensor(zeros, dtype=torch.float32),
        torch.tensor(groups, dtype=torch.int32),
    )


def auto_gptq(name, bits, drawn, size):
    module = AutoGptq(bits, size, IN, OUT, bias=False)
    module.pack(linear(drawn[4]), *tensors(drawn))
    module.autogptq_cuda_available = False
    module.scales = module.scales.to(torch.float16)
    with torch.no_grad():
        keep(name, module, drawn, module.forward(torch.eye(IN).half()).T.numpy())


def gptqmodel(name, bits, drawn, size):
    module = TorchLinear(
        bits=bits, group_size=size, sym=False, desc_act=True, in_features=IN, out_features=OUT,
        bias=False, pack_dtype=torch.int32, backend=BACKEND.TORCH, register_buffers=True,
    )  # fmt: skip
    module.pack(linear(drawn[4]), *tensors(drawn))
    module.enable_wf_unsqueeze = True
    module.post_init()
    weights = module.dequantize_weight().T.detach().numpy()
    keep(name, module, drawn, weights)  # format gptq_v2; in the older one only qzeros differ
    convert_gptq_v2_to_v1_format_module(
        module, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32)
    )
    golden[f"{name}/qzeros_v1"] = module.qzeros.numpy()


for bits in (2, 3, 4, 8):
    auto_gptq(f"autogptq-{bits}-sym", bits, draw(bits, 32), 32)
    drawn = draw(bits, 32, zeros="positive", shuffled=True)
    auto_gptq(f"autogptq-{bits}-order", bits, drawn, 32)
    gptqmodel(f"gptqmodel-{bits}", bits, draw(bits, 64, zeros="any", shuffled=bits == 4), 64)
auto_gptq("autogptq-4-row", 4, draw(4, IN), -1)

for size in (32, 64, 128):
    drawn = draw(4, size, zeros="any")
    scales, zeros, _ = tensors(drawn)
    if size != 64:
        gemm = AwqGemm.from_linear(
            linear(drawn[4]), 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
        )
        weights = dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, size).T
        keep(f"gemm-{size}", gemm, drawn, weights.numpy())
    gemv = AwqGemv.from_linear(linear(drawn[4]), 4, size, scales=scales, zeros=zeros)
    keep(f"gemv-{size}", gemv, drawn, None)  # it has no dequantizer without a GPU

HQQ_KINDS = ("W_q", "scale", "zero", "nbits", "group_size", "axis", "shape")
torch.manual_seed(7)
for bits, size, axis, floats in (
    (4, 64, 1, False), (4, 64, 0, False), (4, 64, 1, True), (3, 64, 1, False), (3, 32, 0, False),
    (2, 32, 1, False), (1, 64, 1, False), (5, 128, 1, False), (8, 128, 1, False),
):  # fmt: skip
    config = BaseQuantizeConfig(bits, group_size=size, axis=axis, view_as_float=floats)
    weights = torch.randn(OUT, IN) / 50
    module = HQQLinear(linear(weights.numpy()), config, compute_dtype=torch.float32, device="cpu")
    name = f"hqq-{bits}-{size}-{axis}" + "-float" * floats
    for kind, value in module.state_dict().items():
        if name == "hqq-4-64-1" or kind in HQQ_KINDS:  # the rest is the same everywhere
            golden[f"{name}/{kind}"] = value.detach().numpy()
    golden[f"{name}/weights"] = module.dequantize().half().numpy()[:ROWS]

np.savez_compressed(Path(__file__).with_name("golden.npz"), **golden)
