"""Tensors of a batch of images. Those of one shape are in one stack, so that they are worked on together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """One tensor for each image of a batch.

    Attributes:
        members: for each stack the positions of its images in the batch.
        stacks: [images, ...].
    """

    members: Sequence[Sequence[int]]
    stacks: Sequence[Tensor]

    @classmethod
    def together(cls, stack: Tensor) -> "Groups":
        """All images in one stack."""
        return cls([range(len(stack))], [stack])

    @classmethod
    def apart(cls, tensors: Sequence[Tensor]) -> "Groups":
        """Every image in a stack of its own."""
        return cls([[index] for index in range(len(tensors))], [tensor[None] for tensor in tensors])

    @cached_property
    def images(self) -> list[Tensor]:
        """A view for each image, in the batch's order."""
        views: dict[int, Tensor] = {}
        for members, stack in zip(self.members, self.stacks, strict=True):
            views |= dict(zip(members, stack, strict=True))
        return [views[index] for index in range(len(views))]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Groups":
        """Every stack changed, with the same images in it."""
        return Groups(self.members, [change(stack) for stack in self.stacks])

    def stacked(self) -> Tensor:
        """All images in one stack, in the batch's order. All have one shape."""
        return self.stacks[0] if list(self.members[0]) == list(range(len(self.images))) else torch.stack(self.images)

    def flat(self) -> Tensor:
        """All entries in one row, stack after stack."""
        rows = [stack.flatten() for stack in self.stacks]
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def starts(self) -> list[int]:
        """For each image, in the batch's order, where its entries begin in `flat`."""
        found, start = {}, 0
        for members, stack in zip(self.members, self.stacks, strict=True):
            for member in members:
                found[member] = start
                start += stack[0].numel()
        return [found[index] for index in range(len(found))]
