"""A training loop that survives a kill. A checkpoint holds everything that the next step depends on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARM_UP_STEPS = 100
CHECKPOINT = "checkpoint.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW for every parameter."""
Loss = tuple[int, float]
"""Number of steps done, and the mean loss since the previous entry."""


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


def train(model: nn.Module, loss_of_step: Callable[[int], Tensor], schedule: Schedule, folder: Path) -> None:
    """Train a model. The training resumes from the last checkpoint in the folder if there is one.

    ``loss_of_step`` depends on the step's number alone, so that a resumed training sees the same batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    path = folder / CHECKPOINT
    losses, recent = read_losses(path), list[float]()
    first = losses[-1][0] if losses else 0
    if first:
        load(model, optimizer, path, first)
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
            losses.append((step + 1, mean))
            recent.clear()
            save(model, optimizer, path, losses)
            print(f"{folder.name}: step {step + 1} of {schedule.steps}, loss {mean:.4f}", flush=True)


def save(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, losses: list[Loss]) -> None:
    """Replace the checkpoint atomically, so that a crash leaves the previous one."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": state[key] for key in MOMENTS if key in state}
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, f"{path}.part", metadata={"losses": json.dumps(losses)})
    os.replace(f"{path}.part", path)


def read_losses(path: Path) -> list[Loss]:
    """The losses that a checkpoint holds; none without a checkpoint."""
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        return [(step, loss) for step, loss in json.loads(file.metadata()["losses"])]


def load(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, step: int) -> None:
    """Load a checkpoint that was written after ``step`` steps."""
    tensors = load_file(path)
    own = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    model.load_state_dict(own)
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
