"""A training loop that survives a kill. A checkpoint holds everything that the next step depends on."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARM_UP_STEPS = 100
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Schedule:
    """Number of steps and learning rate of a training."""

    steps: int
    """Optimiser steps."""
    learning_rate: float
    """The highest rate. The rate rises over the first hundred steps and then follows a cosine to zero."""
    save_every: int = 200
    """Steps between checkpoints."""

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / min(WARM_UP_STEPS, max(self.steps // 10, 1)))
        return self.learning_rate * warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / self.steps))))


def train(model: nn.Module, loss_of_step: Callable[[int], Tensor], schedule: Schedule, folder: Path) -> Tensor:
    """Train a model. The training resumes from the last checkpoint in the folder if there is one.

    ``loss_of_step`` depends on the step's number alone, so that a resumed training sees the same batches.

    Returns:
        For every checkpoint the number of steps done, and the mean loss since the previous one [checkpoints, 2].
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.safetensors"
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    curve = load(model, optimizer, path) if path.exists() else torch.zeros(0, 2)
    recent = list[float]()
    for step in range(int(curve[:, 0].max()) if len(curve) else 0, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            mean = sum(recent) / len(recent)
            curve = torch.cat([curve, torch.tensor([[step + 1, mean]])])
            recent.clear()
            save(model, optimizer, curve, path)
            print(f"{folder.name}: step {step + 1} of {schedule.steps}, loss {mean:.4f}", flush=True)
    return curve


def save(model: nn.Module, optimizer: torch.optim.Optimizer, curve: Tensor, path: Path) -> None:
    """Replace the checkpoint atomically, so that a crash leaves the previous one."""
    tensors = model.state_dict(prefix="model.") | {"curve": curve}
    for parameter, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{key}": value for key, value in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{path}.part")
    os.replace(f"{path}.part", path)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> Tensor:
    """Load a checkpoint. Returns its loss curve."""
    tensors = load_file(path)
    model.load_state_dict({name: tensors[f"model.{name}"] for name in model.state_dict()})
    states = {
        number: {key: tensors[f"optimizer.{number}.{key}"] for key in ADAMW_STATE}
        for number, _ in enumerate(model.parameters())
    }
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
    return tensors["curve"]
