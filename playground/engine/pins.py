"""Prefixes that stay: which are pinned, how long, and whether a new one still leaves room for everybody else.

Pins content, not blocks: a pinned prefix need not be there yet, and is kept as soon as any request has computed it.
Changed by the engine thread only; reading is safe from any thread. Imports no torch.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from playground.engine.block_pool import BlockKey
from playground.engine.outputs import PinnedPrefix
from playground.engine.scheduler import Scheduler
from playground.errors import RequestError
from playground.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class _Pinned:
    keys: tuple[BlockKey, ...]
    num_tokens: int
    expires_at: float | None


class PinnedPrefixes:
    """The pinned prefixes of one scheduler.

    Whatever is pinned, every accepted request can still be served alone: what it needs and the pinned blocks that it
    cannot use itself fit into the pool together. `check_request` holds new requests to that, `add` new pins.
    """

    def __init__(
        self, scheduler: Scheduler, max_share: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_share` of the pool's blocks may be pinned; `clock` in seconds."""
        self._scheduler = scheduler
        self._max_share = max_share
        self._clock = clock
        self._ids = itertools.count(1)
        self._pinned: dict[int, _Pinned] = {}  # never changed in place: other threads read it

    def add(self, token_ids: Sequence[int], cache_salt: str | None, ttl: float | None = None) -> int:
        """Pin the full blocks of a prefix, for `ttl` seconds or until removed; returns the pin's id.

        Raises `RequestError` with the numbers where it would leave too little of the pool.
        """
        tables = self._scheduler.tables
        if tables is None or not tables.prefix_caching:
            raise RequestError("a prefix can be pinned only while prefix_caching is on: turn it on.")
        keys = tables.prefix_keys(token_ids, cache_salt)
        if not keys:
            raise RequestError(
                f"the prefix has {len(token_ids)} tokens, but a KV block, the least that is cached, holds "
                f"{tables.block_size}: pin a longer one."
            )
        num_tokens = len(keys) * tables.block_size
        if tables.window is not None:  # a later token sees no further back than this
            keys = keys[max(0, num_tokens - tables.window + 1) // tables.block_size :]
        self.expire()
        reserved = self._reserved() | set(keys)
        self._check_room(len(keys), reserved)
        pin_id = next(self._ids)
        expires_at = None if ttl is None else self._clock() + ttl
        self._pinned = {**self._pinned, pin_id: _Pinned(tuple(keys), num_tokens, expires_at)}
        for key in keys:
            tables.pool.pin(key)
        return pin_id

    def remove(self, pin_id: int) -> None:
        """Let a prefix go: its blocks are ordinary cached ones from now on. Raises `RequestError` for unknown ids."""
        tables = self._scheduler.tables
        if pin_id not in self._pinned or tables is None:
            raise RequestError(f"no prefix is pinned as {pin_id}: it was unpinned, has expired or never was.")
        pinned = self._pinned[pin_id]
        self._pinned = {other: one for other, one in self._pinned.items() if other != pin_id}
        for key in reversed(pinned.keys):  # so that the head of the prefix is evicted last
            tables.pool.unpin(key)

    def expire(self) -> None:
        """Let go of what was pinned for a time that is over."""
        for pin_id, pinned in list(self._pinned.items()):
            if not self._lasts(pinned):
                self.remove(pin_id)

    def is_complete(self, pin_id: int) -> bool:
        """Whether every block of the prefix is in the pool."""
        tables, pinned = self._scheduler.tables, self._pinned.get(pin_id)
        return tables is not None and pinned is not None and all(map(tables.pool.has_pinned, pinned.keys))

    def list(self) -> list[PinnedPrefix]:
        """The pinned prefixes, oldest first."""
        return [self._describe(pin_id, pinned) for pin_id, pinned in self._pinned.items() if self._lasts(pinned)]

    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams, max_total_tokens: int) -> None:
        """Raise `RequestError`, with the numbers, for a request that could never be served beside the pins."""
        tables = self._scheduler.tables
        if tables is None:
            return
        width, num_prompt = params.beam_width, len(prompt_token_ids)
        # The last token's own KV is never needed.
        needed = self._scheduler.max_blocks(max_total_tokens - 1, width=width, num_prompt=num_prompt)
        beside = self._num_beside(prompt_token_ids, params, self._reserved())
        if needed + beside <= tables.pool.num_blocks:
            return
        size = tables.block_size
        beams, fewer = (f" in {width} beams", "lower beam_width or") if width > 1 else ("", "lower")
        pinned, unpin = (f", {beside} of them pinned for others", "unpin a prefix, ") if beside else ("", "")
        raise RequestError(
            f"{num_prompt} prompt tokens and up to {max_total_tokens - num_prompt} new ones{beams} need {needed} KV "
            f"blocks, but the pool has {tables.pool.num_blocks} of {size} tokens{pinned}: {unpin}shorten the prompt, "
            f"{fewer} max_tokens, or raise num_kv_blocks."
        )

    def _check_room(self, num_new: int, reserved: set[BlockKey]) -> None:
        tables = self._scheduler.tables
        assert tables is not None
        total = tables.pool.num_blocks
        allowed = int(total * self._max_share)
        if len(reserved) > allowed:
            raise RequestError(
                f"pinning {num_new} blocks of {tables.block_size} tokens would pin {len(reserved)} of the pool's "
                f"{total}, and prefix_cache_max_pinned={self._max_share} allows {allowed}: pin a shorter prefix, unpin "
                "another, or raise num_kv_blocks."
            )
        for request in self._scheduler.unfinished:
            width, num_prompt = request.params.beam_width, request.num_prompt_tokens
            needed = self._scheduler.max_blocks(request.max_total_tokens - 1, width=width, num_prompt=num_prompt)
            beside = self._num_beside(request.prompt_token_ids, request.params, reserved)
            if needed + beside > total:
                raise RequestError(
                    f"pinning {num_new} blocks would leave request {request.request_id}, which needs up to {needed}, "
                    f"only {total - beside} of {total}: pin it when that request has ended, or pin a shorter prefix."
                )

    def _num_beside(self, prompt_token_ids: Sequence[int], params: SamplingParams, reserved: set[BlockKey]) -> int:
        """Reserved blocks that the request does not find as its own prefix."""
        tables = self._scheduler.tables
        if not reserved or tables is None:
            return 0
        own = itertools.takewhile(reserved.__contains__, tables.readable_keys(prompt_token_ids, params))
        return len(reserved) - sum(1 for _ in own)

    def _reserved(self) -> set[BlockKey]:
        return {key for pinned in self._pinned.values() if self._lasts(pinned) for key in pinned.keys}

    def _lasts(self, pinned: _Pinned) -> bool:
        return pinned.expires_at is None or self._clock() < pinned.expires_at

    def _describe(self, pin_id: int, pinned: _Pinned) -> PinnedPrefix:
        left = None if pinned.expires_at is None else pinned.expires_at - self._clock()
        return PinnedPrefix(pin_id, pinned.num_tokens, len(pinned.keys), left)
