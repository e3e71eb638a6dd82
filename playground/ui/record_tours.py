"""Records the guided tours anew: `playground record-tours`. Real runs of the bundled models, nothing else.

A scene says which engine, which requests and what to point at; where a caption stands is looked up in the recording.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playground.config import EngineConfig, SpeculationConfig
from playground.engine.engine import Engine
from playground.errors import ConfigError
from playground.models.bundled import BUNDLED_DRAFT_MODEL, BUNDLED_MODEL
from playground.sampling_params import SamplingParams
from playground.sessions import SessionStore
from playground.sessions.recorder import RunRecorder
from playground.sessions.run_file import SUFFIX, Caption, Tour, pack
from playground.sessions.run_records import RecordedRun, RunQuery
from playground.sessions.run_store import RunStore
from playground.telemetry import TelemetryHub
from playground.telemetry.recording import replay_frames
from playground.telemetry.waterfall import Span, waterfall
from playground.ui.environment import describe
from playground.ui.tours import TOURS
from playground.ui.wording import model_name

STORY = "Tell me a story about a fox who could not sleep."
WARM_UP = "Hello! How are you today?"
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
DRAFTS = SpeculationConfig(method="draft", num_tokens=4)

Moment = Callable[["Scene", RecordedRun, list[Span]], float | None]
"""Where in the recording, in ms; None where it has no such moment."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One tour: what is run, and which of its requests is followed."""

    name: str
    title: str
    config: dict[str, Any]
    prompts: tuple[str, ...]
    """Sent together, after those of `before` have ended."""
    captions: tuple[tuple[Moment, str], ...]
    params: SamplingParams = GREEDY
    before: tuple[str, ...] = ()
    follow: Callable[[RecordedRun], bool] = field(default=lambda run: True)
    """Which of the requests is the tour's: the first that is like this."""


def _begin(scene: Scene, run: RecordedRun, spans: list[Span]) -> float | None:
    return 0.0


def _nth(number: int, is_it: Callable[[Span], bool]) -> Moment:
    """The end of the n-th step (from 0; -1 is the last) that is like this."""

    def moment(scene: Scene, run: RecordedRun, spans: list[Span]) -> float | None:
        found = [span for span in spans if span.step is not None and is_it(span)]
        return found[number].end_ms if -len(found) <= number < len(found) else None

    return moment


def _wait_begins(kind: str) -> Moment:
    def moment(scene: Scene, run: RecordedRun, spans: list[Span]) -> float | None:
        return next((span.start_ms for span in spans if span.kind == kind), None)

    return moment


def _copied(scene: Scene, run: RecordedRun, spans: list[Span]) -> float | None:
    """The end of the step in which a block was copied before it was written."""
    return next((float(frame["t"]) for frame in replay_frames(run.recording) if frame["copies"]), None)


def _shared(scene: Scene, run: RecordedRun, spans: list[Span]) -> float | None:
    """The end of the first step in which several requests held one block."""
    frames = replay_frames(run.recording)
    return next((float(frame["t"]) for frame in frames if any(len(one[-1]) > 1 for one in frame["blocks"])), None)


def _is(kind: str) -> Callable[[Span], bool]:
    return lambda span: span.kind == kind


LONG = (
    "Once there was a small fox who lived under an old tree. Every night she counted the stars, and every night she "
    "lost count. The owl, who was wise, told her to begin with the moon. Tell me what the fox did then, and how she "
    "fell asleep."
)

