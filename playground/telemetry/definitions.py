"""What every shown number means, in one place: label, abbreviation, unit, definition, measured or estimated.

The interface, the exports and the documentation read these; none of them words a definition of its own.
"""

from dataclasses import dataclass
from typing import Literal

RATE_WINDOW_SECONDS = 2.0
"""Span of the rolling rates: long enough for a steady figure, short enough to follow what happens."""

LATENCY_WINDOW_SECONDS = 5.0
"""Span of the inter-token latencies' percentiles."""
ACCEPTANCE_WINDOW_SECONDS = 30.0
"""Span of the steps that the share of accepted drafts is taken over."""

Kind = Literal["measured", "estimated"]


@dataclass(frozen=True, slots=True)
class Definition:
    """One number: `label` is what stands next to it, the rest appears on hover."""

    key: str
    label: str
    text: str
    unit: str = ""
    abbreviation: str = ""
    kind: Kind = "measured"

    @property
    def hover(self) -> str:
        """ "Time to first token (TTFT), measured in s. From …"."""
        name = f"{self.label} ({self.abbreviation})" if self.abbreviation else self.label
        unit = f" in {self.unit}" if self.unit else ""
        return f"{name}, {self.kind}{unit}. {self.text}"


_ALL = (
    Definition(
        "kv_blocks_in_use",
        "KV blocks in use",
        "Blocks of the KV cache that at least one request holds. A block shared by several requests counts once.",
        unit="blocks",
    ),
    Definition(
        "kv_blocks_cached",
        "KV blocks cached",
        "Full blocks that no request holds but whose contents are kept: a prompt that begins alike reuses them, and "
        "the least recently used one is overwritten when no empty block is left.",
        unit="blocks",
    ),
    Definition("kv_blocks_empty", "KV blocks empty", "Blocks that hold nothing worth keeping.", unit="blocks"),
    Definition(
        "num_waiting",
        "Waiting",
        "Requests that were sent but are not running: not yet admitted, or put back to free blocks for others.",
        unit="requests",
    ),
    Definition(
        "generated_tokens_per_second",
        "Tokens per second",
        "Tokens generated for all requests together by the steps that ended in the last "
        f"{RATE_WINDOW_SECONDS:g} s, over the time from the start of the first of these steps to the end of the last. "
        "Prompt tokens do not count. Nothing is shown while the engine rests.",
        unit="tok/s",
    ),
    Definition(
        "time_to_first_token",
        "Time to first token",
        "From when the engine received the request to the end of the step that gave its first token, waiting included. "
        "The strip shows the request that last got its first token.",
        unit="s",
        abbreviation="TTFT",
    ),
    Definition(
        "time_per_output_token",
        "Time per output token",
        "Time from the first token of a request to its last, divided by the number of tokens after the first.",
        unit="s",
        abbreviation="TPOT",
    ),
    Definition(
        "inter_token_latency",
        "Inter-token latency",
        "Time between one step that gave a request tokens and the next one. A step can give several tokens.",
        unit="s",
        abbreviation="ITL",
    ),
    Definition(
        "e2e_latency",
        "Total time",
        "From when the engine received the request to its last token, waiting included.",
        unit="s",
    ),
    Definition("num_output_tokens", "Generated tokens", "Tokens generated, an end mark included.", unit="tok"),
    Definition(
        "num_cached_tokens",
        "Cached tokens",
        "Prompt tokens whose keys and values were found in the prefix cache and not computed again.",
        unit="tok",
    ),
    Definition(
        "kv_blocks_peak",
        "KV blocks held",
        "The most KV blocks that the request held at one time, shared ones included. Samples and beams count together, "
        "and a block that several of them hold counts once.",
        unit="blocks",
    ),
    Definition(
        "acceptance_rate",
        "Draft tokens accepted",
        "Draft tokens that the target model accepted, of those proposed. Without speculation there is nothing to show.",
        unit="%",
    ),
    Definition(
        "memory_process",
        "Memory of this process",
        "Memory of this process that is in RAM (resident set), weights read from a mapped file included. The total is "
        "what this process may use: the machine's memory, or its container's limit.",
        unit="B",
        abbreviation="RSS",
    ),
    Definition(
        "memory_nvml",
        "GPU memory",
        "Memory in use on the GPU by all programs together, as its driver reports it (NVML).",
        unit="B",
    ),
    Definition(
        "memory_torch",
        "GPU memory",
        "Memory in use on the GPU by all programs together, as the CUDA runtime reports it (without NVML).",
        unit="B",
    ),
)

DEFINITIONS: dict[str, Definition] = {definition.key: definition for definition in _ALL}


def define(key: str) -> Definition:
    """The definition of `key`; a number without one is not shown, so a missing key is a bug."""
    return DEFINITIONS[key]
