"""Runs a comparison: loads its engines, has each write the texts once, then takes timed rounds in shuffled order.

Sequential runs are fair: one engine works at a time, and one that is idle gives up the threads that its work had. Where
memory has room the engines stay loaded beside each other, so that every round pairs all sides; where not, each is
loaded for its turn. A side that fails keeps its sentence, and the others go on. What comes out is plain data for JSON.
"""

import copy
import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psutil
import torch

from playground import info
from playground.bench.compare.alignment import align
from playground.bench.compare.measures import draft_counts, measure
from playground.bench.compare.plan import LETTERS, Plan
from playground.engine.engine import Engine
from playground.engine.handle import GenerationHandle
from playground.engine.outputs import Generation
from playground.engine.token_text import text_stream
from playground.errors import ConfigError, PlaygroundError, RequestError, out_of_memory
from playground.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

RECORD_VERSION = 1
TOP = 20
"""Rivals that are looked at where two texts part: enough to find the other side's token nearly always."""
JOIN_AFTER = 8
"""With arrival "joining": tokens that a reply has before the next prompt is sent."""
SETTLE_SECONDS = 0.1
"""Before every timed run: what was told of the one before has been drawn by then."""
ROOM = 256 * 2**20
"""Bytes of memory that are left free when another engine is loaded beside those that are held."""
FAULT = "This configuration failed because of a fault in the playground; its log says more."

Record = dict[str, Any]
EndOfCapture = Callable[[Sequence[Generation], Sequence[SamplingParams]], Sequence[int | None]]
"""Called with what the engine wrote; says under which number each of them was kept, None for not at all."""
Capture = Callable[[Engine], EndOfCapture]
"""Called before an engine writes the texts, to keep what it does meanwhile."""


class Stopped(PlaygroundError):
    """The comparison was stopped by its user."""


