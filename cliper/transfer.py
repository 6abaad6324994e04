"""Between the host and a GPU."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from cliper.preprocess import ImageArray


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """To the GPU without waiting for it, or unchanged on a CPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


ALIGNMENT_BYTES = 16
"""Where packed tensors begin: a kernel is compiled once more for an argument that is aligned in another way."""


def upload_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`upload` of tensors of any number formats in one transfer."""
    return unpack(upload(pack(tensors), device), tensors) if device.type == "cuda" else list(tensors)


def pack(tensors: Sequence[Tensor]) -> UInt8[Tensor, " bytes"]:
    """The bytes of contiguous tensors, one tensor after the other."""
    parts = [tensor.view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([F.pad(part, (0, -len(part) % ALIGNMENT_BYTES)) for part in parts])


def unpack(packed: UInt8[Tensor, " bytes"], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `pack` put together of tensors of these shapes and formats."""
    found, start = [], 0
    for tensor in like:
        found.append(packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return found


def channels_first(images: Sequence[ImageArray], device: torch.device) -> Tensor:
    """Images of one size as a uint8 batch [batch, 3, height, width] on the device."""
    return upload(torch.from_numpy(np.stack(images)), device).permute(0, 3, 1, 2).contiguous()
