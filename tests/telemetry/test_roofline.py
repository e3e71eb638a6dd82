"""Work on paper against counting it out, and ceilings that are measured, kept and never invented."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from playground.engine.outputs import EngineStats
from playground.models.bundled import BUNDLED_MODEL
from playground.models.config import DecoderConfig
from playground.models.families import ROLES, linear_inputs, linear_parts
from playground.telemetry import ceilings
from playground.telemetry.ceilings import CeilingProbe, MachineRates, RatesFile, measure
from playground.telemetry.gpu import GpuSampler
from playground.telemetry.nvml import NvmlDevice
from playground.telemetry.roofline import Ceilings, ModelWork, Share, attended_pairs, model_work, visible_tokens
from playground.telemetry.rows import EngineFacts

CONFIG = DecoderConfig.from_folder(BUNDLED_MODEL)
RATES = MachineRates("a machine", "float32", 1e12, ((100, 4e10), (1000, 2e10)))


@given(st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(1, 30))
def test_pairs_and_visible_keys_are_what_counting_them_gives(start: int, tokens: int, window: int | None) -> None:
    seen = [range(max(0, place + 1 - window) if window else 0, place + 1) for place in range(start, start + tokens)]
    assert attended_pairs(start, tokens, window) == sum(map(len, seen))
    if tokens:
        assert visible_tokens(start, tokens, window) == len(set().union(*seen))


def test_the_operations_are_two_for_every_weight_of_the_matrices() -> None:
    work = model_work(CONFIG, 1000, 64)
    matrices = sum(outputs * linear_inputs(CONFIG, role) for role in ROLES for _, outputs in linear_parts(CONFIG, role))
    assert work.flops_per_token == 2 * matrices * CONFIG.num_layers
    one = work.step([Share(0, 1, 1)])
    attention = 4 * CONFIG.num_heads * CONFIG.head_dim * CONFIG.num_layers
    assert one.flops == 2 * matrices * CONFIG.num_layers + 2 * CONFIG.vocab_size * CONFIG.hidden_size + attention
    assert (one.read_bytes, one.written_bytes) == (1000 + 64, 64)


def test_weights_are_read_once_a_step_and_keys_once_a_request() -> None:
    work = ModelWork(10, 5, 1, ((None, 2),), 1000, 8)
    two = work.step([Share(9, 1, 1), Share(19, 1, 1)])
    assert two.read_bytes == 1000 + 8 * 10 + 8 * 20 and two.written_bytes == 16
    assert two.flops == 2 * 10 + 2 * 5 + 2 * (10 + 20)
    assert work.prompt(0, 4).flops == 4 * 10 + 5 + 2 * 10


def test_the_roof_is_the_longer_of_the_two_times() -> None:
    roof = Ceilings(100.0, 10.0, 5.0, "float32", "x")
    work = ModelWork(10, 0, 0, ((None, 1),), 10, 0)
    assert roof.least_seconds(work.step([Share(0, 1, 0)])) == 1.0
    assert roof.least_seconds(work.step([Share(0, 100, 0)])) == 10.0


def test_facts_come_back_from_json() -> None:
    from dataclasses import asdict

    facts = EngineFacts(work=model_work(CONFIG, 1000, 64), ceilings=RATES.ceilings(500))
    assert EngineFacts(**json.loads(json.dumps(asdict(facts)))) == facts


def test_a_small_models_roof_is_that_of_the_caches_it_fits_in() -> None:
    assert RATES.ceilings(50).bytes_per_second == 4e10
    assert RATES.ceilings(500).bytes_per_second == 2e10
    assert RATES.ceilings(10**9).bytes_per_second == RATES.ceilings(1).memory_bytes_per_second == 2e10


def test_what_is_measured_is_a_rate_that_this_machine_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "CPU_BYTES", (2**22, 2**24))
    monkeypatch.setattr(ceilings, "CPU_SIZE", 256)
    rates = measure("cpu", "float32")
    assert [size for size, _ in rates.reads] == [2**22, 2**24]
    assert rates.reads[0][1] >= rates.reads[1][1] > 1e8 and rates.flops_per_second > 1e8
    values = torch.ones(2**22 // 4)
    started = time.perf_counter()
    values.sum()
    assert 2**22 / rates.reads[0][1] < 20 * (time.perf_counter() - started) + 1e-3


def test_the_file_keeps_what_was_measured_and_a_broken_one_is_none(tmp_path: Path) -> None:
    file = RatesFile(tmp_path / "deep" / "rates.json")
    assert file.find("cpu", "float32") is None
    file.store("cpu", "float32", RATES)
    assert file.find("cpu", "float32") == RATES
    assert file.find("cpu", "bfloat16") is None
    for text in ("[]", "{", '{"x": 1}', "null"):
        (tmp_path / "deep" / "rates.json").write_text(text)
        assert file.find("cpu", "float32") is None
    file.store("cpu", "float32", RATES)
    assert file.find("cpu", "float32") == RATES


def probe(tmp_path: Path, engine: Any, found: list[MachineRates], wanted: Any = lambda: True) -> CeilingProbe:
    file = RatesFile(tmp_path / "rates.json")
    return CeilingProbe(engine, "cpu", "float32", file=file, wanted=wanted, found=found.append, rest_seconds=0.02)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def test_measuring_waits_for_rest_and_throws_away_what_was_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = [EngineStats(num_running=1, steps=5)]
    measured: list[int] = []

    def disturbed_once(device: str, dtype: str) -> MachineRates:
        measured.append(1)
        if len(measured) == 1:
            stats[0] = EngineStats(steps=6)
        return RATES

    monkeypatch.setattr(ceilings, "measure", disturbed_once)
    found: list[MachineRates] = []
    one = probe(tmp_path, SimpleNamespace(stats=lambda: stats[0]), found)
    one.start()
    time.sleep(0.15)
    assert not measured, "a request is being served"
    stats[0] = EngineStats(steps=5)
    wait_for(lambda: found)
    assert len(measured) == 2 and found == [RATES]
    one.stop()
    again = probe(tmp_path, SimpleNamespace(stats=lambda: EngineStats(num_running=1)), found)
    again.start()
    wait_for(lambda: len(found) == 2)
    assert len(measured) == 2, "the second time it is read from the file"
    again.stop()


def test_nothing_is_measured_while_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype: pytest.fail("measured"))
    found: list[MachineRates] = []
    one = probe(tmp_path, SimpleNamespace(stats=EngineStats), found, wanted=lambda: False)
    one.start()
    time.sleep(0.15)
    one.stop()
    assert not found and not [thread for thread in threading.enumerate() if thread.name == "ceilings"]


class FakeNvml:
    """A driver of a GPU that does not tell its power limit."""

    NVML_CLOCK_SM = 1
    nvmlClocksEventReasonSwPowerCap = 4
    shut = False

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        return SimpleNamespace(gpu=37, memory=12)

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 312_500

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:
        return {1: 1410}[kind]

    def nvmlDeviceGetMaxClockInfo(self, gpu: str, kind: int) -> int:
        return {1: 1980}[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:
        return 4

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: str) -> int:
        raise RuntimeError("not supported")

    def nvmlShutdown(self) -> None:
        self.shut = True


def test_a_gpus_load_is_what_its_driver_says_and_what_it_does_not_say_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNvml()
    monkeypatch.setattr(NvmlDevice, "open", lambda index: NvmlDevice(nvml, "gpu"))
    sampler = GpuSampler("cuda:0")
    sample = sampler.sample()
    assert sample is not None
    assert sample[1:] == (0.37, 312.5, None, 1410, 1980, True)
    sampler.close()
    assert nvml.shut and sampler.sample() is None


def test_a_gpu_whose_driver_says_nothing_gives_no_sample_and_a_processor_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NvmlDevice, "open", lambda index: NvmlDevice(SimpleNamespace(), "gpu"))
    assert GpuSampler("cuda").sample() is None
    assert GpuSampler("cpu").sample() is None
