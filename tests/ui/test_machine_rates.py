"""What was measured on the machine reaches whoever watches, with what every step had to do."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from playground import SamplingParams
from playground.telemetry.ceilings import MachineRates, RatesFile
from playground.telemetry.feed import work_of
from playground.telemetry.rows import StepRow
from playground.ui.host import EngineHost
from playground.ui.machine_rates import MachineRatesFollower

RATES = MachineRates("a machine", "float32", 1e12, ((2**40, 2e10),))


def next_frame(reader: Any, wanted: Any) -> dict[str, Any]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        text = reader.take()
        if text is None:
            time.sleep(0.01)
        elif wanted(frame := json.loads(text)):
            return frame
    raise AssertionError("no such frame came")


def test_rates_known_from_before_are_in_the_frames_and_steps_say_their_work(host: EngineHost, tmp_path: Path) -> None:
    RatesFile(tmp_path / "rates.json").store("cpu", "float32", RATES)
    engine = host.require()
    reader = host.feed.read()
    next_frame(reader, lambda frame: frame["full"])
    follower = MachineRatesFollower(host, tmp_path / "rates.json")
    facts = next_frame(reader, lambda frame: frame["full"] and frame["facts"]["ceilings"])["facts"]
    assert facts["ceilings"]["flops_per_second"] == 1e12 and facts["ceilings"]["bytes_per_second"] == 2e10
    stats, config = engine.stats(), engine.model_config
    assert facts["work"]["kv_bytes_per_token"] == pytest.approx(facts["block_bytes"] / facts["block_size"], rel=0.01)
    tables = config.vocab_size * config.hidden_size * 4
    assert stats.memory_weights_bytes - tables <= stats.step_weights_bytes <= stats.memory_weights_bytes
    engine.generate(list(range(10, 40)), SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    step = StepRow(*next_frame(reader, lambda frame: frame["steps"])["steps"][0])
    work = work_of(engine)
    assert work is not None and step.flops == work.prompt(0, 30).flops
    assert step.moved_bytes == work.prompt(0, 30).moved_bytes
    reader.close()
    follower.close()
