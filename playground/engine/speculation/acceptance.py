"""How often drafts are accepted, position by position, as learned from verifications and forgotten with time.

Position i counts only verifications that accepted everything before it, so the estimates are conditional, and products
of them are the chance that a draft is reached and accepted.
"""

from collections.abc import Sequence


class Acceptance:
    """Exponentially weighted frequencies of conditional acceptance."""

    def __init__(self, num_positions: int) -> None:
        self._num_tried = [0.0] * num_positions
        self._num_accepted = [0.0] * num_positions

    def observe(self, num_drafted: int, num_accepted: int, memory: float) -> None:
        """Count one verification; at the positions it tells of, what was known weighs 1 - 1/memory of what it did."""
        keep = 1.0 - 1.0 / memory
        for i in range(min(num_drafted, num_accepted + 1, len(self._num_tried))):
            self._num_tried[i] = keep * self._num_tried[i] + 1.0
            self._num_accepted[i] = keep * self._num_accepted[i] + (i < num_accepted)

    def estimates(self, prior: Sequence[float], weight: float) -> list[float]:
        """Conditional acceptance of each position, where the prior weighs as much as `weight` verifications.

        What is expected of a position is half of its own prior and half of what the position before it turned out to
        be: texts that are easy to draft are so at every position.
        """
        values: list[float] = []
        before = prior[0]
        for expected, tried, accepted in zip(prior, self._num_tried, self._num_accepted, strict=True):
            before = (weight * 0.5 * (expected + before) + accepted) / (weight + tried)
            values.append(before)
        return values
