"""Where each token of a reply came from: the caller's deltas and the engine's step events, joined by position.

Deltas say which tokens a request kept and how probable they were; steps say which of them were drafts, which drafts
were refused before them, and when. The i-th token of the one is the i-th of the other. Pure, without threads or clocks;
not thread-safe.
"""

import base64
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from playground.engine.events import Event, RequestEvent, ScheduledSlice, StepEvent
from playground.engine.outputs import Delta, TokenLogprob
from playground.engine.token_text import text_stream, token_label

Origin = Literal["target", "accepted", "bonus", "corrected"]
"""The target's own draw without drafts; a draft that it accepted; its draw on top of drafts that were all accepted; its
draw in place of one that it rejected."""

NS_PER_MS = 1_000_000
PACKED_LIMIT = 256 * 1024
"""Characters. A reply whose tokens take more is stored without its rivals, and if that is too much, without tokens."""
MAX_UNPACKED_BYTES = 64 * 1024 * 1024


class TracedToken(NamedTuple):
    """One token of a reply; as a list it is a row of what the browser is sent."""

    token_id: int
    text: str
    """The characters that were complete with it; all of them joined are the reply."""
    origin: Origin | None
    """None where the step events of the request were lost."""
    step: int | None
    """The engine's number of the step that gave it."""
    time_ms: float | None
    """When that step ended, since the request was sent."""
    logprob: float | None
    """Natural log of its probability under the target, where it was asked for."""
    rejected: tuple[str, ...] = ()
    """Drafts that the step had instead of it and what would have followed: the first was refused, the rest dropped."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable tokens in its place as (text, logprob), best first, where they were asked for."""


class _Mark(NamedTuple):
    """What the steps say of one position."""

    token_id: int
    origin: Origin
    step: int
    time_ns: int
    rejected: tuple[int, ...]


