"""Small data of the host on its way to a device."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. On a GPU it goes through pinned memory, so that the host does not wait for the copy.

    A copy from ordinary memory would wait for everything that the stream has been given before it.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
