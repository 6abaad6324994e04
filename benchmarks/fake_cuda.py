"""A GPU that is not there: real tensors on the CPU, tensors without content on ``cuda``, and a count of what happens.

The program runs as it is. Every operation on ``cuda`` has the shapes, number formats and device checks of the real one
and no result. What comes back to the host is made up, always in the same way. Counted for each stage
(`cliper.stages.stage`): kernels, bytes that they read and write at least, floating-point operations, copies to the
device and waits for it; and the memory in use. Not seen: streams, pinned memory, what `torch.compile` would fuse, and
what a library's kernel needs inside.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from cliper.attention_kernels import TILE

NO_KERNEL = frozenset(
    [
        "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze",
        "split", "split_with_sizes", "unbind", "detach", "alias", "as_strided", "_reshape_alias", "unfold", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "diagonal", "lift_fresh",
    ]
)  # fmt: skip
"""Operations that only look at a tensor in another way, or reserve memory."""
ONE_KERNEL = ("upsample",)
"""Operations that torch can express by others, and a GPU does not."""
PRODUCTS = frozenset(["mm", "bmm", "addmm", "baddbmm", "convolution", "mv", "addmv"])
WAITS = frozenset(["nonzero", "masked_select", "unique", "_local_scalar_dense", "is_nonzero"])
"""Operations whose result the host needs before it can go on."""
PIXELS_PER_RUN = 100
ALLOCATION_BYTES = 512
"""Memory is handed out in multiples of this."""


class Cost(NamedTuple):
    """Of one of the functions that start the package's own kernels."""

    kernels: int
    bytes_moved: int
    flop: int


def early_sum_cost(qkv: Tensor, lse: Tensor, total: Tensor) -> Cost:
    layers, batch, heads, tokens = lse.shape
    width = qkv.shape[3] // (3 * heads)
    read = 2 * size_bytes(qkv) // 3 + size_bytes(lse)
    return Cost(1, read + size_bytes(total), 2 * layers * batch * heads * tokens**2 * width)


