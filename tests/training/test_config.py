"""Bad training configs get one sentence that names the field; the committed ones are valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from playground.errors import ConfigError
from playground.training.config import load_config, parse_config
from tests.training.helpers import TINY_MODEL, tiny_config

CONFIGS = Path(__file__).parents[2] / "playground/training/configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_committed_configs_are_valid(path: Path) -> None:
    assert load_config(path).stages


STAGE = {"name": "s", "length": 16, "batch_size": 1, "mix": {"greetings": 1}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": -1}, "seed"),
        ({"colour": "red"}, "colour"),
        ({"vocab_size": 12}, "vocab_size"),
        ({"stages": []}, "stages"),
        ({"stages": [STAGE]}, "exactly one of minutes and tokens"),
        ({"stages": [{**STAGE, "tokens": 1, "minutes": 1}]}, "exactly one of minutes and tokens"),
        ({"stages": [{**STAGE, "tokens": 1}, {**STAGE, "minutes": 1}]}, "same unit"),
        ({"stages": [{**STAGE, "tokens": 1, "length": 4096}]}, "length 4096, above"),
        ({"stages": [{**STAGE, "tokens": 1, "pack": "tight"}]}, "stages.0.pack"),
        ({"model": {**TINY_MODEL, "num_heads": 3}}, "num_heads=3 is not a multiple of num_kv_heads=2"),
        ({"schedule": {"learning_rate": float("nan")}}, "schedule.learning_rate"),
        ({"dtype": "float16"}, "dtype"),
        ({"workers": 3}, "batch_size=4, not a multiple of workers=3"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_config(tmp_path, **changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training config"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "broken.toml")
    (tmp_path / "broken.json").write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path / "broken.json")
