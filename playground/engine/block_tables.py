"""Gives requests their KV blocks: prefix hits, new blocks, copy-on-write, window trimming, registration.

Stands between the scheduler, which thinks in tokens, and the pool, which knows only blocks. Imports no torch.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import xxhash

from playground.engine.block_pool import NULL_BLOCK, BlockKey, BlockPool
from playground.engine.events import BlockAction, BlockEvent
from playground.engine.host_tier import HostTier, Transfer
from playground.engine.request import Request
from playground.sampling_params import SamplingParams

TO_RESTORE = -1
"""Stands in a prefix hit for a block that a lower tier has: it takes a block of the pool, but no computing."""


def root_hash(**extra_keys: str | None) -> int:
    """Hash that a chain starts from. Keys are tagged by name, so that two kinds of value can never alias."""
    tagged = "\x1f".join(f"{name}={len(value)}:{value}" for name, value in sorted(extra_keys.items()) if value)
    return xxhash.xxh64_intdigest(tagged.encode())


def chain_hash(parent_hash: int, token_ids: Sequence[int]) -> int:
    """xxh64 over the parent's hash and one block of token ids (8 bytes each)."""
    data = b"".join(value.to_bytes(8, "little") for value in (parent_hash, *token_ids))
    return xxhash.xxh64_intdigest(data)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def num_held(block_table: Sequence[int]) -> int:
    """Real blocks in a table or a hit: neither the null block nor what is still to be restored."""
    return sum(block_id > NULL_BLOCK for block_id in block_table)