class Comparison:
    """One comparison from its start to its end. `run` once, on a thread of its own; the rest from any thread."""

    def __init__(
        self,
        plan: Plan,
        on_change: Callable[[bool], None] = lambda is_record: None,
        capture: Capture = lambda engine: lambda generations, params: [None] * len(generations),
    ) -> None:
        """`on_change` is called between two pieces of work, on the thread that runs them: what it does is in nobody's
        time. It is told whether the record has changed, or only what is being done. `capture` sees the run that gives
        the texts, which is not timed."""
        self.plan = plan
        self._on_change = on_change
        self._capture = capture
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._handles: set[GenerationHandle] = set()
        self._held: dict[int, Engine] = {}
        self._hold = True
        self._done = 0
        self._total = len(plan.sides) * (1 + plan.warmups + plan.repeats)
        self._doing = ""
        self._order = random.Random(plan.seed)
        self._tops: dict[tuple[int, int], Generation] = {}
        sides: list[Record] = [
            {"name": side.name, "error": None, "facts": {}, "outputs": [], "runs": []} for side in plan.sides
        ]
        self._record: Record = {
            "version": RECORD_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            "held": True,
            "rounds": [],
            "sides": sides,
            "divergences": [[] for _ in plan.sides],
        }

    # From any thread

    def stop(self) -> None:
        """Have it end within one step of the engine; what was measured stays."""
        self._stop.set()
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            handle.cancel()

    def progress(self) -> tuple[str, float]:
        """What it does now, in words, and how much of all is done (0 to 1)."""
        return self._doing, min(1.0, self._done / self._total)

    def snapshot(self) -> Record:
        """The record as it is now."""
        with self._lock:
            return copy.deepcopy(self._record)

    # The run

    def run(self) -> Record:
        """Run it to its end and return the record. Raises nothing that a configuration or a request is to blame for."""
        started = time.perf_counter()
        status = "done"
        try:
            self._note(machine=info.machine(), versions=info.versions())
            self._on_change(True)
            self._read_all()
            if self.plan.mode == "sequential":
                self._time_in_turns()
            else:
                self._time_together()
        except Stopped:
            status = "stopped"
        finally:
            self._close_all()
            if all(side["error"] for side in self._record["sides"]):
                status = "failed"
            self._tops.clear()
            self._note(status=status, seconds=time.perf_counter() - started)
            self._on_change(True)
        return self.snapshot()

    def _read_all(self) -> None:
        """Load every side and warm it up; the last warm-up writes the texts, with log-probabilities."""
        for side in self._shuffled():
            with _Contained(self, side):
                engine = self._open(side)
                for _ in range(self.plan.warmups - 1):
                    self._say(f"warming up {LETTERS[side]}")
                    self._play(engine, side)
                    self._advance()
                self._say(f"{LETTERS[side]} writes the texts")
                self._write_texts(side, engine)
                self._advance()
            self._compare_texts()

    def _time_in_turns(self) -> None:
        for number in range(self.plan.repeats):
            order = self._shuffled()
            self._add_round(order)
            for side in order:
                with _Contained(self, side):
                    if side not in self._held:
                        engine = self._open(side)
                        self._say(f"warming up {LETTERS[side]}")
                        self._play(engine, side)
                    self._say(f"round {number + 1} of {self.plan.repeats}: {LETTERS[side]}")
                    self._time(number, side)
                    self._advance()
                self._on_change(True)

    def _time_together(self) -> None:
        for number in range(self.plan.repeats):
            order = self._shuffled()
            self._add_round(order)
            self._say(f"round {number + 1} of {self.plan.repeats}: all at once")

            def one(side: int, number: int = number) -> None:
                with _Contained(self, side):
                    self._time(number, side)
                self._advance()

            with ThreadPoolExecutor(max(1, len(order))) as pool:
                list(pool.map(one, order))
            self._on_change(True)

    def _time(self, number: int, side: int) -> None:
        engine = self._held[side]
        self._stop.wait(SETTLE_SECONDS)
        engine.flush_prefix_cache()  # or every round after the first would find the prompts of the one before
        events = engine.events.subscribe()
        try:
            started = time.perf_counter()
            generations = self._play(engine, side)
            seconds = time.perf_counter() - started
        finally:
            engine.events.unsubscribe(events)
        told, dropped = events.drain(), events.num_dropped
        values = measure(generations, seconds, told, dropped, engine.stats())
        with self._lock:
            runs = self._record["sides"][side]["runs"]
            runs.append({"round": number, "values": values, **draft_counts(generations, told, dropped)})

    # One workload

    def _play(self, engine: Engine, side: int, **changes: Any) -> list[Generation]:
        """All prompts as the plan sends them; their results in order. Raises `Stopped`, or what a prompt fails with."""
        plan = self.plan
        prompts = [
            engine.chat_prompt([{"role": "user", "content": text}]) if plan.chat else text for text in plan.prompts
        ]
        handles: list[GenerationHandle] = []
        try:
            for number, prompt in enumerate(prompts):
                if handles and plan.arrival != "together":
                    _wait(handles[-1], JOIN_AFTER if plan.arrival == "joining" else None)
                self._check()
                handle = engine.submit(prompt, plan.params(number, **changes))
                handles.append(handle)
                with self._lock:
                    self._handles.add(handle)
            generations = [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()
            with self._lock:
                self._handles.difference_update(handles)
        self._check()
        for generation in generations:
            if generation.finish_reason == "error":
                raise RequestError(f"{generation.error or 'A prompt failed'}".rstrip(".") + ".")
        return generations

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("The comparison was stopped.")

    # Texts

    def _write_texts(self, side: int, engine: Engine) -> None:
        end_capture = self._capture(engine)
        generations: list[Generation] = []
        try:
            generations = self._play(engine, side, logprobs=TOP)
        finally:
            runs = end_capture(generations, [self.plan.params(i, logprobs=TOP) for i in range(len(generations))])
        self._keep_texts(side, engine, generations, runs)

    def _keep_texts(
        self, side: int, engine: Engine, generations: Sequence[Generation], runs: Sequence[int | None]
    ) -> None:
        outputs = []
        for prompt, (generation, run) in enumerate(zip(generations, runs, strict=True)):
            self._tops[side, prompt] = generation
            stream = text_stream(engine.tokenizer, generation.prompt_token_ids)
            ends, length = [], 0
            for token_id in generation.token_ids:
                length += len(stream.feed(token_id))
                ends.append(min(length, len(generation.text)))
            if ends:
                ends[-1] = len(generation.text)
            outputs.append(
                {
                    "token_ids": list(generation.token_ids),
                    "ends": ends,
                    "text": generation.text,
                    "finish_reason": generation.finish_reason,
                    "num_prompt_tokens": generation.metrics.num_prompt_tokens,
                    "run": run,
                }
            )
        with self._lock:
            self._record["sides"][side]["outputs"] = outputs

    def _compare_texts(self) -> None:
        """Where every side's texts part from the first side's, as far as both are there."""
        with self._lock:
            base, *others = self._record["sides"]
            for number, other in enumerate(others, start=1):
                if not base["outputs"] or not other["outputs"]:
                    continue
                same = base["facts"]["vocabulary"] == other["facts"]["vocabulary"]
                pairs = enumerate(zip(base["outputs"], other["outputs"], strict=True))
                self._record["divergences"][number] = [
                    {
                        **align(one, two, same_vocabulary=same),
                        "logprobs": self._logprobs(number, prompt, one, two) if same else None,
                    }
                    for prompt, (one, two) in pairs
                ]
        self._on_change(True)

    def _logprobs(self, side: int, prompt: int, one: Record, two: Record) -> list[list[float | None]]:
        """Where two texts part: for each side, log-probability of the first side's token and of the other's."""
        at = next(
            (i for i, (a, b) in enumerate(zip(one["token_ids"], two["token_ids"], strict=False)) if a != b),
            min(len(one["token_ids"]), len(two["token_ids"])),
        )
        wanted = [output["token_ids"][at] if at < len(output["token_ids"]) else None for output in (one, two)]
        return [[_logprob(self._tops[who, prompt], at, token) for token in wanted] for who in (0, side)]

    # Engines

    def _open(self, side: int) -> Engine:
        """The side's engine: the one that is held, or a new one."""
        if side in self._held:
            return self._held[side]
        if self._held and not (self._hold and self._has_room()):
            if self.plan.mode == "concurrent":
                raise ConfigError(
                    "There is not enough memory for all configurations at once: compare them one after another, or "
                    "lower num_kv_blocks."
                )
            self._hold = False
            self._note(held=False)
            self._close_all()
        self._check()
        self._say(f"loading {LETTERS[side]}")
        engine = Engine(self.plan.sides[side].config, on_progress=lambda done, of: self._check())
        self._held[side] = engine
        if not self._record["sides"][side]["facts"]:
            with self._lock:
                self._record["sides"][side]["facts"] = _facts(engine)
            self._advance()
        return engine

    def _has_room(self) -> bool:
        """Whether another engine as large as the largest that is held fits beside them."""
        sizes = [
            (e.stats().memory_weights_bytes + e.stats().memory_kv_bytes, e.config.device) for e in self._held.values()
        ]
        largest, device = max(sizes)
        free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
        return int(free) > 1.2 * largest + ROOM

    def _close(self, side: int) -> None:
        engine = self._held.pop(side, None)
        if engine is not None:
            engine.close()

    def _close_all(self) -> None:
        for side in list(self._held):
            self._close(side)

    # The record

    def _shuffled(self) -> list[int]:
        """The sides that have not failed, in an order of their own for every round."""
        alive = [i for i, side in enumerate(self._record["sides"]) if side["error"] is None]
        self._order.shuffle(alive)
        return alive

    def _add_round(self, order: list[int]) -> None:
        with self._lock:
            self._record["rounds"].append(list(order))

    def _fail(self, side: int, sentence: str) -> None:
        with self._lock:
            self._record["sides"][side]["error"] = sentence
        self._close(side)
        gc.collect()

    def _note(self, **values: Any) -> None:
        with self._lock:
            self._record.update(values)

    def _say(self, doing: str) -> None:
        self._doing = doing
        self._on_change(False)

    def _advance(self) -> None:
        with self._lock:
            self._done += 1


class _Contained:
    """What goes wrong with one side becomes that side's sentence; a stop passes."""

    def __init__(self, comparison: Comparison, side: int) -> None:
        self._comparison, self._side = comparison, side

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or isinstance(error, Stopped) or not isinstance(error, Exception):
            return False
        if not isinstance(error, PlaygroundError):
            logger.error("a side of a comparison failed", exc_info=error)
        error.__traceback__ = None  # it would keep half an engine in memory
        sentence = str(error) if isinstance(error, PlaygroundError) else out_of_memory(error) or FAULT
        self._comparison._fail(self._side, sentence)
        return True


def _wait(handle: GenerationHandle, tokens: int | None) -> None:
    """Until the reply has so many tokens or has ended; None is its end."""
    if tokens is None:
        handle.wait()
        return
    count = 0
    for delta in handle:
        count += len(delta.token_ids)
        if count >= tokens:
            return


def _logprob(generation: Generation, at: int, token_id: int | None) -> float | None:
    if token_id is None or not generation.logprobs or at >= len(generation.logprobs):
        return None
    entry = generation.logprobs[at]
    if entry.token_id == token_id:
        return entry.logprob
    return dict(entry.top).get(token_id)


def _facts(engine: Engine) -> dict[str, Any]:
    """What became of a configuration: for the record, and to tell which sides have one vocabulary."""
    config = engine.config
    vocabulary = engine.tokenizer.get_vocab() if engine.tokenizer is not None else {}
    return {
        "model": config.model,
        "parameters": engine.model_config.num_parameters,
        "device": config.device,
        "device_name": _device_name(config.device),
        "dtype": config.dtype,
        "attention": config.attention,
        "num_kv_blocks": config.num_kv_blocks,
        "kv_cache_dtype": config.kv_cache_dtype,
        "vocabulary": f"{hash(frozenset(vocabulary.items())) & 0xFFFFFFFFFFFF:012x}",
    }


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"