class TokenTrace:
    """Follows one request (of one sample) from before it is sent until it has ended."""

    def __init__(self, request_id: int, tokenizer: Any, prompt_token_ids: Sequence[int], started_ns: int) -> None:
        """`started_ns`: when the request was sent, on the engine's clock (`perf_counter_ns`)."""
        self.request_id = request_id
        self.ended = False
        """Whether the events told the end of the request: no more will come."""
        self.tokens: list[TracedToken] = []
        """The tokens of which all is known; it grows at its end, and `finish` may still change the last ones."""
        self._tokenizer = tokenizer
        self._started_ns = started_ns
        self._stream = text_stream(tokenizer, prompt_token_ids)
        self._kept: list[tuple[int, TokenLogprob | None]] = []
        self._marks: list[_Mark] = []
        self._lost = False
        self._num_drafts = 0
        self._num_accepted = 0
        self._num_cached: int | None = None
        self._labels: dict[int, str] = {}

    @property
    def num_kept(self) -> int:
        """Tokens that the deltas have brought."""
        return len(self._kept)

    def add(self, delta: Delta) -> None:
        """Take the tokens of one delta."""
        for place, token_id in enumerate(delta.token_ids):
            self._kept.append((token_id, delta.logprobs[place] if place < len(delta.logprobs) else None))
        self._join()

    def observe(self, events: Iterable[Event], num_dropped: int = 0) -> None:
        """Take what the engine told, in its order; `num_dropped` of its events have been lost until now."""
        self._lost = self._lost or num_dropped > 0
        for event in events:
            if isinstance(event, StepEvent):
                for share in event.requests:
                    if share.request_id == self.request_id:
                        self._take(event, share)
            elif isinstance(event, RequestEvent) and event.request_id == self.request_id:
                self.ended = self.ended or event.state == "finished"
                self._num_cached = event.num_cached_tokens if event.state != "queued" else self._num_cached
        self._join()

    def finish(self, text: str) -> None:
        """The request has ended with this text: release every token, and cut their pieces to it."""
        self._lost = True  # what has not come by now does not come
        self._join()
        if self.tokens:
            self.tokens[-1] = self.tokens[-1]._replace(text=self.tokens[-1].text + self._stream.finish())
        self.tokens[:] = fitted(self.tokens, text)

    def metrics(self) -> dict[str, Any]:
        """What can be said of the request so far, by the names of `RequestMetrics`."""
        times = [mark.time_ns for mark in self._marks[: len(self._kept)]]
        metrics: dict[str, Any] = {
            "num_output_tokens": len(self._kept),
            "num_draft_tokens": self._num_drafts,
            "num_accepted_tokens": self._num_accepted,
        }
        if self._num_cached is not None:
            metrics["num_cached_tokens"] = self._num_cached
        if times and not self._lost:
            metrics["time_to_first_token"] = (times[0] - self._started_ns) / 1e9
            num_later = len(times) - times.count(times[0])
            if num_later:
                metrics["time_per_output_token"] = (times[-1] - times[0]) / num_later / 1e9
        return metrics

    # Parts

    def _take(self, event: StepEvent, share: ScheduledSlice) -> None:
        if self._lost:  # tokens between may be missing, so that positions are not known any more
            return
        ended_ns = event.time_ns + event.duration_ns
        num_accepted = len(share.accepted_drafts)
        kept = set(share.accepted_drafts)
        rejected = tuple(token_id for place, token_id in enumerate(share.draft_ids) if place not in kept)
        self._num_drafts += len(share.draft_ids)
        self._num_accepted += num_accepted
        for place, token_id in enumerate(share.token_ids):
            origin: Origin
            if place < num_accepted:
                origin = "accepted"
            elif share.has_bonus:
                origin = "bonus"
            else:
                origin = "corrected" if rejected else "target"
            refused = rejected if place == num_accepted else ()
            self._marks.append(_Mark(token_id, origin, event.step, ended_ns, refused))

    def _join(self) -> None:
        """Release the tokens of which both sides are known, in order."""
        while len(self.tokens) < len(self._kept):
            place = len(self.tokens)
            token_id, entry = self._kept[place]
            mark = self._marks[place] if place < len(self._marks) else None
            if mark is not None and mark.token_id != token_id:
                self._lost, mark = True, None
                del self._marks[place:]
            if mark is None and not self._lost:
                return
            self.tokens.append(self._traced(token_id, entry, mark))

    def _traced(self, token_id: int, entry: TokenLogprob | None, mark: _Mark | None) -> TracedToken:
        return TracedToken(
            token_id,
            self._stream.feed(token_id),
            None if mark is None else mark.origin,
            None if mark is None else mark.step,
            None if mark is None else round((mark.time_ns - self._started_ns) / NS_PER_MS, 2),
            None if entry is None or not math.isfinite(entry.logprob) else round(entry.logprob, 4),
            () if mark is None else tuple(map(self._label, mark.rejected)),
            () if entry is None else tuple(self._rivals(entry)),
        )

    def _rivals(self, entry: TokenLogprob) -> Iterator[tuple[str, float]]:
        for token_id, value in entry.top:
            if math.isfinite(value):  # others cannot come in its place at all
                yield self._label(token_id), round(value, 4)

    def _label(self, token_id: int) -> str:
        label = self._labels.get(token_id)
        if label is None:
            label = self._labels[token_id] = token_label(self._tokenizer, token_id)
        return label


def fitted(tokens: Sequence[TracedToken], text: str) -> list[TracedToken]:
    """The tokens with their texts cut, or the last one's extended, so that together they are `text`.

    A stop string may end the text within a token, and a half character at the end becomes a mark.
    """
    result: list[TracedToken] = []
    start = 0
    for place, token in enumerate(tokens):
        end = len(text) if place == len(tokens) - 1 else min(len(text), start + len(token.text))
        result.append(token._replace(text=text[start:end]))
        start = end
    return result


def pack(tokens: Sequence[TracedToken]) -> str | None:
    """The tokens as a short text for storing; None where they take more than `PACKED_LIMIT`."""
    for rows in (tokens, [token._replace(top=()) for token in tokens]):
        data = json.dumps(rows, separators=(",", ":"), ensure_ascii=True).encode()
        packed = base64.b85encode(zlib.compress(data, 6)).decode()
        if len(packed) <= PACKED_LIMIT:
            return packed
    return None


def unpack(packed: Any) -> list[TracedToken]:
    """What `pack` stored; empty where there is nothing, or nothing that can be read."""
    if not isinstance(packed, str):
        return []
    try:
        data = zlib.decompressobj().decompress(base64.b85decode(packed), MAX_UNPACKED_BYTES)
        return [
            TracedToken._make((*head, tuple(rejected), tuple((text, value) for text, value in top)))
            for *head, rejected, top in json.loads(data)
        ]
    except (ValueError, TypeError, IndexError, zlib.error):
        return []
