"""The calibration sequences on their way through the model: what the next block reads, a few sequences at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_TOKENS_AT_ONCE = 4096


class CalibrationStates:
    """Hidden states [S, L, H] float32 of all sequences before a block. Memory: this, and one batch's activations."""

    def __init__(self, states: Tensor, device: torch.device | str = "cpu") -> None:
        self._states, self._device = states, torch.device(device)
        self._sequences = max(1, _TOKENS_AT_ONCE // states.shape[1])

    @property
    def num_tokens(self) -> int:
        return self._states.shape[0] * self._states.shape[1]

    def batches(self) -> Iterator[Tensor]:
        """[s, L, H] on the device, all sequences in order."""
        for part in self._states.split(self._sequences):
            yield part.to(self._device)

    def first(self, tokens: int) -> Tensor:
        """As many whole sequences as hold this many tokens, at least one."""
        return self._states[: max(1, tokens // self._states.shape[1])].to(self._device)

    @torch.inference_mode()
    def advance(self, block: Callable[[Tensor], Tensor]) -> None:
        """What the block makes of them, in their place."""
        for part in self._states.split(self._sequences):
            part.copy_(block(part.to(self._device)))
