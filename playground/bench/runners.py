"""The two sides of the engine benchmark behind one small interface, each run in the way that its users run it.

Both get the same token ids, draw greedily and never end early; each answers with its token ids and when each came.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from playground import Engine, EngineConfig, SamplingParams
from playground.bench.workload import PAD_ID, Plan
from playground.engine.events import StepEvent


@dataclass(frozen=True, slots=True)
class Run:
    """One batch that was run: useful tokens in request order, times in seconds on the perf_counter clock."""

    seconds: float
    """From the call to the answer in the caller's hands."""
    token_ids: list[list[int]]
    token_times: list[list[float]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))


class Runner(Protocol):
    """A side of the comparison."""

    def run(self, prompts: Sequence[list[int]], output_lens: Sequence[int]) -> Run: ...

    def close(self) -> None: ...


class EngineRunner:
    """This project's engine: every request is submitted for itself, at once, and the engine batches them."""

    def __init__(self, folder: Path, dtype: str, plan: Plan, max_len: int, *, quantization: str | None = None) -> None:
        block_size = 16
        blocks = plan.max_batch * (-(-min(max_len, plan.max_tokens) // block_size) + 1)
        self.engine = Engine(
            EngineConfig(
                model=str(folder),
                device="cpu",
                dtype=dtype,  # type: ignore[arg-type]
                max_num_seqs=plan.max_batch,
                block_size=block_size,
                num_kv_blocks=blocks,
                prefix_caching=False,  # a repeated prompt must be computed again, as the peer does
                quantization=quantization,
            )
        )

    def run(self, prompts: Sequence[list[int]], output_lens: Sequence[int]) -> Run:
        submitted, handles = [], []
        for prompt, length in zip(prompts, output_lens, strict=True):
            params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
            submitted.append(time.perf_counter())
            handles.append(self.engine.submit(prompt, params))
        results = [handle.result(timeout=600) for handle in handles]
        seconds = time.perf_counter() - submitted[0]
        times = []
        for since, result in zip(submitted, results, strict=True):
            metrics = result.metrics
            assert metrics.time_to_first_token is not None, result.error
            times.append(list(accumulate(metrics.inter_token_latencies, initial=since + metrics.time_to_first_token)))
        return Run(seconds, [list(result.token_ids) for result in results], times)

    def steps(self, prompts: Sequence[list[int]], output_lens: Sequence[int]) -> list[StepEvent]:
        """Run a batch and return the events of its steps."""
        subscription = self.engine.events.subscribe()
        try:
            self.run(prompts, output_lens)
            return [event for event in subscription.drain() if isinstance(event, StepEvent)]
        finally:
            self.engine.events.unsubscribe(subscription)

    def close(self) -> None:
        self.engine.close()


class TransformersRunner:
    """`transformers.generate`: one left-padded batch with its mask, which runs until its longest request ends."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        # Without end tokens it needs no minimum length either: less work for the peer than min_new_tokens would be.
        self.config = transformers.GenerationConfig(
            do_sample=False, use_cache=True, pad_token_id=PAD_ID, eos_token_id=None, bos_token_id=None
        )
        self.model.generation_config = self.config

    def run(self, prompts: Sequence[list[int]], output_lens: Sequence[int]) -> Run:
        torch = self.torch
        width = max(map(len, prompts))
        stamps: list[float] = []

        def stamp(input_ids: Any, scores: Any, **_: Any) -> Any:
            stamps.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        start = time.perf_counter()
        ids = torch.tensor([[PAD_ID] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self.config,
                max_new_tokens=max(output_lens),
                stopping_criteria=[stamp],
            )
        rows = output[:, width:].tolist()
        seconds = time.perf_counter() - start
        useful = [row[:length] for row, length in zip(rows, output_lens, strict=True)]
        return Run(seconds, useful, [stamps[:length] for length in output_lens])

    def close(self) -> None:
        del self.model
