"""Every switch of the engine, as one frozen and validated object.

`EngineConfig` is what a user writes ("auto" allowed); `Engine.config` is the same class after resolution, with no
"auto" left. Values that later versions will accept are refused here with "not available yet", never ignored.
"""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from playground.validation import Validated, shorten

SpeculationMethod = Literal["draft", "ngram", "layer_skip", "suffix", "eagle"]
QUANTIZATION_SHORT_NAMES = ("int8", "int4", "int2", "nf4", "fp8", "w8a8", "gptq-int4", "awq-int4")
NOT_YET = "is not available yet in this version"
MAX_DRAFTS = 64
MAX_TREE_DRAFTS = 63
"""A tree and the token before it fill the 64 bits of an attention mask."""


class SpeculationConfig(Validated):
    """How tokens are drafted and verified. Raises `ConfigError`, one sentence, at construction."""

    method: SpeculationMethod = Field("draft", description="draft, ngram, layer_skip, suffix or eagle")
    num_tokens: int | Literal["auto"] = Field(4, description=f"a whole number from 1 to {MAX_DRAFTS}, or 'auto'")
    verification: Literal["rejection", "coupled"] = Field("rejection", description="rejection or coupled")
    tree_width: int = Field(1, ge=1, le=16, description="a whole number from 1 to 16; 1 drafts chains")
    max_batch_size: int | None = Field(None, ge=1, description="None or a whole number of at least 1")
    max_num_tokens: int = Field(8, ge=1, le=MAX_DRAFTS, description=f"a whole number from 1 to {MAX_DRAFTS}")
    """Most drafts at once where num_tokens is "auto"."""
    ngram_min: int = Field(1, ge=1, le=32, description="a whole number from 1 to 32")
    ngram_max: int = Field(4, ge=1, le=32, description="a whole number from ngram_min to 32")
    """For method "ngram": how many of the last tokens must have occurred before."""
    skip_layers: tuple[int, ...] | None = Field(None, description="None (every second layer) or a list of layers")
    """For method "layer_skip": the target's layers, counted from 0, that the draft leaves out."""

    @field_validator("num_tokens", mode="before")
    @classmethod
    def _num_tokens(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DRAFTS
        if whole or value == "auto":
            return value
        raise ValueError(
            f"num_tokens={shorten(value)} is not allowed: give a whole number from 1 to {MAX_DRAFTS}, or 'auto'."
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "SpeculationConfig":
        if self.ngram_min > self.ngram_max:
            raise ValueError(f"ngram_min={self.ngram_min} is above ngram_max={self.ngram_max}: lower ngram_min.")
        if self.tree_width > 1:
            if self.method != "draft":
                raise ValueError(f"tree_width={self.tree_width} needs method='draft': {self.method!r} makes chains.")
            if self.tree_width * self.most_drafts > MAX_TREE_DRAFTS:
                raise ValueError(
                    f"a tree of width {self.tree_width} and depth {self.most_drafts} has more than the "
                    f"{MAX_TREE_DRAFTS} drafts that are verified at once: lower tree_width or num_tokens."
                )
        return self

    @property
    def most_drafts(self) -> int:
        """The longest chain, or the depth of the deepest tree."""
        return self.max_num_tokens if self.num_tokens == "auto" else self.num_tokens


class QuantizationConfig(Validated):
    """How weights are quantized when they are loaded, or by `playground compress`.

    Raises `ConfigError`, one sentence, at construction. `named` knows the short names.
    """

    method: Literal["rtn", "gptq", "awq", "nf4", "fp8", "w8a8"] = Field(
        "rtn", description="rtn, gptq, awq, nf4, fp8 or w8a8"
    )
    bits: Literal[2, 3, 4, 8] = Field(8, description="2, 3, 4 or 8")
    group_size: int = Field(128, ge=-1, description="a whole number above 0, or -1 for one group a row")
    symmetric: bool = Field(True, description="True or False")
    act_order: bool = Field(False, description="True or False")
    """For method "gptq": columns with the largest inputs first."""
    static_groups: bool = Field(True, description="True or False")
    """With act_order: groups are neighbouring columns all the same, which every format and kernel can hold."""
    damping: float = Field(0.01, gt=0, le=1, description="a number above 0, at most 1")
    """For method "gptq": share of the mean squared input that is added to every input's."""
    double_quantization: bool = Field(True, description="True or False")
    """For method "nf4" in files: scales become 8-bit codes too."""


class EngineConfig(Validated):
    """Configuration of one engine. Raises `ConfigError`, one sentence, at construction."""

    model: str | None = Field(None, min_length=1, description="a folder or hub id, or None for the bundled model")
    draft_model: str | None = Field(None, min_length=1, description="a folder or hub id, or None")
    revision: str | None = Field(None, min_length=1, description="a branch, tag or commit of the hub id, or None")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto, float64, float32, bfloat16 or float16"
    )
    max_model_len: int | None = Field(None, ge=1, le=10_000_000, description="None (the model's) or at least 1")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="a whole number from 1 to 4096")
    max_num_batched_tokens: int | None = Field(None, ge=1, le=1_000_000, description="None (automatic) or at least 1")
    block_size: int = Field(16, ge=1, le=1024, description="a whole number from 1 to 1024")
    num_kv_blocks: int | None = Field(
        None, ge=1, le=100_000_000, description="None (from kv_cache_memory) or at least 1"
    )
    kv_cache_memory: int | float | None = Field(
        None, description="bytes (a whole number), a fraction of free memory (above 0, below 1), or None"
    )
    kv_cache: Literal["paged", "contiguous", "none"] = Field("paged", description="paged, contiguous or none")
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "float32", "float64", "fp8", "int8"] = Field(
        "auto", description="auto, float16, bfloat16, float32, fp8 or int8"
    )
    attention: Literal["auto", "triton", "sdpa", "naive"] = Field("auto", description="auto, triton, sdpa or naive")
    batching: Literal["continuous", "static"] = Field("continuous", description="continuous or static")
    chunked_prefill: bool = Field(True, description="True or False")
    prefix_caching: bool = Field(True, description="True or False")
    prefix_cache_ttl: float | None = Field(None, gt=0, description="None (no limit) or seconds above 0")
    prefix_cache_max_blocks: int | None = Field(
        None, ge=0, description="None (no limit) or the KV blocks that may stay cached while nobody uses them"
    )
    prefix_cache_max_pinned: float = Field(
        0.5, ge=0, le=1, description="the share of the KV blocks that pinned prefixes may hold, from 0 to 1"
    )
    prefix_cache_host_memory: int | None = Field(
        None, ge=0, description="None or 0 (off), or bytes of host memory for blocks that the pool has evicted"
    )
    prefix_cache_dir: str | None = Field(
        None, min_length=1, description="None (off) or a folder that keeps the prefix cache across restarts"
    )
    prefix_cache_dir_limit: int = Field(2**30, ge=1, description="bytes that prefix_cache_dir may hold, at least 1")
    sliding_window: int | None = Field(None, ge=1, description="None (the model's own) or at least 1")
    quantization: QuantizationConfig | str | None = Field(None, description="None or a QuantizationConfig")
    speculation: SpeculationConfig | None = Field(None, description="None or a SpeculationConfig")
    cuda_graphs: bool = Field(False, description="True or False")
    compile: bool = Field(False, description="True or False")
    deterministic: bool = Field(False, description="True or False")
    tensor_parallel_size: int = Field(1, ge=1, description="a whole number of at least 1")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="a 64-bit whole number")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = Field(
        "auto", description="auto, safetensors, gguf or dummy"
    )

    @field_validator("kv_cache_memory", mode="after")
    @classmethod
    def _memory(cls, value: int | float | None) -> int | float | None:
        if value is None or (isinstance(value, int) and value > 0):
            return value
        if isinstance(value, float) and math.isfinite(value) and 0 < value < 1:
            return value
        raise ValueError(
            f"kv_cache_memory={shorten(value)} is not allowed: give bytes as a whole number above 0, "
            "or a fraction of free memory above 0 and below 1."
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "EngineConfig":
        self._refuse_what_is_not_there_yet()
        method = None if self.speculation is None else self.speculation.method
        if self.draft_model is not None and method not in (None, "draft", "eagle"):
            raise ValueError(
                f"draft_model={shorten(self.draft_model)} is of no use to speculation method {method!r}: "
                "leave it out, or give method 'draft' or 'eagle'."
            )
        if self.kv_cache == "none" and self.num_kv_blocks is not None:
            raise ValueError("num_kv_blocks has no meaning with kv_cache='none', which keeps no KV: leave it out.")
        if self.kv_cache != "paged" and "prefix_caching" in self.model_fields_set and self.prefix_caching:
            raise ValueError(f"prefix_caching needs kv_cache='paged', not {self.kv_cache!r}: turn one of them off.")
        tiers = [name for name in ("prefix_cache_host_memory", "prefix_cache_dir") if getattr(self, name)]
        if tiers and (self.kv_cache != "paged" or not self.prefix_caching):
            raise ValueError(f"{tiers[0]} needs prefix_caching and kv_cache='paged': turn both on or leave it out.")
        return self

    def resolved(self, **changes: Any) -> "EngineConfig":
        """A copy with "auto" values decided. Not validated again: the engine's own values need not be ones a user
        could write (`prefix_caching` is off without a paged cache, for one)."""
        return self.model_copy(update=changes)

    def _refuse_what_is_not_there_yet(self) -> None:
        refusals: list[tuple[bool, str, Any]] = [
            (self.quantization is not None, "quantization", self.quantization),
            (self.kv_cache_dtype in ("fp8", "int8"), "kv_cache_dtype", self.kv_cache_dtype),
            (self.compile, "compile", True),
            (self.deterministic, "deterministic", True),
            (self.tensor_parallel_size > 1, "tensor_parallel_size", self.tensor_parallel_size),
            (self.load_format == "gguf", "load_format", "gguf"),
        ]
        for refused, field, value in refusals:
            if refused:
                raise ValueError(f"{field}={shorten(value)} {NOT_YET}: leave it at its default.")
