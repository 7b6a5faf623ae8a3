"""Muon for the matrices inside blocks, AdamW for the rest; states are plain tensors, saved by name."""

from typing import Any

import torch
from torch import nn

each: Any = torch  # the _foreach functions take whole lists; they are not in its public names

NEWTON = (3.4445, -4.7750, 2.0315)  # the usual quintic: pushes all singular values towards one


def orthogonal(x: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices to a stack (n, rows, columns), in bfloat16."""
    a, b, c = NEWTON
    x = x.bfloat16()
    flip = x.shape[1] > x.shape[2]
    x = x.mT if flip else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if flip else x).float()


class Optimizer:
    def __init__(self, model: nn.Module, muon: bool = True, decay: float = 0.1):
        self.model, self.decay = model, decay
        named = dict(model.named_parameters())
        inner = {n: p for n, p in named.items() if muon and ".layers." in n and p.dim() == 2 and min(p.shape) >= 32}
        self.rest = {n: p for n, p in named.items() if n not in inner}
        self.stacks: dict[tuple, list[str]] = {}
        for name, parameter in inner.items():
            self.stacks.setdefault(tuple(parameter.shape), []).append(name)
        self.inner = inner
        self.state = {f"momentum.{n}": torch.zeros_like(p) for n, p in inner.items()}
        for name, parameter in self.rest.items():
            self.state[f"first.{name}"] = torch.zeros_like(parameter)
            self.state[f"second.{name}"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, number: int, rate: float, clip: float = 1.0) -> float:
        """One update at relative learning rate `rate` (1 is the plateau); the norm of the gradient comes back."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(each._foreach_norm(gradients))).item()
        if norm > clip:
            each._foreach_mul_(gradients, clip / norm)
        for names in self.stacks.values():
            self.muon(names, 0.012 * rate)
        self.adam(number, 3e-3 * rate)
        for parameter in self.model.parameters():
            parameter.grad = None
        return norm

    def muon(self, names: list[str], rate: float) -> None:
        names = [n for n in names if self.inner[n].grad is not None]  # dropped blocks have none
        if not names:
            return
        momenta = [self.state[f"momentum.{n}"] for n in names]
        gradients = [self.inner[n].grad for n in names]
        each._foreach_lerp_(momenta, gradients, 0.05)
        ahead = each._foreach_lerp(gradients, momenta, 0.95)  # Nesterov
        rows, columns = momenta[0].shape
        updates = orthogonal(torch.stack(ahead)) * max(1.0, rows / columns) ** 0.5
        for name, update in zip(names, updates, strict=True):
            self.inner[name].mul_(1 - rate * self.decay).sub_(update, alpha=rate)

    def adam(self, number: int, rate: float) -> None:
        names = [n for n, p in self.rest.items() if p.grad is not None]
        parameters = [self.rest[n] for n in names]
        gradients = [p.grad for p in parameters]
        first, second = ([self.state[f"{kind}.{n}"] for n in names] for kind in ("first", "second"))
        each._foreach_lerp_(first, gradients, 0.1)
        each._foreach_mul_(second, 0.98)
        each._foreach_addcmul_(second, gradients, gradients, 0.02)
        corrected = each._foreach_div(second, 1 - 0.98**number)
        each._foreach_sqrt_(corrected)
        each._foreach_add_(corrected, 1e-8)
        each._foreach_addcdiv_(parameters, first, corrected, value=-rate / (1 - 0.9**number))
