"""Every switch of the engine, as one frozen and validated object.

`EngineConfig` is what a user writes ("auto" allowed); `Engine.config` is the same class after resolution, with no
"auto" left. Values that later versions will accept are refused here with "not available yet", never ignored.
"""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from playground.errors import ConfigError
from playground.validation import Validated, shorten

SpeculationMethod = Literal["draft", "ngram", "layer_skip", "suffix", "eagle"]
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

    What is left out is the method's own: nf4 has 4 bits in blocks of 64, fp8 and w8a8 have 8 bits and one scale a row,
    and the others 8 bits a row, or fewer bits in groups of 128. Raises `ConfigError`, one sentence, at construction.
    """

    method: Literal["rtn", "gptq", "awq", "nf4", "fp8", "w8a8"] = Field(
        "rtn", description="rtn, gptq, awq, nf4, fp8 or w8a8"
    )
    """Round to nearest; with calibration, GPTQ (arXiv 2210.17323) or AWQ (arXiv 2306.00978); NormalFloat4 (arXiv
    2305.14314); float8 e4m3; int8 with activations rounded to int8 too, each token with its own scale."""
    bits: Literal[2, 3, 4, 8] = Field(8, description="2, 3, 4 or 8")
    group_size: int = Field(-1, ge=-1, le=2**20, description="a whole number above 0, or -1 for one group a row")
    """Inputs that share a scale; must divide the inputs of every matrix."""
    symmetric: bool = Field(True, description="True or False")
    """Without zeros: a group's range is as wide below 0 as above."""
    double_quant: bool = Field(False, description="True or False")
    """nf4: round the scales to 8 bits too, which saves 0.4 bit a weight in files; in memory they are whole."""
    act_order: bool = Field(False, description="True or False")
    """gptq: columns with the largest inputs first."""
    static_groups: bool = Field(True, description="True or False")
    """gptq with act_order: groups are neighbouring columns all the same, which every format and kernel can hold."""
    damping: float = Field(0.01, gt=0, le=1, description="a number above 0, at most 1")
    """gptq: share of the mean squared input that is added to every input's."""
    scale_search: bool = Field(False, description="True or False")
    """rtn, and gptq, which has it by default: scales that round a group with least error, not those of its range."""
    head: Literal["keep", "int8"] = Field("int8", description="keep or int8")
    """The output head (and the embedding, where they are one matrix) at load: as it is, or int8 with one scale a row.
    It is a fifth of the weights that a small model reads for every token."""

    @classmethod
    def named(cls, name: str) -> "QuantizationConfig":
        """The configuration of a short name. Raises `ConfigError` for others."""
        if name not in _SHORT_NAMES:
            raise ConfigError(
                f"quantization={shorten(name)} is not allowed: give {', '.join(_SHORT_NAMES)}, or a QuantizationConfig."
            )
        return cls(**_SHORT_NAMES[name])

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method, bits = values.get("method", "rtn"), values.get("bits", 8)
        own: dict[str, Any] = {"group_size": -1 if bits == 8 else 128, "scale_search": method == "gptq"}
        return {**_METHODS.get(method if isinstance(method, str) else "", own), **values}

    @model_validator(mode="after")
    def _fits_together(self) -> "QuantizationConfig":
        if self.group_size == 0:
            raise ValueError("group_size=0 is not allowed: give a whole number above 0, or -1 for one group a row.")
        if self.method == "nf4" and self.group_size not in _NF4_BLOCKS:
            raise ValueError(
                f"group_size={self.group_size} is not a block size of nf4: give one of "
                f"{', '.join(map(str, _NF4_BLOCKS))}."
            )
        fixed = {**_METHODS.get(self.method, {}), "symmetric": True}
        if self.method in _METHODS:
            for field in ("bits", "symmetric", *(() if self.method == "nf4" else ("group_size",))):
                if getattr(self, field) != fixed[field]:
                    raise ValueError(
                        f"{field}={getattr(self, field)} has no meaning for method {self.method!r}, which has "
                        f"{field}={fixed[field]}: leave it out, or use method 'rtn'."
                    )
        if self.double_quant and self.method != "nf4":
            raise ValueError(f"double_quant=True is for method 'nf4', not {self.method!r}: leave it out.")
        if self.scale_search and self.method not in ("rtn", "gptq"):
            raise ValueError(f"scale_search=True is for methods 'rtn' and 'gptq', not {self.method!r}: leave it out.")
        for field in ("act_order", "static_groups", "damping"):
            if getattr(self, field) != type(self).model_fields[field].default and self.method != "gptq":
                raise ValueError(f"{field} is for method 'gptq', not {self.method!r}: leave it out.")
        return self


_NF4_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"bits": 4, "group_size": 64},
    "fp8": {"bits": 8, "group_size": -1},
    "w8a8": {"bits": 8, "group_size": -1},
}
# 64 divides the hidden sizes of small models, as 576, where 128 does not.
_SHORT_NAMES: dict[str, dict[str, Any]] = {
    "int8": {"method": "rtn", "bits": 8},
    "int4": {"method": "rtn", "bits": 4, "group_size": 64, "symmetric": False},
    "int2": {"method": "rtn", "bits": 2, "group_size": 32, "symmetric": False},
    "nf4": {"method": "nf4"},
    "fp8": {"method": "fp8"},
    "w8a8": {"method": "w8a8"},
    "gptq-int4": {"method": "gptq", "bits": 4, "group_size": 128},
    "awq-int4": {"method": "awq", "bits": 4, "group_size": 128, "symmetric": False},
}
QUANTIZATION_SHORT_NAMES = tuple(_SHORT_NAMES)


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
    quantization: QuantizationConfig | str | None = Field(
        None, description=f"None, {', '.join(QUANTIZATION_SHORT_NAMES)}, or a QuantizationConfig"
    )
    """Quantizes the weights when they are loaded. A short name or a dict becomes a QuantizationConfig."""
    speculation: SpeculationConfig | None = Field(None, description="None or a SpeculationConfig")
    cuda_graphs: bool = Field(False, description="True or False")
    compile: bool = Field(False, description="True or False")
    deterministic: bool = Field(False, description="True or False")
    tensor_parallel_size: int = Field(1, ge=1, description="a whole number of at least 1")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="a 64-bit whole number")
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = Field(
        "auto", description="auto, safetensors, gguf or dummy"
    )

    @field_validator("quantization", mode="before")
    @classmethod
    def _quantization(cls, value: Any) -> Any:
        if isinstance(value, str):
            return QuantizationConfig.named(value)
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return QuantizationConfig(**value)
        return value

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
        if self.kv_cache == "none" and self.kv_cache_dtype in ("int8", "fp8"):
            raise ValueError(
                f"kv_cache_dtype={self.kv_cache_dtype!r} has nothing to quantize with kv_cache='none', which keeps no "
                "KV: leave it out, or use 'paged' or 'contiguous'."
            )
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
            (self.compile, "compile", True),
            (self.deterministic, "deterministic", True),
            (self.tensor_parallel_size > 1, "tensor_parallel_size", self.tensor_parallel_size),
        ]
        for refused, field, value in refusals:
            if refused:
                raise ValueError(f"{field}={shorten(value)} {NOT_YET}: leave it at its default.")
