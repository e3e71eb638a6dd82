"""How much to prune: a share of the parts or of all parameters, turned into how many parts are kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from playground.errors import ConfigError

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """Remove at least this share of the layers (channels, heads), or of the whole model's parameters."""

    share: float
    of: Literal["parts", "parameters"] = "parts"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"a target of {self.share:g} is out of range: give a share between 0 and 1, like 0.25.")


def parts_to_keep(target: Target, total: int, parameters: Callable[[int], int], what: str, multiple: int = 1) -> int:
    """The most parts, a multiple of `multiple`, with which the target is met.

    `parameters(n)` are the whole model's with n parts. Raises `ConfigError` where none would be left.
    """
    whole = parameters(total)

    def removed(kept: int) -> float:
        return 1 - (kept / total if target.of == "parts" else parameters(kept) / whole)

    for kept in range(total - 1, 0, -1):
        if kept % multiple == 0 and removed(kept) >= target.share - _ROUNDING:
            return kept
    fewest = multiple if multiple < total else total
    of = what if target.of == "parts" else "parameters"
    raise ConfigError(
        f"a target of {target.share:.1%} fewer {of} leaves no {what}: of {total}, {fewest} must stay, so that at most "
        f"{removed(fewest):.1%} can go."
    )