class BlockTables:
    """The block tables of all requests over one pool."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_caching: bool = True,
        ttl: float | None = None,
        max_cached: int | None = None,
        window: int | None = None,
        namespace: str = "",
        clock: Callable[[], float] = time.monotonic,
        tier: HostTier | None = None,
    ) -> None:
        """`ttl` in seconds of `clock`; `max_cached` blocks that may stay without being used or pinned; `window` in
        tokens, the token itself counted; `namespace` names model and KV type in every hash; `tier` gets what is
        evicted."""
        self.tier = tier
        self.pool = BlockPool(
            num_blocks,
            ttl=ttl,
            max_cached=max_cached,
            clock=clock,
            record=self._record,
            on_evict=tier.save if tier is not None else None,
        )
        self.block_size = block_size
        self.recording = False
        """Whether block events are collected for `drain_events`; off while nobody listens."""
        self._events: list[BlockEvent] = []
        self._acting_for: int | None = None
        self._acting_at: int | None = None
        self.prefix_caching = prefix_caching
        self.window = window
        self._namespace = namespace
        self.tokens_written = 0
        """Prompt tokens that requests put into the prefix cache: the sum of their `num_cache_write_tokens`."""

    # What a request needs

    def max_blocks(self, num_tokens: int, max_chunk: int) -> int:
        """Most blocks a request of `num_tokens` ever holds at once, when at most `max_chunk` tokens run in a step."""
        blocks = cdiv(num_tokens, self.block_size)
        if self.window is None:
            return blocks
        return min(blocks, cdiv(self.window - 1 + max_chunk, self.block_size) + 1)

    def keeps_all(self, num_tokens: int) -> bool:
        """Whether a request of `num_tokens` holds all of its blocks: none slides out of the window."""
        return self.window is None or num_tokens <= self.window

    # Prefix hits

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks that already hold the KV of the longest cached prefix, at most all but the last token.

        One entry a logical block: the pool's, or `TO_RESTORE`; with a window, entries that no later token can see are
        the null block.
        """
        if not self.prefix_caching or request.params.prompt_logprobs is not None:
            return []
        limit = (request.num_tokens - 1) // self.block_size
        if self.window is None:
            hit: list[int] = []
            for index in range(limit):
                block_id = self._find(self._key(request, index))
                if block_id is None:
                    break
                hit.append(block_id)
            return hit
        return self._find_windowed_prefix(request, limit, self.window)

    def _find_windowed_prefix(self, request: Request, limit: int, window: int) -> list[int]:
        """Only the blocks that the window still reaches must be there; the longest such hit wins."""
        found = [self._find(self._key(request, index)) for index in range(limit)]
        run_start = 0  # first block of the run of found blocks that ends before `end`
        best: list[int] = []
        for end in range(1, limit + 1):
            if found[end - 1] is None:
                run_start = end
                continue
            first_visible = max(0, end * self.block_size - window + 1) // self.block_size
            if run_start <= first_visible:
                best = [NULL_BLOCK] * first_visible + [b for b in found[first_visible:end] if b is not None]
        return best

    def _find(self, key: BlockKey) -> int | None:
        block_id = self.pool.find(key)
        if block_id is None and self.tier is not None and self.tier.find(key):
            return TO_RESTORE
        return block_id

    def take(self, request: Request, hit: Sequence[int]) -> Counter[str]:
        """Give a request without blocks the blocks of a prefix hit, restoring those that the pool has lost.

        Returns how many tokens came from "host" and from "disk".
        """
        # All that are there before the first is allocated, which could evict another.
        self._share(request, hit)
        restored: Counter[str] = Counter()
        for index, block_id in enumerate(hit):
            if block_id == TO_RESTORE:
                assert self.tier is not None
                key = self._key(request, index)
                request.block_table[index] = self._allocate(request, index)
                self.pool.register(request.block_table[index], key)
                restored[self.tier.restore(key, request.block_table[index])] += self.block_size
        request.num_computed_tokens = len(hit) * self.block_size
        request.num_registered_blocks = request.num_found_blocks = len(hit)
        request.num_accounted_blocks = max(request.num_accounted_blocks, len(hit))
        return restored

    def num_free_after(self, hit: Sequence[int]) -> int:
        """Blocks left to allocate once the hit is taken: evictable blocks of the hit stop being free."""
        return self.pool.num_free - sum(self.pool.is_evictable(b) for b in hit if b > NULL_BLOCK)

    def holds(self, key: BlockKey) -> bool:
        """Whether any tier has this content."""
        return self.pool.find(key) is not None or (self.tier is not None and key in self.tier)

    # Tiers

    def drain_transfers(self) -> list[Transfer]:
        """What must be copied to and from host memory, in order, before anything else is written."""
        return self.tier.drain() if self.tier is not None else []

    def distrust(self, transfers: Sequence[Transfer]) -> None:
        """Transfers that failed: forget what they should have restored, and everything in host memory."""
        for transfer in transfers:
            if not transfer.to_host:
                self.pool.unregister(transfer.block_id)
        if self.tier is not None:
            self.tier.forget()

    def flush(self) -> None:
        """Forget all content that nobody holds or has pinned, in every tier."""
        self.pool.flush()
        if self.tier is not None:
            self.tier.clear()

    # Pinned prefixes

    def prefix_keys(self, token_ids: Sequence[int], cache_salt: str | None) -> list[BlockKey]:
        """Keys of the full blocks of a prefix."""
        keys, parent = [], self._root(cache_salt)
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            block = tuple(token_ids[start : start + self.block_size])
            keys.append(BlockKey(chain_hash(parent, block), parent, block, bool(cache_salt)))
            parent = keys[-1].hash
        return keys

    def readable_keys(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> list[BlockKey]:
        """Keys of the blocks that a request holds all along if it finds them: none where a window slides past them."""
        if not self.prefix_caching or self.window is not None or params.prompt_logprobs is not None:
            return []
        return self.prefix_keys(prompt_token_ids[:-1], params.cache_salt)

    # Sharing with a sibling

    def can_fork(self, request: Request) -> bool:
        """Whether the sibling's blocks still hold all that the first token this request runs will look at."""
        parent = request.fork_of
        if parent is None or parent.finished or parent.num_computed_tokens < request.num_shared_tokens:
            return False
        computed = request.num_forked_tokens
        first = 0 if self.window is None else max(0, computed - self.window + 1) // self.block_size
        return NULL_BLOCK not in parent.block_table[first : cdiv(computed, self.block_size)]

    def fork(self, request: Request) -> None:
        """Share the sibling's blocks of the common tokens. The first write into a part-filled last one copies it.

        At least the last token runs, for its logits, so nothing is special about a forked request afterwards.
        """
        assert request.fork_of is not None
        computed = request.num_forked_tokens
        self._share(request, request.fork_of.block_table[: cdiv(computed, self.block_size)])
        request.num_computed_tokens = computed
        request.num_registered_blocks = min(request.fork_of.num_registered_blocks, computed // self.block_size)
        request.num_found_blocks = len(request.block_table)
        request.num_accounted_blocks = cdiv(request.num_prompt_tokens, self.block_size)

    def adopt(self, request: Request, parent: Request) -> None:
        """Give a request all blocks of a sibling in place of its own, after it got that sibling's tokens.

        The hash chain comes along: what the request had of its own belonged to its old tokens.
        """
        given_up = request.block_table
        self._share(request, parent.block_table)
        self._release(request, reversed(given_up))
        request.num_computed_tokens = parent.num_computed_tokens
        request.num_registered_blocks = parent.num_registered_blocks
        request.num_found_blocks = parent.num_found_blocks
        request.num_accounted_blocks = parent.num_accounted_blocks
        request.block_hashes = list(parent.block_hashes)

    def _share(self, request: Request, block_ids: Sequence[int]) -> None:
        """Let a request hold these blocks beside their other holders: they are its block table from now on."""
        self._acting_for = request.request_id
        for index, block_id in enumerate(block_ids):
            if block_id > NULL_BLOCK:
                self._acting_at = index
                self.pool.share(block_id)
                request.holdings.add(block_id)
        request.block_table = list(block_ids)

    def _allocate(self, request: Request, index: int) -> int:
        """A block for the request's logical block `index`."""
        self._acting_at = index
        block_id = self.pool.allocate()
        request.holdings.add(block_id)
        return block_id

    def _release(self, request: Request, block_ids: Iterable[int]) -> None:
        held = [block_id for block_id in block_ids if block_id != NULL_BLOCK]
        for block_id in held:
            request.holdings.remove(block_id)
        self.pool.release(held)

    # Growing and shrinking

    def grow(self, request: Request, num_tokens: int) -> list[tuple[int, int]] | None:
        """Make room for the KV of the next `num_tokens` tokens; None, and nothing changed, if the pool is too full.

        Returns the copies (source block, destination block) that must be made before anything is written.
        """
        self._acting_for = request.request_id
        self._trim(request)
        start = request.num_computed_tokens
        missing = cdiv(start + num_tokens, self.block_size) - len(request.block_table)
        first = start // self.block_size
        tail = request.block_table[first] if first < len(request.block_table) else NULL_BLOCK
        tail_is_shared = tail != NULL_BLOCK and (self.pool.ref_count(tail) > 1 or self.pool.is_pinned(tail))
        if missing + tail_is_shared > self.pool.num_free:
            return None
        copies: list[tuple[int, int]] = []
        if tail_is_shared:
            request.block_table[first] = self._allocate(request, first)
            copies.append((tail, request.block_table[first]))
            self._record("copy", request.block_table[first], 1, tail)
            self._release(request, [tail])
        elif tail != NULL_BLOCK:
            self.pool.unregister(tail)  # nobody else holds it, but it must not be found while it changes
        request.num_registered_blocks = min(request.num_registered_blocks, first)
        for index in range(len(request.block_table), len(request.block_table) + missing):
            request.block_table.append(self._allocate(request, index))
        request.holdings.note_peak()
        return copies

    def shrink(self, request: Request) -> None:
        """Give back the blocks at the end that hold no computed token: they were taken for drafts that did not stay."""
        num_blocks = cdiv(request.num_computed_tokens, self.block_size)
        if len(request.block_table) > num_blocks:
            self._acting_for = request.request_id
            surplus = request.block_table[num_blocks:]
            del request.block_table[num_blocks:]
            self._release(request, reversed(surplus))

    def _trim(self, request: Request) -> None:
        """Release the blocks that have slid out of the window of the next token and all later ones."""
        if self.window is None:
            return
        num_invisible = max(0, request.num_computed_tokens - self.window + 1) // self.block_size
        num_invisible = min(num_invisible, request.num_registered_blocks if self.prefix_caching else num_invisible)
        for index in range(num_invisible - 1, -1, -1):
            block_id = request.block_table[index]
            if block_id == NULL_BLOCK:
                break
            request.block_table[index] = NULL_BLOCK
            self._release(request, [block_id])

    def register(self, request: Request, num_tokens: int) -> None:
        """Put the full blocks among the request's first `num_tokens` tokens into the prefix cache.

        Call after the step that computed them has ended: a later step may be launched already, but what it writes, and
        from which tokens, is not known yet.
        """
        if not self.prefix_caching:
            return
        breakpoints = request.params.cache_breakpoints
        limit = None if breakpoints is None else max(breakpoints, default=0) // self.block_size
        for index in range(request.num_registered_blocks, num_tokens // self.block_size):
            block_id = request.block_table[index]
            wanted = limit is None or index < limit
            if wanted and block_id != NULL_BLOCK and self.pool.key(block_id) is None:
                key = self._key(request, index)
                self._count_write(request, index, key)
                self.pool.register(block_id, key)
            request.num_registered_blocks = index + 1

    def _count_write(self, request: Request, index: int, key: BlockKey) -> None:
        """A block of the prompt that no tier had is a write, once: not again when it is computed after a preemption."""
        if index < request.num_accounted_blocks:
            return
        request.num_accounted_blocks = index + 1
        if (index + 1) * self.block_size <= request.num_prompt_tokens and not self.holds(key):
            request.num_cache_write_tokens += self.block_size
            self.tokens_written += self.block_size

    def free(self, request: Request, *, keep_cached: bool = True) -> list[int]:
        """Take all blocks away from a request, tail first; returns those that nobody holds and that hold nothing.

        With `keep_cached=False` their content is forgotten too (it came from a request that failed), in every tier.
        Only what it found pinned stays: others vouch for that.
        """
        self._acting_for = request.request_id
        held = [block_id for block_id in reversed(request.block_table) if block_id != NULL_BLOCK]
        if not keep_cached:
            self._distrust_blocks(request)
        worthless = [block_id for block_id in held if self.pool.key(block_id) is None]
        self._release(request, held)
        request.block_table = []
        request.num_computed_tokens = 0
        request.num_registered_blocks = 0
        return [block_id for block_id in worthless if self.pool.ref_count(block_id) == 0]

    def _distrust_blocks(self, request: Request) -> None:
        for index, block_id in enumerate(request.block_table):
            key = self.pool.key(block_id)
            if key is None or (index < request.num_found_blocks and self.pool.is_pinned(block_id)):
                continue
            self.pool.unregister(block_id)
            if self.tier is not None:
                self.tier.discard(key)

    # Events

    def drain_events(self) -> list[BlockEvent]:
        """What happened to blocks since the last call."""
        events, self._events = self._events, []
        return events

    def _record(self, action: BlockAction, block_id: int, ref_count: int, source: int | None = None) -> None:
        if self.recording:
            now = time.perf_counter_ns()
            index = self._acting_at if action in ("alloc", "share") else None
            self._events.append(BlockEvent(now, action, block_id, ref_count, self._acting_for, source, index))

    def _key(self, request: Request, index: int) -> BlockKey:
        """Key of the request's logical block `index`, which its tokens fill completely."""
        hashes = request.block_hashes  # starts with the root, so hashes[i + 1] belongs to block i
        salt = request.params.cache_salt
        if not hashes:
            hashes.append(self._root(salt))
        while len(hashes) <= index + 1:
            hashes.append(chain_hash(hashes[-1], self._tokens(request, len(hashes) - 1)))
        return BlockKey(hashes[index + 1], hashes[index], tuple(self._tokens(request, index)), bool(salt))

    def _root(self, cache_salt: str | None) -> int:
        return root_hash(namespace=self._namespace, salt=cache_salt)

    def _tokens(self, request: Request, index: int) -> list[int]:
        return request.token_ids[index * self.block_size : (index + 1) * self.block_size]
