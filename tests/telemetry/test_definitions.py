"""Every shown figure has a definition, and says where it comes from."""

import subprocess
import sys

import pytest

from playground.engine.outputs import RequestMetrics
from playground.telemetry.definitions import DEFINITIONS, define

IMPORT_CHECK = """
import sys
import playground.telemetry
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"gradio", "pynvml"})
sys.exit(", ".join(loaded) or 0)
"""


def test_importing_telemetry_loads_neither_gradio_nor_nvml():
    result = subprocess.run([sys.executable, "-c", IMPORT_CHECK], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("key", sorted(DEFINITIONS))
def test_a_definition_says_what_it_is_in_a_sentence_and_how_it_was_got(key):
    definition = define(key)
    assert definition.key == key
    assert definition.text.endswith(".")
    assert definition.label in definition.hover
    assert definition.kind in definition.hover
    assert definition.text in definition.hover


def test_the_metrics_shown_under_a_reply_are_defined_under_the_engines_own_names():
    shown = {"num_output_tokens", "num_cached_tokens", "kv_blocks_peak", "time_to_first_token"}
    assert shown <= set(RequestMetrics.__dataclass_fields__)
    assert shown <= set(DEFINITIONS)


@pytest.mark.parametrize(
    ("source", "label"), [("process", "Memory of this process"), ("nvml", "GPU memory"), ("torch", "GPU memory")]
)
def test_memory_is_labelled_with_where_the_figure_comes_from(source, label):
    assert define(f"memory_{source}").label == label
