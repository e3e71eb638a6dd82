"""Prompt lookup: the last tokens of a request are looked up earlier in its own text, and what followed is drafted.

After Saxena's prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding); the longest n-gram counts, and of
its occurrences the most recent. Owns one index per request, grown as its text grows; never looks at other requests.
"""

from dataclasses import dataclass, field

from playground.engine.request import Request
from playground.engine.speculation.lookup import longest_draft, shortest_match
from playground.errors import ConfigError


@dataclass(slots=True)
class _Index:
    """Where each n-gram of a text was last followed by something."""

    next_position: dict[tuple[int, ...], int] = field(default_factory=dict)
    """n-gram -> position of the token that followed its most recent occurrence. Lengths share the dict: they cannot
    be mistaken for one another."""
    num_tokens: int = 0
    """Text length when it was last brought up to date."""


class NgramProposer:
    """A `LookupProposer` over the request's own prompt and output.

    Bringing an index up to date takes `max_n - min_n + 1` dictionary entries a new token, and a draft as many look-ups
    and at most two comparisons a drafted token, however long the text is.
    """

    def __init__(self, min_n: int = 1, max_n: int = 3) -> None:
        """Raises ConfigError unless 1 <= min_n <= max_n."""
        if not 1 <= min_n <= max_n:
            raise ConfigError(f"n-grams from min_n={min_n} to max_n={max_n} do not exist: give 1 <= min_n <= max_n.")
        self.min_n = min_n
        self.max_n = max_n
        self._indices: dict[int, _Index] = {}

    def propose(self, request: Request, num_tokens: int) -> list[int]:
        """The continuation of the longest n-gram that ends the text and occurred before, most recent occurrence first.

        Where the text ends before the draft does, the draft goes on with itself: "abcabc" is followed by "abcabc...".
        """
        text = request.token_ids
        sizes = range(max(self.min_n, shortest_match(request)), self.max_n + 1)
        index = self._indices.setdefault(request.request_id, _Index())
        _extend(index, text, sizes)
        for n in reversed(sizes):
            start = index.next_position.get(tuple(text[-n:])) if n < len(text) else None
            if start is not None:
                num_drafts = min(num_tokens, longest_draft(_match_length(text, start, n, num_tokens)))
                return [text[start + i % (len(text) - start)] for i in range(num_drafts)]
        return []

    def forget(self, request: Request) -> None:
        """Drop the request's index; unknown requests are ignored."""
        self._indices.pop(request.request_id, None)


def _extend(index: _Index, text: list[int], sizes: range) -> None:
    """Enter the n-grams that something follows since the last call; of equal ones the later stays."""
    for n in sizes:
        first = max(n, index.num_tokens)  # the first token not yet entered as a follower
        count = max(0, len(text) - first)
        tail = text[first - n :]
        ngrams = zip(*(tail[i : i + count] for i in range(n)), strict=True)
        index.next_position.update(zip(ngrams, range(first, first + count), strict=True))
    index.num_tokens = len(text)


def _match_length(text: list[int], start: int, n: int, enough: int) -> int:
    """How far back the text before `start` equals its end: at least n, counted no further than `enough`."""
    while n < min(enough, start) and text[start - n - 1] == text[-n - 1]:
        n += 1
    return n
