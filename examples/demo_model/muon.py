"""The optimizers: Muon for matrices inside the layers, AdamW for the rest."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: five steps of a Newton-Schulz iteration."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    def step(self, pool: ThreadPoolExecutor) -> None:
        for group in self.param_groups:
            rest = (group["lr"], group["momentum"], group["decay"])
            jobs = [pool.submit(self.update, param, *rest) for param in group["params"]]
            for job in jobs:
                job.result()

    @torch.no_grad()
    def update(self, param: Tensor, lr: float, momentum: float, decay: float) -> None:
        mean = self.state[param].setdefault("m", torch.zeros_like(param))
        mean.lerp_(param.grad, 1 - momentum)
        step = orthogonal(param.grad.lerp(mean, momentum))
        scale = max(1, param.shape[-2] / param.shape[-1]) ** 0.5
        param.mul_(1 - lr * decay).add_(step, alpha=-lr * scale)


def optimizers(model: nn.Module) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the layers but the routers, AdamW for the rest."""
    inside = [p for n, p in model.named_parameters() if is_for_muon(n, p)]
    rest = [p for n, p in model.named_parameters() if not is_for_muon(n, p)]
    adam = torch.optim.AdamW(rest, 0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    return Muon(inside, 0.0), adam


def is_for_muon(name: str, param: Tensor) -> bool:
    return param.ndim >= 2 and "layers" in name and "gate" not in name
