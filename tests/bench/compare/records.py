"""Records of comparisons as a run leaves them, written by hand, with numbers that are easy to check."""

from typing import Any

TEXT = "Once there was a fox. You are"
OTHER = "Once there was a fox. Close your"


def output(text: str, words: list[str], first_id: int = 10) -> dict[str, Any]:
    """An output whose tokens are the given pieces of `text`; equal pieces have equal ids."""
    ends, length = [], 0
    for word in words:
        length += len(word)
        ends.append(length)
    assert length == len(text)
    ids = [first_id + sum(map(ord, word)) for word in words]
    return {"token_ids": ids, "ends": ends, "text": text, "finish_reason": "length", "num_prompt_tokens": 5}


def run(number: int, **values: float | None) -> dict[str, Any]:
    return {"round": number, "values": values, "drafts": 0, "reached": [], "accepted": []}


def side(name: str, outputs: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {"vocabulary": "one", "device_name": "CPU, 2 threads"}
    return {"name": name, "error": None, "facts": facts, "outputs": outputs, "runs": runs}


def record(sides: list[dict[str, Any]], divergences: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "version": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "status": "done",
        "held": True,
        "seconds": 1.0,
        "rounds": [[0, 1]] * 3,
        "machine": {},
        "sides": sides,
        "divergences": divergences,
    }
