"""Two outputs for one prompt side by side: how far they are the same, and what each wrote where they part. Pure."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items the two have in common from their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def align(one: Mapping[str, Any], other: Mapping[str, Any], *, same_vocabulary: bool) -> dict[str, Any]:
    """Where two outputs part. An output has `token_ids`, `text` and `ends`: where in the text each token ends.

    By token where both sides have one vocabulary, by character where not. `common` counts those in common;
    `identical` says that there is nothing else; `at` is where in each text the difference starts, and `until` where the
    first different token (or character) ends: equal where the text had ended.
    """
    unit = "token" if same_vocabulary else "character"
    if not same_vocabulary:
        common = common_length(one["text"], other["text"])
        identical = common == len(one["text"]) == len(other["text"])
        spans = [(common, min(common + 1, len(side["text"]))) for side in (one, other)]
    else:
        common = common_length(one["token_ids"], other["token_ids"])
        identical = common == len(one["token_ids"]) == len(other["token_ids"])
        spans = [_span(side["ends"], common) for side in (one, other)]
    return {
        "unit": unit,
        "common": common,
        "identical": identical,
        "at": [start for start, _ in spans],
        "until": [end for _, end in spans],
    }


def _span(ends: Sequence[int], token: int) -> tuple[int, int]:
    """Characters of one token. A character of several tokens belongs to the last of them, the others are empty."""
    start = ends[token - 1] if token else 0
    if token >= len(ends):
        return start, start
    return start, next((end for end in ends[token:] if end > start), start)
