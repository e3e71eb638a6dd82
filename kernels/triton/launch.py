"""The one place where kernels are launched, so that what would be launched can also be recorded and compiled.

`recording` turns every launch inside it into a `Launch` value without running anything: the launchers are then called
on meta tensors, and what is compiled ahead of time is what a GPU would be given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its run-time arguments in order, its constants and options."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside this context are collected, not run."""
    global _recorded
    before = _recorded
    launches: list[Launch] = []
    _recorded = launches
    try:
        yield launches
    finally:
        _recorded = before


def launch(
    kernel: Any, grid: Sequence[int], *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
) -> None:
    """kernel[grid](*args, **constants); an empty grid launches nothing."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, args, constants, num_warps, num_stages))
    elif min(grid) > 0:
        kernel[tuple(grid)](*args, num_warps=num_warps, num_stages=num_stages, **constants)


def is_recording() -> bool:
    return _recorded is not None


def dtype_name(dtype: torch.dtype) -> str:
    """Triton's short name of a torch dtype."""
    return _DTYPE_NAMES[dtype]


_DTYPE_NAMES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
