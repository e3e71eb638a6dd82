"""Running as a Hugging Face Space on ZeroGPU: a GPU that is there only while one decorated function runs, in a fork.

Nothing survives between two calls, so that the page itself is served from the processor there, and what runs on the GPU
is one request from beginning to end: model loaded, answered, let go.
"""

import base64
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from playground.errors import PlaygroundError

if TYPE_CHECKING:
    from playground.engine.outputs import Generation

GPU_SECONDS = 30
"""What a call may take: shorter ones are served sooner, and the quota is counted in them."""
FRAME_SECONDS = 1 / 12

Function = TypeVar("Function", bound=Callable[..., Any])


def on_zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU, where torch shows a GPU that is not there outside of decorated functions."""
    return os.environ.get("SPACES_ZERO_GPU", "").strip().lower() in ("1", "t", "true")


def for_gpu(function: Function, seconds: int = GPU_SECONDS) -> Function:
    """`function` as ZeroGPU wants it; as it is where the `spaces` package is missing, or is not on ZeroGPU."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=seconds)(function)


def answer_once(message: str, max_tokens: int, temperature: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """One reply of the bundled model on the best device there is: (text so far, figures), some 12 times a second.

    The last one has the engine's own metrics, and as `run` the recorded run, a file in base64: what happened in the
    fork is gone with it, so it is told. What is refused comes as `{"error": sentence}`.
    """
    from playground import Engine, EngineConfig, SamplingParams  # torch, which a refused command line does without
    from playground.sessions import SessionStore
    from playground.sessions.capture import RunCapture
    from playground.sessions.run_file import pack
    from playground.sessions.run_store import RunStore
    from playground.ui.environment import describe
    from playground.ui.wording import model_name

    text, num_tokens, shown = "", 0, 0.0
    yield text, {"phase": "loading"}
    try:
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
        with SessionStore() as store, Engine(EngineConfig()) as engine:
            device, runs = engine.config.device, RunStore(store)
            capture = RunCapture(runs, engine, describe, model_name)
            done: list[Generation] = []
            try:
                handle = engine.submit(engine.chat_prompt([{"role": "user", "content": message}]), params)
                try:
                    for delta in handle:
                        text, num_tokens = text + delta.text, num_tokens + len(delta.token_ids)
                        if time.monotonic() - shown >= FRAME_SECONDS:
                            shown = time.monotonic()
                            yield text, {"phase": "writing", "tokens": num_tokens, "device": device}
                finally:
                    handle.cancel()
                done.append(handle.result())
            finally:
                recorded = capture.end(done, [params] * len(done), [message] * len(done))
            files = [base64.b64encode(pack(runs.run(one))).decode() for one in recorded if one is not None]
    except PlaygroundError as error:
        yield text, {"phase": "ended", "error": str(error)}
        return
    (reply,) = done
    yield (
        reply.text,
        {
            "phase": "ended",
            "device": device,
            "tokens": reply.metrics.num_output_tokens,
            "time_to_first_token": reply.metrics.time_to_first_token,
            "time_per_output_token": reply.metrics.time_per_output_token,
            "finish_reason": reply.finish_reason,
            "run": next(iter(files), None),
        },
    )