SCENES: tuple[Scene, ...] = (
    Scene(
        "prefill-and-decode",
        "Prefill and decode",
        {"max_num_batched_tokens": 32, "max_num_seqs": 4, "num_kv_blocks": 64},
        (LONG,),
        (
            (_begin, "A prompt has come. Before the first word can be written, the whole prompt must be read."),
            (_nth(0, _is("prefill")), "Prefill: many tokens of the prompt are computed at once, here 32 a step."),
            (_nth(-1, _is("prefill")), "The prompt's last chunk: with it comes the first token of the reply."),
            (_nth(0, _is("decode")), "Decode: from now on each step reads all weights for one more token."),
            (_nth(-1, _is("decode")), "The reply has grown block by block; when it ends its blocks are given back."),
        ),
    ),
    Scene(
        "prefix-hit",
        "Prefix hit",
        {"num_kv_blocks": 64},
        (f"{LONG} Make it short.",),
        (
            (_begin, "Grey blocks are cached: an earlier prompt left them, and nobody uses them now."),
            (
                _nth(0, _is("prefill")),
                "This prompt begins alike, so it takes those blocks and computes only what is new.",
            ),
            (_nth(0, _is("decode")), "The first token came after one short prefill. Compare the cached tokens above."),
            (
                _nth(-1, _is("decode")),
                "The blocks go back to the cache at the end, for the next one that begins alike.",
            ),
        ),
        before=(LONG,),
    ),
    Scene(
        "copy-on-write-fork",
        "Copy-on-write fork",
        {"num_kv_blocks": 64},
        (STORY,),
        (
            (_begin, "One prompt, three replies: the prompt is computed once."),
            (
                _nth(0, _is("prefill")),
                "The three samples share the prompt's blocks (hatched): nothing is stored twice.",
            ),
            (_copied, "Each writes its own words now, so the last, part-filled block is copied before it is written."),
            (
                _nth(-1, _is("decode")),
                "The full blocks stay shared to the end; only what differs takes room of its own.",
            ),
        ),
        params=SamplingParams(temperature=0.9, seed=3, n=3, max_tokens=32, ignore_eos=True),
    ),
    Scene(
        "draft-accepted",
        "A draft accepted",
        {"draft_model": str(BUNDLED_DRAFT_MODEL), "speculation": DRAFTS, "num_kv_blocks": 64},
        ("Who are you?",),
        (
            (_begin, "A small draft model guesses four tokens ahead; the target checks them all in one step."),
            (
                _nth(0, lambda span: span.drafts > 0 and span.accepted == span.drafts),
                "All four guesses were right: with the target's own bonus token this one step gave five.",
            ),
            (
                _nth(-1, lambda span: span.drafts > 0),
                "Fewer steps of the large model for the same text: greedy output is the same, token for token.",
            ),
        ),
        params=GREEDY.model_copy(update={"max_tokens": 24, "ignore_eos": False}),
    ),
    Scene(
        "draft-rejected",
        "A draft rejected",
        {"draft_model": str(BUNDLED_DRAFT_MODEL), "speculation": DRAFTS, "num_kv_blocks": 64},
        (STORY,),
        (
            (_begin, "The same two models, but the text is drawn at a high temperature: hard to guess."),
            (
                _nth(0, lambda span: span.drafts > span.accepted > 0),
                "A guess was rejected (struck through): it and those after it go; the target's token stands instead.",
            ),
            (
                _nth(0, lambda span: span.drafts > 0 and span.accepted == 0),
                "Not one was accepted: the step cost four drafts and gave one token, like plain decoding.",
            ),
            (_nth(-1, _is("decode")), "What was drafted in vain took time: speculation pays only where guesses hold."),
        ),
        params=SamplingParams(temperature=1.4, seed=11, max_tokens=32, ignore_eos=True),
    ),
    Scene(
        "running-out-of-blocks",
        "Running out of blocks",
        {"num_kv_blocks": 12, "max_model_len": 160, "prefix_caching": False},
        (STORY, "Tell me a story about a girl and a little boat.", "Tell me a story about a very long road."),
        (
            (_begin, "Three requests share twelve blocks. Each fits alone; together they will grow too large."),
            (
                _nth(0, _is("decode")),
                "All three are decoding, and every sixteen tokens each of them needs a block more.",
            ),
            (
                _wait_begins("preempted"),
                "No block is left: the newest request is preempted. Its blocks go to the others.",
            ),
            (_nth(0, _is("recomputed")), "There is room again: its tokens are computed once more, all at once."),
            (_nth(-1, _is("decode")), "It ends with the same text as if it had never waited; only its time is lost."),
        ),
        params=GREEDY.model_copy(update={"max_tokens": 72}),
        follow=lambda run: bool(run.request.num_preemptions),
    ),
)


def record(scene: Scene) -> bytes:
    """Run a scene and pack the request that it follows. Raises `ConfigError` where a moment did not come about."""
    config = EngineConfig(model=str(BUNDLED_MODEL), device="cpu", dtype="float32", **scene.config)
    with SessionStore() as store, Engine(config) as engine, TelemetryHub(engine) as hub:
        # The first steps of an engine are slow; what a tour tells of its times is to be true of the ones after.
        engine.generate(_chat(engine, WARM_UP), GREEDY)
        engine.flush_prefix_cache()
        runs = RunStore(store)
        recorder = RunRecorder(runs, describe, model_name)
        recorder.watch(engine, hub)
        recorder.flush()
        for prompt in scene.before:
            engine.generate(_chat(engine, prompt), scene.params)
            recorder.flush()
        known = {info.id for info in runs.find(RunQuery()).requests}
        engine.generate([ids for prompt in scene.prompts for ids in _chat(engine, prompt)], scene.params)
        recorder.flush()
        recorder.close()
        new = [info.id for info in runs.find(RunQuery(descending=False)).requests if info.id not in known]
        chosen = next((run for run in map(runs.run, sorted(new)) if scene.follow(run)), None)
    if chosen is None:
        raise ConfigError(f"No request of the tour {scene.name!r} went as it should: change the scene.")
    return pack(chosen, everyone=True, tour=Tour(name=scene.name, title=scene.title, captions=_captions(scene, chosen)))


def _captions(scene: Scene, run: RecordedRun) -> list[Caption]:
    spans = waterfall(replay_frames(run.recording), run.request_engine_id)
    captions = []
    for moment, text in scene.captions:
        time_ms = moment(scene, run, spans)
        if time_ms is None:
            raise ConfigError(f"The tour {scene.name!r} has no moment for {text!r}: change the scene.")
        captions.append(Caption(time_ms=time_ms, text=text))
    return sorted(captions, key=lambda caption: caption.time_ms)


def _chat(engine: Engine, prompt: str) -> list[list[int]]:
    return [engine.chat_prompt([{"role": "user", "content": prompt}])]


def record_tours(folder: Path = TOURS, names: Sequence[str] = ()) -> list[Path]:
    """Write the files of all tours, or of those named; returns their paths."""
    unknown = set(names) - {scene.name for scene in SCENES}
    if unknown:
        raise ConfigError(f"tour {min(unknown)!r} is not known: give one of {', '.join(s.name for s in SCENES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, scene in enumerate(SCENES, 1):
        if not names or scene.name in names:
            paths.append(folder / f"{number}-{scene.name}{SUFFIX}")
            paths[-1].write_bytes(record(scene))
    return paths
