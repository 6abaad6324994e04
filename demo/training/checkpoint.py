"""Training that can be killed: a checkpoint holds everything that the next step depends on, as safetensors."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps in all.
        learning_rate: highest rate; it rises over the first hundred steps and falls to nothing as a cosine.
        save_every: steps between checkpoints.
    """

    steps: int
    learning_rate: float
    save_every: int = 200

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / min(WARM_UP_STEPS, max(self.steps // 10, 1)))
        return self.learning_rate * warm * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / self.steps))))


def train(
    model: nn.Module, loss_of_step: Callable[[int], Tensor], schedule: Schedule, folder: Path, console: Console
) -> None:
    """Train a model, from its last checkpoint if there is one.

    Args:
        model: whose parameters are trained.
        loss_of_step: the loss of a step's own batch; must depend on the step's number alone, so that a resumed
            training sees the same batches.
        schedule: how long and how fast.
        folder: for ``checkpoint.safetensors`` and ``loss.csv``.
        console: for progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    first = resume(model, optimizer, folder)
    recent: list[float] = []
    for step in range(first, schedule.steps):
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
            console.print(f"{folder.name}: step {step + 1} of {schedule.steps}, loss {mean:.4f}", highlight=False)
            save(model, optimizer, folder, step + 1, mean)
            recent.clear()


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, step: int, loss: float) -> None:
    """Write a checkpoint whole: a crash leaves the last one."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "checkpoint.part", metadata={"step": json.dumps(step)})
    os.replace(folder / "checkpoint.part", folder / "checkpoint.safetensors")
    with (folder / "loss.csv").open("a", newline="") as file:
        csv.writer(file).writerow([step, f"{loss:.5f}"])


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the checkpoint; returns the next step's number, 0 without a checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        step = int(json.loads(file.metadata()["step"]))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    own = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    model.load_state_dict(own)
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step
