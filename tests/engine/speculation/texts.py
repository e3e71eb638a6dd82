"""What the tests of looked-up drafts share: requests that grow, texts that repeat themselves, and a count of work."""

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import strategies as st

from playground.engine.request import Request
from playground.sampling_params import SamplingParams

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=40)
"""Three different tokens, so that everything repeats."""


def make_request(
    request_id: int,
    prompt: list[int],
    *,
    temperature: float = 0.0,
    salt: str | None = None,
    output: list[int] | None = None,
) -> Request:
    params = SamplingParams(temperature=temperature, cache_salt=salt)
    request = Request(request_id, prompt, params, seed=0, max_total_tokens=1_000_000)
    request.token_ids += output or []
    return request


def repetitive_text(seed: int, num_tokens: int) -> list[int]:
    """Phrases drawn with Zipf-like frequencies: long repetitions, branching contexts, new tokens now and then."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(500) for _ in range(rng.randrange(1, 12))] for _ in range(200)]
    text: list[int] = []
    while len(text) < num_tokens:
        text += phrases[min(199, int(rng.paretovariate(0.8)) - 1)]
    return text[:num_tokens]


def count_lines(work: Callable[[], object], *modules: Any) -> int:
    """Lines of `modules` that run while `work` does: a measure of work that no other process disturbs."""
    files = {module.__file__ for module in modules}
    count = 0

    def trace_line(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace_line

    def trace_call(frame: FrameType, event: str, _: object) -> Any:
        return trace_line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(trace_call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class CountingList(list[int]):
    """A token list that counts the elements read from it, one by one or in slices."""

    num_read = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num_read += len(found) if isinstance(found, list) else 1
        return found

    def __iter__(self) -> Any:
        self.num_read += len(self)
        return super().__iter__()
