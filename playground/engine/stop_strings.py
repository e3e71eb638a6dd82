"""Finds stop strings in text that arrives bit by bit, and how much of its end might still become one.

Owns the matching only (Knuth, Morris and Pratt's automaton, one per stop string). Knows nothing of tokens.
"""

from functools import lru_cache


class StopMatcher:
    """Fed character by character, it never looks back: the cost per character does not grow with the stops' lengths.

    The stop that completes first wins; of those that complete at the same character, the longest.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self.held = 0
        """Length of the longest end of the text that is the beginning of a stop string."""

    def feed(self, text: str) -> tuple[int, str] | None:
        """(characters of `text` up to the end of the first completed stop, that stop), or None; then feed no more."""
        if not self._stops:
            return None
        matched = self._matched
        for end, char in enumerate(text, start=1):
            found = ""
            for i, (stop, fallbacks) in enumerate(self._stops):
                length = matched[i]
                while length and stop[length] != char:
                    length = fallbacks[length]
                if stop[length] == char:
                    length += 1
                if length == len(stop):
                    found = max(found, stop, key=len)
                    length = fallbacks[length]
                matched[i] = length
            if found:
                self.held = 0
                return end, found
        self.held = max(matched)
        return None


@lru_cache(maxsize=256)
def _fallbacks(stop: str) -> tuple[int, ...]:
    """For each length matched so far, the next shorter beginning of `stop` that the same text also ends with."""
    fallbacks = [0] * (len(stop) + 1)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = fallbacks[length]
        if stop[i] == stop[length]:
            length += 1
        fallbacks[i + 1] = length
    return tuple(fallbacks)
