"""What a batch of rows is sampled with, as tensors: plain data that the torch and the Triton sampler both take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kernels import noise
from kernels.host import to_device


@dataclass(frozen=True)
class RowParameters:
    """One entry a row, all tensors [R] on the device of the logits; `some_cut` is known to the host."""

    temperature: Tensor
    """float64; 0 takes the most probable token."""
    floor: Tensor
    """float64: log(min_p), -inf for none."""
    top_k: Tensor
    """int64; 0 for none."""
    top_p: Tensor
    """float64; 1 for none."""
    seeds: Tensor
    """int64 words."""
    positions: Tensor
    """int64: where in its sequence the drawn token will stand."""
    some_cut: bool
    """Whether any row may have top_k or top_p: without, the kernels that search for their cut are not launched."""

    @classmethod
    def of(
        cls,
        temperature: Sequence[float],
        seeds: Sequence[int],
        positions: Sequence[int],
        *,
        min_p: Sequence[float] | None = None,
        top_k: Sequence[int] | None = None,
        top_p: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> "RowParameters":
        """From Python numbers, one a row. Seeds and positions may be any ints, they count modulo 2**64."""
        device, rows = torch.device(device), len(temperature)
        min_p, top_k, top_p = min_p or [0.0] * rows, top_k or [0] * rows, top_p or [1.0] * rows
        if (
            not all(0 < p <= 1 for p in top_p)
            or not all(0 <= p <= 1 for p in min_p)
            or min([*temperature, *top_k, 0]) < 0
        ):
            raise ValueError(
                "top_p must be above 0 and at most 1, min_p from 0 to 1, temperature and top_k not negative."
            )
        floors = [math.log(p) if p > 0 else -math.inf for p in min_p]
        numbers = to_device(torch.tensor([list(temperature), floors, list(top_p)], dtype=torch.float64), device)
        host = torch.device("cpu")
        words = to_device(torch.stack([noise.as_words(values, host) for values in (top_k, seeds, positions)]), device)
        some_cut = any(k > 0 for k in top_k) or any(p < 1 for p in top_p)
        return cls(numbers[0], numbers[1], words[0], numbers[2], words[1], words[2], some_cut)

    def __len__(self) -> int:
        return len(self.temperature)

    def check(self, num_rows: int, device: torch.device) -> None:
        """Raises ValueError, one sentence, unless these fit logits with so many rows."""
        for field in fields(self)[:-1]:
            value: Tensor = getattr(self, field.name)
            wanted = torch.float64 if field.name in ("temperature", "floor", "top_p") else torch.int64
            if value.shape != (num_rows,) or value.dtype != wanted or value.device != device:
                raise ValueError(
                    f"{field.name} must be {wanted} [{num_rows}] on {device}, "
                    f"it is {value.dtype} {list(value.shape)} on {value.device}."
                )
