"""The public face of the engine: loads a model, checks requests, hands them to the loop, collects the answers.

Every method may be called from any thread. Several engines can live in one process; they share nothing.
"""

import atexit
import gc
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import torch

from playground.config import EngineConfig
from playground.engine.beam_group import BeamGroup
from playground.engine.beam_search import BeamSearch
from playground.engine.build import build
from playground.engine.core import EngineCore
from playground.engine.detokenizer import Detokenizer
from playground.engine.events import EventStream
from playground.engine.handle import GenerationHandle
from playground.engine.holdings import Holdings
from playground.engine.kv_snapshot import KVSnapshot
from playground.engine.loop import CLOSED, EngineLoop
from playground.engine.openmp import release_workers
from playground.engine.outputs import Delta, EngineStats, Generation, PinnedPrefix
from playground.engine.prefix_cache import LowerTiers
from playground.engine.prompts import PromptReader
from playground.engine.request import Request
from playground.engine.resolve import (
    check_cuda_graphs,
    resolve_attention,
    resolve_device,
    resolve_dtype,
)
from playground.engine.tracker import SampleTracker, SubmissionTracker
from playground.errors import RequestError
from playground.models.bundled import BUNDLED_MODEL
from playground.models.config import DecoderConfig
from playground.models.heap import returning_memory_to_system
from playground.models.layers import AttentionName
from playground.models.loader import read_config, resolve_model_path
from playground.models.weights import OnProgress
from playground.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
SEED_STEP = 0x9E3779B97F4A7C15  # golden ratio: successive seeds differ in about half of their bits


