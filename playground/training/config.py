"""Training configuration: a TOML or JSON file, validated field by field with one sentence for each bad value.

It describes a run (model shape, data mix, stages, schedule) and never reads data or weights.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from playground.errors import ConfigError
from playground.training.model import ModelShape


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Part):
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0, multiple_of=2)
    intermediate_size: int = Field(gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    max_position_embeddings: int = Field(default=1024, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        return self

    def shape(self, vocab_size: int) -> ModelShape:
        return ModelShape(vocab_size=vocab_size, **self.model_dump())


class StageConfig(_Part):
    """One part of a run: a sequence length, a mix of sources and a budget in minutes or in tokens."""

    name: str = Field(min_length=1)
    length: int = Field(ge=8)
    batch_size: int = Field(ge=1)
    minutes: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    assistant_only: bool = False
    pack: Literal["stream", "rows"] = "stream"
    """stream: documents end to end, cut anywhere; rows: every row starts with a document and holds whole ones."""
    mix: dict[str, float] = Field(min_length=1)
    """Source name -> how often its documents come per epoch (may be a fraction)."""

    @model_validator(mode="after")
    def _one_budget(self) -> StageConfig:
        if (self.minutes is None) == (self.tokens is None):
            raise ValueError("a stage needs exactly one of minutes and tokens")
        return self


class ScheduleConfig(_Part):
    learning_rate: float = Field(default=2e-3, gt=0)
    final_fraction: float = Field(default=0.03, ge=0, le=1)
    warmup_steps: int = Field(default=200, ge=0)
    decay_fraction: float = Field(default=0.28, ge=0, le=1)
    """The last part of the whole budget, over which the rate falls linearly."""
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)


class DistillConfig(_Part):
    teacher: str
    """Hugging Face folder of the target model; the student takes its tokenizer too."""
    temperature: float = Field(default=1.0, gt=0)
    cross_entropy_weight: float = Field(default=0.1, ge=0, le=1)
    teacher_text_fraction: float = Field(default=0.0, ge=0, le=1)
    """Part of every epoch that the teacher writes itself (it continues story and chat openings)."""


class TrainConfig(_Part):
    name: str = Field(min_length=1)
    output_dir: str
    """Checkpoints, tokenizer, loss curve and samples go here."""
    data_dir: str = "../shared/data/text"
    export_dir: str | None = None
    """Where the finished model is written in Hugging Face format; None: output_dir/export."""
    init_from: str | None = None
    """A run's output_dir or a Hugging Face folder whose weights to start from."""
    tokens_before: int = Field(default=0, ge=0)
    """Tokens that those weights had already seen; the model card adds them up."""
    start_weight: float = Field(default=0.0, ge=0, lt=1)
    """Share of the weights of `init_from` in what is exported: a short run on narrow data keeps more of what the start
    could do as an average of both (arXiv 2109.01903)."""
    tokenizer: str | None = None
    """A folder with a tokenizer to use; None: train one on the data."""
    vocab_size: int = Field(default=4096, ge=300)
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = True
    num_threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    """Processes that share every batch; on a CPU one single-threaded worker per core beats one process with threads."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    eval_minutes: float = Field(default=8.0, gt=0)
    eval_tokens_per_source: int = Field(default=8192, ge=0)
    sample_tokens: int = Field(default=200, ge=1)
    """At most so many tokens per sample at an evaluation."""
    generated_documents: int = Field(default=4000, ge=0)
    """Documents that each kind of the template generator yields per epoch at a mix weight of 1."""
    model: ModelConfig
    stages: list[StageConfig] = Field(min_length=1)
    schedule: ScheduleConfig = ScheduleConfig()
    distill: DistillConfig | None = None

    @model_validator(mode="after")
    def _lengths_fit(self) -> TrainConfig:
        if self.start_weight and self.init_from is None:
            raise ValueError("start_weight needs init_from, the weights to average with")
        for stage in self.stages:
            if stage.batch_size % self.workers:
                raise ValueError(
                    f"stage {stage.name!r} has batch_size={stage.batch_size}, not a multiple of workers={self.workers}"
                )
            if stage.length > self.model.max_position_embeddings:
                raise ValueError(
                    f"stage {stage.name!r} has length {stage.length}, above the model's "
                    f"max_position_embeddings={self.model.max_position_embeddings}"
                )
        if len({stage.minutes is None for stage in self.stages}) > 1:
            raise ValueError("give every stage its budget in the same unit, minutes or tokens")
        return self


def load_config(path: Path) -> TrainConfig:
    """Reads and validates a .toml or .json file; raises ConfigError with one line that names the field."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no training config at {path}; give the path of a .toml or .json file.")
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}.") from None
    return parse_config(raw)


def parse_config(raw: object) -> TrainConfig:
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        message = first["msg"].removeprefix("Value error, ")
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        given = "" if isinstance(first["input"], dict) else f" (given {first['input']!r:.80})"
        raise ConfigError(f"training config: {where}: {message}{given}{more}.") from None