def scaling_rounds_cost(total: Tensor, rounds: int, scales: tuple[Tensor, Tensor]) -> Cost:
    # Each launch reads the maps once. Column sums are passed on in parts, one for each tile.
    parts = total[..., 0].numel() * 4 * -(-total.shape[2] // TILE)
    moved = (rounds + 1) * (size_bytes(total) + 2 * parts) + sum(map(size_bytes, scales))
    return Cost(rounds + 2, moved, 4 * rounds * total.numel())


def symmetric_products_cost(
    total: Tensor, rows: Tensor, sums: Tensor, value: Tensor, results: tuple[Tensor, Tensor]
) -> Cost:
    # Every round, and the mean, reads every tile and the one across the diagonal. Operations on vectors come first.
    moved = (len(value) + 1) * 2 * size_bytes(total) + 9 * size_bytes(sums) + size_bytes(value)
    flop = 2 * total.numel() * len(value) * value.shape[3] // total.shape[1]
    return Cost(7, moved + sum(map(size_bytes, results)), flop)


def spread_heads_cost(maps: Tensor, query: Tensor, key: Tensor, threshold: float | None, after: Tensor) -> Cost:
    batch, heads, positions, width = query.shape
    vectors = 4 * batch * heads * positions
    passes = 2 if threshold is None else 3  # over queries and keys: normalisers, peaks, the product
    moved = passes * (size_bytes(query) + size_bytes(key) + vectors) + heads * (size_bytes(maps) + size_bytes(after))
    flop = 2 * batch * heads * positions**2 * (passes * width + maps.shape[2])
    return Cost(heads + passes - 1, moved, flop)


def label_pixels_cost(maps: Tensor, images: Tensor, *arguments: Any) -> Cost:
    # Maps are read twice: for their extremes and for values; at most all of them. Labels are read once more for runs.
    competing, pixels, results = arguments[3], arguments[4], arguments[-1]
    extremes = 4 * maps.numel() if any(competing) else 0
    values = sum(classes * size for classes, size in zip(competing, pixels, strict=True))
    moved = 2 * size_bytes(maps) + 3 * size_bytes(images) + size_bytes(results[0]) + sum(map(size_bytes, results))
    return Cost(3, moved, 16 * (extremes + values))


OWN_KERNELS: dict[str, Callable[..., Cost]] = {
    "early_sum": early_sum_cost, "scaling_rounds": scaling_rounds_cost, "symmetric_products": symmetric_products_cost,
    "spread_heads": spread_heads_cost, "label_pixels": label_pixels_cost,
}  # fmt: skip
"""What the package's own functions start and move. What tiles read again comes from the cache and does not count."""


@dataclass
class StageCounts:
    """What happened in a stage."""

    kernels: int = 0
    bytes_moved: int = 0
    flop: int = 0
    waits: int = 0
    copies_to_device: int = 0
    bytes_to_device: int = 0


class FakeGpu(TorchDispatchMode):
    """Counts what a program does on ``cuda``; use it with `fake_gpu`.

    Attributes:
        stages: counts by stage; what is outside of all stages is in ``""``.
        peak_bytes: most memory in use at a time, weights included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.stages: dict[str, StageCounts] = defaultdict(StageCounts)
        self.open_stages = [""]
        self.sizes: dict[int, int] = {}
        self.used_bytes = self.peak_bytes = 0

    @property
    def counts(self) -> StageCounts:
        return self.stages[self.open_stages[-1]]

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = operation._schema.name.partition("::")[2]
        if operation.namespace == "profiler":
            return self.mark_stage(name, operation, args, kwargs)
        if operation.namespace == "prim":  # asks for a tensor's device
            return operation(*args, **kwargs)
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        on_gpu = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        target = next((value for value in tree_iter((args, kwargs)) if isinstance(value, torch.device)), None)
        to_gpu = target is not None and target.type == "cuda"
        if not on_gpu and not to_gpu:
            return operation(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            return self.attention(query, key, value, kwargs.get("attn_mask"))
        if is_composite(operation) and not name.startswith(ONE_KERNEL):
            with self:
                result = operation.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if name in PRODUCTS and len({tensor.dtype for tensor in on_gpu}) > 1:
            raise TypeError(f"{name} of {[tensor.dtype for tensor in on_gpu]}")
        if name in WAITS:
            self.counts.waits += 1
        if name == "_local_scalar_dense":
            return 1
        if name == "nonzero":
            return self.some_places(args[0])
        if name == "copy_" and args[0].device.type == "cpu":
            self.counts.waits += 1
            return args[0].copy_(made_up(args[0].shape, args[0].dtype))
        with self.fake:
            inputs = tree_map(without_content, (args, kwargs))
            result = operation(*inputs[0], **inputs[1])
        if on_gpu and target is not None and target.type == "cpu":
            self.counts.waits += 1
            return made_up(result.shape, result.dtype)
        if to_gpu and not on_gpu and tensors:
            self.counts.copies_to_device += 1
            self.counts.bytes_to_device += sum(map(size_bytes, tensors))
        outputs = [value for value in tree_iter(result) if isinstance(value, Tensor) and value.device.type == "cuda"]
        for output in outputs:
            self.hold(output)
        if operation.namespace == "cliper":
            self.add(OWN_KERNELS[name](*args, result))
        elif name not in NO_KERNEL:
            self.count_kernel(operation, [*on_gpu, *outputs], args, kwargs, result)
        return result

    def mark_stage(self, name: str, operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """`torch.profiler.record_function` begins or ends."""
        if name == "_record_function_enter_new":
            self.open_stages.append(str(args[0]).removeprefix("cliper/"))
        elif name == "_record_function_exit":
            self.open_stages.pop()
        return operation(*args, **kwargs)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """One kernel that keeps no attention map, as flash attention. A mask is read."""
        with self.fake:
            *batch, heads, tokens, _ = query.shape
            result = query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)
        self.hold(result)
        counts = self.counts
        counts.kernels += 1
        counts.bytes_moved += sum(size_bytes(of) for of in (query, key, value, result, mask) if of is not None)
        counts.flop += 2 * prod(batch) * heads * tokens * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return result

    def some_places(self, mask: Tensor) -> Tensor:
        """As many entries as runs are in a label map of few objects: one for `PIXELS_PER_RUN` pixels."""
        self.counts.kernels += 1
        self.counts.bytes_moved += size_bytes(mask)
        with self.fake:
            places = mask.new_empty(mask.numel() // PIXELS_PER_RUN, mask.ndim, dtype=torch.int64)
        self.hold(places)
        return places

    def add(self, cost: "Cost") -> None:
        counts = self.counts
        counts.kernels += cost.kernels
        counts.bytes_moved += cost.bytes_moved
        counts.flop += cost.flop

    def count_kernel(
        self, operation: Any, tensors: Sequence[Tensor], args: tuple, kwargs: dict[str, Any], result: Any
    ) -> None:
        counts = self.counts
        counts.kernels += 1
        counts.bytes_moved += sum({id(tensor): size_bytes(tensor) for tensor in tensors}.values())
        if operation._overloadpacket in flop_registry:
            counts.flop += flop_registry[operation._overloadpacket](*args, **kwargs, out_val=result)

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory until its storage is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        size = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
        self.sizes[key] = size
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        weakref.finalize(storage, self.release, key)

    def release(self, key: int) -> None:
        self.used_bytes -= self.sizes.pop(key, 0)

    def on_device(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A model whose weights are on ``cuda``, without content."""
        with self.fake:
            for module in model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        empty = torch.empty(parameter.shape, device=device, dtype=dtype)
                        module._parameters[name] = nn.Parameter(empty, requires_grad=False)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        own = dtype if buffer.dtype.is_floating_point else buffer.dtype
                        module._buffers[name] = torch.empty(buffer.shape, device=device, dtype=own)
        for tensor in (*model.parameters(), *model.buffers()):
            self.hold(tensor)
        return model.eval()


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Run what is inside with a `FakeGpu`, which knows bf16."""
    gpu = FakeGpu()
    with gpu.fake:  # sets up device guards that torch has for CUDA
        pass
    torch._C._ensureCUDADeviceGuardSet()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    unpinned: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    try:
        with (
            patch("torch.cuda._lazy_init", lambda: None),
            patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True),
            patch.object(torch.Tensor, "pin_memory", unpinned),
            gpu,
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def is_composite(operation: Any) -> bool:
    """True if torch expresses the operation by others."""
    key = "CompositeImplicitAutograd"
    return operation.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), key)


def without_content(value: Any) -> Any:
    """A real tensor's shape, for operations between host and device."""
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return value


def made_up(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What comes back from the device: numbers between 0 and 1 in a fixed order; 0 in integers."""
    if not dtype.is_floating_point:
        return torch.zeros(*shape, dtype=dtype)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def size_bytes(tensor: Tensor) -> int:
    """Bytes that a kernel must touch: an expanded tensor is read once."""
    return tensor.untyped_storage().nbytes() if 0 in tensor.stride() and tensor.numel() else tensor.nbytes