class Engine:
    """One model, one KV cache, one step loop.

    Raises `ConfigError` or `ModelLoadError` at construction. A context manager; `close` frees the memory.
    """

    def __init__(self, config: EngineConfig | None = None, *, on_progress: OnProgress | None = None) -> None:
        """`on_progress` hears of every layer of the model that was built; what it raises ends the loading."""
        given = config or EngineConfig()
        device = resolve_device(given.device)
        path = resolve_model_path(given.model or str(BUNDLED_MODEL), given.revision, load_format=given.load_format)
        shape = read_config(path)
        dtype = resolve_dtype(given.dtype, shape.torch_dtype, device)
        attention = resolve_attention(given.attention, shape, device, dtype)
        check_cuda_graphs(given, device, attention)
        self.events = EventStream()
        self._request_ids = itertools.count(1)
        self._submit_lock = threading.Lock()
        self._last_stats = EngineStats()
        self._loop = EngineLoop(partial(self._load, given, path, device, dtype, attention, on_progress))
        self._core: EngineCore | None = self._loop.core
        _open_engines.add(self)

    def _load(
        self,
        given: EngineConfig,
        path: Path,
        device: torch.device,
        dtype: torch.dtype,
        attention: AttentionName,
        on_progress: OnProgress | None,
    ) -> EngineCore:
        built = build(given, path, device, dtype, attention, self.events, on_progress)
        self.config: EngineConfig = built.config
        self.model_config: DecoderConfig = built.model_config
        self.tokenizer = built.tokenizer
        self._eos_token_ids = built.eos_token_ids
        self._prompts = PromptReader(self.tokenizer, built.model_config.vocab_size, self._max_model_len)
        self._lower_tiers = built.tiers
        self._pins = built.core.pins
        return built.core

    @property
    def _max_model_len(self) -> int:
        assert self.config.max_model_len is not None
        return self.config.max_model_len

    # Requests

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> GenerationHandle:
        """Queue one request and return at once. Raises `RequestError` if it can never be served.

        With `beam_width` the handle hears of its sequences when the search is over: one delta each, by rank.
        """
        params = params if params is not None else SamplingParams()
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params is a {type(params).__name__}: give a SamplingParams.")
        release_workers()  # the caller's own, if it has used torch: it hands over to the engine's
        token_ids = self._prompts.read(prompt)
        self._prompts.check_params(params, len(token_ids))
        max_total_tokens = min(len(token_ids) + params.max_tokens, self._max_model_len)
        if params.beam_width > self.config.max_num_seqs:
            raise RequestError(
                f"beam_width={params.beam_width} runs as many sequences at once, but "
                f"max_num_seqs={self.config.max_num_seqs}: lower beam_width or raise max_num_seqs."
            )
        self._pins.check_request(token_ids, params, max_total_tokens)
        with self._submit_lock:
            request_ids = [next(self._request_ids) for _ in range(max(params.n, params.beam_width))]
        handle = GenerationHandle(request_ids[0], lambda: self._abort(request_ids))
        group = self._group(handle, request_ids, token_ids, params, max_total_tokens)

        def add(core: EngineCore) -> None:
            for sample in group.samples:
                core.add(sample)

        if not self._loop.post(add):
            raise RequestError(f"{CLOSED}: make a new one to generate.")
        return handle

    def _group(
        self,
        handle: GenerationHandle,
        request_ids: Sequence[int],
        token_ids: list[int],
        params: SamplingParams,
        max_total_tokens: int,
    ) -> SubmissionTracker:
        """The requests of one submission: samples that fork from the first, or the beams of one search."""
        group = SubmissionTracker(handle, self._eos_token_ids)
        seed = params.seed if params.seed is not None else self.config.seed + request_ids[0] * SEED_STEP
        holdings = Holdings()
        for index, request_id in enumerate(request_ids):
            request = Request(
                request_id,
                token_ids,
                params,
                _to_int64(seed + index),
                max_total_tokens,
                fork_of=group.samples[0].request if index and params.beam_width == 1 else None,
                holdings=holdings,
            )
            detokenizer = Detokenizer(self.tokenizer, token_ids, params, self._eos_token_ids)
            group.samples.append(SampleTracker(request, index, detokenizer, group))
        if params.beam_width > 1:
            search = BeamSearch(
                params.beam_width,
                max_total_tokens - len(token_ids),
                ending_token_ids=params.ending_token_ids(self._eos_token_ids),
                length_penalty=params.length_penalty,
                early_stopping=params.early_stopping,
            )
            BeamGroup([sample.request for sample in group.samples], search)
        return group

    def _abort(self, request_ids: Sequence[int]) -> None:
        def abort(core: EngineCore) -> None:
            for request_id in request_ids:
                core.abort(request_id)

        self._loop.post(abort)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Generation]:
        """Generate for every prompt and return the results in input order. One `SamplingParams`, or one a prompt."""
        batch: list[Prompt]
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            batch = [prompts]  # type: ignore[list-item]
        else:
            batch = list(prompts)  # type: ignore[arg-type]
        if params is None or isinstance(params, SamplingParams):
            each: list[SamplingParams | None] = [params] * len(batch)
        else:
            each = list(params)
        if len(each) != len(batch):
            raise RequestError(f"{len(batch)} prompts but {len(each)} SamplingParams: give one, or one a prompt.")
        handles: list[GenerationHandle] = []
        try:
            for prompt, own in zip(batch, each, strict=True):
                handles.append(self.submit(prompt, own))
            return [handle.result() for handle in handles]
        except BaseException:  # a refused prompt or Ctrl-C must not leave the others running
            for handle in handles:
                handle.cancel()
            raise

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Deltas as they come; closing the iterator aborts the request. Raises `RequestError` for a beam search."""
        if isinstance(params, SamplingParams) and params.beam_width > 1:
            raise RequestError(
                f"beam_width={params.beam_width} cannot be streamed, since any token may still be dropped until the "
                "search is over: use generate() or submit().result()."
            )
        handle = self.submit(prompt, params)

        def deltas() -> Iterator[Delta]:
            try:
                yield from handle
            finally:
                handle.cancel()

        return deltas()

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation under the model's chat template, ready for the reply."""
        return self._prompts.chat(messages)

    def chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams | None = None) -> Generation:
        """The reply to a conversation of `{"role", "content"}` messages."""
        return self.submit(self.chat_prompt(messages), params).result()

    # State

    def stats(self) -> EngineStats:
        """A snapshot after the latest step."""
        core = self._core
        return core.stats() if core is not None else self._last_stats

    def kv_snapshot(self) -> KVSnapshot:
        """Who holds which KV block, as of now: between two steps. Raises `RequestError` once the engine is closed.

        With the events after its `time_ns` it tells every later state too. Waits for the step that is being run.
        """
        return self._loop.call(lambda core: KVSnapshot.of(core.scheduler))

    # Prefix cache

    def pin_prefix(self, prompt: Prompt, *, cache_salt: str | None = None, ttl: float | None = None) -> PinnedPrefix:
        """Keep the full KV blocks of a prefix, a system prompt for instance, until unpinned or for `ttl` seconds.

        Computes what is not cached yet, with a request of its own, and returns when it is there. Pinned blocks are
        neither evicted nor expired nor flushed. Raises `RequestError` where the prefix is shorter than a block, takes
        more than `prefix_cache_max_pinned` allows, or would leave too few blocks to a request that is being served.
        """
        token_ids = self._prompts.read(prompt)
        params = SamplingParams(max_tokens=1, temperature=0, cache_salt=cache_salt)
        if ttl is not None and (not isinstance(ttl, int | float) or isinstance(ttl, bool) or not 0 < ttl < math.inf):
            raise RequestError(f"ttl={ttl!r} is not allowed: give None (no limit) or seconds above 0.")
        pin_id = self._loop.call(lambda core: core.pins.add(token_ids, cache_salt, ttl))
        try:
            if not self._pins.is_complete(pin_id):
                whole = len(token_ids) // self.config.block_size * self.config.block_size
                error = self.generate([token_ids[: whole + 1]], params)[0].error
                if error is not None:
                    raise RequestError(f"the prefix could not be computed: {error}.")
            pinned = {one.pin_id: one for one in self.pinned_prefixes()}.get(pin_id)
            if pinned is None:
                raise RequestError(f"ttl={ttl!r} seconds were over before the prefix was computed: raise it.")
            return pinned
        except BaseException:
            with suppress(RequestError):  # its time may be over, or the engine closed
                self.unpin_prefix(pin_id)
            raise

    def unpin_prefix(self, pin: PinnedPrefix | int) -> None:
        """Let a pinned prefix go; its blocks stay cached until somebody needs them. `RequestError` if it is gone."""
        pin_id = pin.pin_id if isinstance(pin, PinnedPrefix) else pin
        self._loop.call(lambda core: core.pins.remove(pin_id))

    def pinned_prefixes(self) -> list[PinnedPrefix]:
        """The prefixes that are pinned now, oldest first."""
        return self._pins.list()

    def flush_prefix_cache(self) -> None:
        """Forget every cached prefix that no request holds and that is not pinned, in memory and on disk.

        Takes effect before the next step.
        """

        def flush(core: EngineCore) -> None:
            if core.scheduler.tables is not None:
                core.scheduler.tables.flush()

        self._loop.post(flush)

    def pause(self) -> None:
        """Run no step until `resume`, and give the threads of its computing back: what else computes has the cores.

        Requests are still taken and wait; nothing is freed. Closing ends a pause.
        """
        self._loop.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._loop.resume()

    def close(self) -> None:
        """Write the prefix cache to `prefix_cache_dir` if there is one, end all requests with an error, stop the
        thread, free weights and KV cache. Closing twice does nothing."""
        core, self._core = self._core, None
        _open_engines.discard(self)
        if core is None:
            return
        tiers, self._lower_tiers = self._lower_tiers, LowerTiers()
        if tiers.files is not None:
            self._loop.post(lambda core: core.write_prefix_cache(tiers))
        num_threads = _num_system_threads()
        with returning_memory_to_system():  # a closed engine should be gone from the process too
            self._loop.close()
            tiers.close()
            self._last_stats = core.stats()
            on_gpu = core.executor.model.device.type == "cuda"
            del core
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()
            _wait_for_fewer_threads(num_threads - torch.get_num_threads())

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is not None and hasattr(self, "_loop"):
            self.close()


_open_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_engines() -> None:
    """Those that a program leaves open: once the interpreter is being taken down, no thread of theirs can be ended."""
    for engine in list(_open_engines):
        engine.close()


def _to_int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _num_system_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        return 0


def _wait_for_fewer_threads(most: int, seconds: float = 1.0) -> None:
    """OpenMP's workers end a moment after the thread that they worked for; only then is their memory free to return."""
    until = time.monotonic() + seconds
    while _num_system_threads() > most and time.monotonic() < until:
        time.sleep(0.002)
