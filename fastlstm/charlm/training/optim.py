"""Optimiser, gradient clipping and learning rate schedule, on all weights as one flat vector.

Clipping and the update are then a few operations, whatever the number of layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import TrainConfig


class FlatParameters:
    """A module's parameters as views of one vector.

    Attributes:
        vector: (n,), matrices first, then biases; its gradient (n,) is filled by `gather`
        matrices: number of elements in matrices
    """

    def __init__(self, module: nn.Module):
        self.parameters = sorted(
            module.parameters(), key=lambda parameter: parameter.dim() < 2
        )  # stable: matrices first
        self.matrices = sum(part.numel() for part in self.parameters if part.dim() >= 2)
        with torch.no_grad():
            self.vector = nn.Parameter(torch.cat([part.reshape(-1) for part in self.parameters]))
            views = self.vector.detach().split([part.numel() for part in self.parameters])
            for part, view in zip(self.parameters, views, strict=True):
                part.data = view.view(part.shape)
        self.vector.grad = torch.zeros_like(self.vector)

    def gather(self) -> Tensor:
        """Move the parameters' gradients into `vector.grad`, (n,), and set theirs to None."""
        torch.cat([part.grad.reshape(-1) for part in self.parameters], out=self.vector.grad)
        for part in self.parameters:
            part.grad = None
        return self.vector.grad


class Optimiser:
    """Gradient clipping and one of torch's optimisers, on the flat vector."""

    def __init__(self, flat: FlatParameters, config: TrainConfig):
        self.flat, self.config = flat, config
        lr = config.learning_rate
        if config.optimizer == "rmsprop":
            self.torch_optimiser = torch.optim.RMSprop([flat.vector], lr, alpha=config.decay_rate, eps=1e-8)
        else:
            self.torch_optimiser = torch.optim.Adam([flat.vector], lr, fused=True)
        self._group = self.torch_optimiser.param_groups[0]

    def step(self, rate: float) -> None:
        """Update the weights from the gradients of the last backward. rate: learning rate."""
        config, flat = self.config, self.flat
        grad = flat.gather()
        if config.grad_clip:
            grad.clamp_(-config.grad_clip, config.grad_clip)
        if config.clip_norm:
            grad.mul_((config.clip_norm / (grad.norm() + 1e-6)).clamp_(max=1.0))
        if config.optimizer == "adamw" and config.weight_decay:
            flat.vector.detach()[: flat.matrices].mul_(1 - rate * config.weight_decay)  # biases do not decay
        self._group["lr"] = rate
        self.torch_optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Tensors of the optimiser by name; empty before the first step."""
        return dict(self.torch_optimiser.state[self.flat.vector])

    def load(self, state: dict[str, Tensor]) -> None:
        vector = self.flat.vector
        fused = self.config.optimizer != "rmsprop"  # a fused optimiser counts its steps on the device
        self.torch_optimiser.state[vector] = {
            name: value.to(vector.device if value.dim() or fused else "cpu", copy=True) for name, value in state.items()
        }


def learning_rate(config: TrainConfig, iteration: int, epoch: int, done: float) -> float:
    """The learning rate of an iteration. epoch: completed epochs; done: completed fraction of the run, 0 to 1."""
    rate = config.learning_rate
    if config.schedule == "step" and epoch >= config.learning_rate_decay_after:
        late = epoch - config.learning_rate_decay_after
        rate *= config.learning_rate_decay ** (late // config.learning_rate_decay_every + 1)
    elif config.schedule == "cosine":
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if iteration < config.warmup:
        rate *= (iteration + 1) / config.warmup
    return rate
