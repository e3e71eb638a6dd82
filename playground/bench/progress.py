"""How far a benchmark is: lines that begin with "3 of 18: ", for whoever follows it (the Lab draws a bar of them)."""

from collections.abc import Callable
from itertools import count

Say = Callable[[str], None]


def counted(say: Say, total: int) -> Say:
    """`say` for work of so many pieces, one line at the beginning of each."""
    numbers = count(1)
    return lambda text: say(f"{min(next(numbers), total)} of {total}: {text}")
