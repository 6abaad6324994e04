"""Between the host and a GPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cliper.preprocess import ImageArray


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """To the GPU without waiting for it, or unchanged on a CPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def channels_first(images: Sequence[ImageArray], device: torch.device) -> Tensor:
    """Images of one size as a uint8 batch [batch, 3, height, width] on the device."""
    return upload(torch.from_numpy(np.stack(images)), device).permute(0, 3, 1, 2).contiguous()
