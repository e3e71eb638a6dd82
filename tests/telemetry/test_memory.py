"""Memory readings are real, labelled, and fall back without an error where there is no GPU."""

import psutil
import pytest
import torch

from playground.telemetry.memory import MemorySampler
from playground.telemetry.nvml import nvml_uuid

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="checks the fallback on a machine without a GPU")


def test_the_process_reading_is_the_resident_set_within_the_machines_memory():
    reading = MemorySampler("cpu").sample()
    assert reading.source == "process"
    assert reading.used_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert 0 < reading.used_bytes < reading.total_bytes <= psutil.virtual_memory().total


def test_the_process_reading_grows_with_what_the_process_holds():
    sampler = MemorySampler("cpu")
    before = sampler.sample().used_bytes
    held = bytearray(b"x" * 64 * 1024 * 1024)
    grown = sampler.sample().used_bytes - before
    assert grown > 0.8 * len(held)


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_without_a_gpu_the_reading_falls_back_to_the_process_and_says_so(device):
    sampler = MemorySampler(device)
    reading = sampler.sample()
    sampler.close()
    sampler.close()
    assert reading.source == "process"
    assert reading.used_bytes > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_reading_is_of_this_gpu_and_agrees_with_the_cuda_runtime():
    sampler = MemorySampler("cuda:0")
    held = torch.zeros(256 * 1024 * 1024, dtype=torch.uint8, device="cuda:0")
    reading = sampler.sample()
    free, total = torch.cuda.mem_get_info(0)
    sampler.close()
    assert reading.source in ("nvml", "torch")
    assert reading.total_bytes == pytest.approx(total, rel=0.05)
    assert reading.used_bytes == pytest.approx(total - free, rel=0.1, abs=1024**3)
    assert reading.used_bytes >= held.numel()


def test_a_gpu_is_asked_for_by_the_name_its_driver_uses():
    assert nvml_uuid("12ab") == "GPU-12ab"
    assert nvml_uuid("GPU-12ab") == "GPU-12ab"
    assert nvml_uuid("MIG-12ab") == "MIG-12ab"
