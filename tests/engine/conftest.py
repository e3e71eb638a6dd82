"""An engine over the tiny model in float64, where no tie can hide a fault."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from playground import Engine, EngineConfig

EngineFactory = Callable[..., Engine]


def with_given_fields(defaults: dict[str, Any], fields: dict[str, Any], config: pytest.Config) -> dict[str, Any]:
    """Fields of a test's engine: `defaults`, what `--engine FIELD=VALUE` asked for, what the test itself is about.

    A test about another attention, or about no cache, has no recorded decode steps, and no cache is not quantized.
    """
    pairs = (option.partition("=") for option in config.getoption("--engine"))
    given = {field: {"true": True, "false": False}.get(value, value) for field, _, value in pairs}
    merged = {**defaults, **given, **fields}
    if merged.get("kv_cache") == "none" or merged.get("attention") != "triton":
        merged.pop("cuda_graphs", None)
    if merged.get("kv_cache") == "none" and "kv_cache_dtype" not in fields:
        merged.pop("kv_cache_dtype", None)
    return merged


@pytest.fixture
def make_engine(tiny_model: Path, pytestconfig: pytest.Config) -> Iterator[EngineFactory]:
    """`make_engine(**fields)` builds an engine, on the CPU unless told otherwise, that is closed when the test ends."""
    engines: list[Engine] = []

    def make(**fields: Any) -> Engine:
        defaults = {
            "model": str(tiny_model),
            "device": "cpu",
            "dtype": "float64",
            "max_model_len": 128,
            "max_num_seqs": 8,
            "num_kv_blocks": 64,
            "block_size": 4,
        }
        if fields.get("kv_cache") == "none":
            del defaults["num_kv_blocks"]  # refused there, since it would mean nothing
        engine = Engine(EngineConfig(**with_given_fields(defaults, fields, pytestconfig)))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: EngineFactory) -> Engine:
    return make_engine()
