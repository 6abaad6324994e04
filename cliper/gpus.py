"""The GPUs that torch can use."""

import torch


def usable_gpus() -> list[str]:
    """Name and memory of each, after a sum on each of them; none if there is no driver or it is too old.

    Raises:
        RuntimeError: a GPU is there and does not work.
    """
    for index in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{index}").sum().item()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} {device.total_memory / 1e9:.0f} GB" for device in found]


def cuda_version() -> str:
    """The CUDA version that torch was built for; empty without."""
    return torch.version.cuda or ""
