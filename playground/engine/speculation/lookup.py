"""Drafts that are looked up in text instead of computed by a model: what such a proposer is, and when a match is
worth a draft.

A looked-up draft is deterministic given the text before it: verified as a certain proposal, it may be of any length
and end for any reason without touching the distribution of the output. What is decided here is only what pays.
"""

from typing import Protocol

from playground.engine.request import Request

MIN_CHANCE = 1 / 3
"""A draft ends after the first token that is estimated to be reached and accepted less often than this."""
MIN_MATCH_SAMPLED = 2
"""Drawn text repeats its last token by chance all the time; one token of context then says next to nothing."""


class LookupProposer(Protocol):
    """Finds draft tokens for requests whose `token_ids` only ever grow. One thread only."""

    def propose(self, request: Request, num_tokens: int) -> list[int]:
        """Up to `num_tokens` draft tokens after `request.token_ids`; [] where nothing was found."""

    def forget(self, request: Request) -> None:
        """The request has ended (its output may still serve others)."""


def shortest_match(request: Request) -> int:
    """Tokens of context that must have occurred before for a draft to be worth verifying."""
    return MIN_MATCH_SAMPLED if request.params.temperature > 0 else 1


def chance_to_hold(match_length: int, num_tokens: int) -> float:
    """Estimated probability that a repetition which has held for `match_length` tokens holds for `num_tokens` more.

    Repetitions come in all lengths, from a word to a page. With no scale to prefer (density of lengths ~ 1 / length²)
    one seen to be n long is at least n + j long with probability n / (n + j).
    """
    return match_length / (match_length + num_tokens)


def longest_draft(match_length: int) -> int:
    """Draft tokens after a match of `match_length`: as many as hold with at least `MIN_CHANCE`."""
    return round(match_length * (1 - MIN_CHANCE) / MIN_CHANCE)
