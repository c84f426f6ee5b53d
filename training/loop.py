"""Runs one stage of training: Muon with warm-up and cosine decay, a progress bar, and a saved state to resume from."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

Step = Callable[[int], tuple[Tensor, Mapping[str, float]]]
"""Takes the number of a step; returns its loss, and values for the progress bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSchedule:
    """Length, batch size and learning rate of a stage."""

    steps: int
    batch: int
    learning_rate: float
    warm_up: int = 200
    weight_decay: float = 0.02
    max_norm: float = 1.0
    save_every: int = 250

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warm_up)
        return self.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def learn(name: str, module: nn.Module, step: Step, schedule: StageSchedule, folder: Path) -> None:
    """Run the remaining steps of a stage, updating the parameters of `module` that require gradients.

    The random numbers of a step must depend on its number only, so that an interrupted stage that is resumed gives the
    same result as an uninterrupted one. The state is saved as `{name}.pt` in `folder`, and replaced atomically.
    """
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in module.named_parameters() if parameter.requires_grad and _hidden(name)]
    others = [
        parameter for name, parameter in module.named_parameters() if parameter.requires_grad and not _hidden(name)
    ]
    optimizers = (
        Muon(matrices, lr=schedule.learning_rate, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(others, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    path = folder / f"{name}.pt"
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = state["step"]
    with tqdm(desc=name, total=schedule.steps, initial=first, unit="step", mininterval=2) as bar:
        for number in range(first, schedule.steps):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = schedule.rate(number)
            loss, shown = step(number)
            module.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(learned, schedule.max_norm)
            for optimizer in optimizers:
                optimizer.step()
            bar.update()
            bar.set_postfix({"loss": f"{loss.item():.3f}", **{key: f"{value:.3f}" for key, value in shown.items()}})
            if (number + 1) % schedule.save_every == 0 or number + 1 == schedule.steps:
                states = [optimizer.state_dict() for optimizer in optimizers]
                _save(path, {"module": module.state_dict(), "optimizers": states, "step": number + 1})


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) for the weights of hidden layers, scaled to AdamW's step size.

    torch's implementation computes in bfloat16, which most CPUs only emulate.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = _orthogonal(parameter.grad.lerp(momentum, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the closest matrix with orthonormal rows or columns by five Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
    straight: Tensor = wide if matrix.shape[0] <= matrix.shape[1] else wide.T
    return straight


def _hidden(name: str) -> bool:
    """Return whether a parameter is the matrix of a hidden layer; AdamW updates all others."""
    inside = re.search(r"(?:^|\.)(blocks|gmhra|layer|layers)\.\d+\.", name)
    return inside is not None and name.endswith("weight") and re.search(r"norm|ln_|dpe|LayerNorm", name) is None


def _save(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
