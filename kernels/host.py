"""Small data on its way from the host to a device, and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. On a GPU it goes through pinned memory, so that the host does not wait for the copy.

    A copy from ordinary memory would wait for everything that the stream has been given before it.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def from_device(values: Tensor) -> Callable[[], Any]:
    """Sends values to the host at once; the function returned waits for them, not for what is launched later.

    It returns them as (nested) lists.
    """
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> Any:
        arrived.synchronize()
        return host.tolist()

    return read
