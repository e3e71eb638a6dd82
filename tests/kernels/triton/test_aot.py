"""Every shipped kernel compiles for every architecture, within its shared memory and without spilling.

Compiles in a process of its own: this one may have the interpreter, which replaces the kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.triton.aot import FAMILIES
from kernels.triton.arch import KNOWN

MAX_STACK_BYTES = 64
RECORDED_WITH = "3.9."
# Kernels whose time goes into long loops over tiles of keys: these must use the hardware's fast paths.
_FLASH = ("_flash_forward_kernel", "_flash_backward_kv_kernel", "_flash_backward_q_kernel")
WGMMA_ON_SM90: tuple[str, ...] = (*_FLASH, "_paged_prefill_kernel")
ASYNC_KV: tuple[str, ...] = (*_FLASH, "_paged_prefill_kernel", "_paged_decode_kernel")


RECORD = Path(__file__).with_name("aot.json")
"""Results of `python -m kernels.triton.aot --json`: kernels that changed since are compiled again, the others not."""


def compile_kernels(report: Path, *options: str) -> list[dict[str, Any]]:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "kernels.triton.aot", "--json", str(report), *options]
    done = subprocess.run(command, env=environment, cwd=RECORD.parents[3], capture_output=True, text=True)
    assert report.is_file(), done.stderr[-2000:]
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compile_kernels(tmp_path_factory.mktemp("aot") / "aot.json", "--known", str(RECORD))


def named(results: list[dict[str, Any]]) -> list[str]:
    return [f"sm{r['arch']} {r['kernel']} {r['case']}: {r}" for r in results]


@pytest.mark.timeout(900)
def test_every_family_compiles_for_every_architecture(compiled: list[dict[str, Any]]) -> None:
    assert not named([r for r in compiled if r["error"]])
    found = {(r["family"], r["arch"]) for r in compiled}
    assert found == {(family, arch.cc) for family in FAMILIES for arch in KNOWN}


@pytest.mark.timeout(600)
def test_the_record_is_what_the_compiler_gives(tmp_path: Path) -> None:
    """The first case of each kernel, compiled afresh: whoever changes a kernel brings the record along."""
    import triton

    record = {entry["key"]: entry for entry in json.loads(RECORD.read_text())}
    fresh = compile_kernels(tmp_path / "fresh.json", "--first", "--arch", "90")
    assert len({(r["family"], r["kernel"]) for r in fresh}) == len(fresh) > len(FAMILIES)
    if not triton.__version__.startswith(RECORDED_WITH):
        pytest.skip(f"the record is of Triton {RECORDED_WITH}, this is {triton.__version__}: nothing to compare with")
    stale = [r for r in fresh if r["key"] not in record]
    assert not named(stale), "run: TRITON_INTERPRET=0 python -m kernels.triton.aot --json tests/kernels/triton/aot.json"
    assert not named([r for r in fresh if record[r["key"]] != r])


def test_shared_memory_fits_the_architecture(compiled: list[dict[str, Any]]) -> None:
    assert not named([r for r in compiled if r["shared_bytes"] > r["shared_limit"]])


def test_nothing_spills(compiled: list[dict[str, Any]]) -> None:
    assert not named([r for r in compiled if r["stack_bytes"] > MAX_STACK_BYTES])


def test_prefill_uses_warpgroup_matmuls_on_hopper(compiled: list[dict[str, Any]]) -> None:
    mine = [r for r in compiled if r["kernel"] in WGMMA_ON_SM90 and r["arch"] == 90]
    mine = [r for r in mine if "fp32" not in r["case"]]  # float32 at full precision has no tensor cores
    # dK and dV of heads of 256 stay on the older instructions: their tiles are too narrow for a warpgroup.
    mine = [r for r in mine if (r["kernel"], r["case"]) != ("_flash_backward_kv_kernel", "D256 bf16")]
    assert {r["kernel"] for r in mine} == set(WGMMA_ON_SM90)
    assert not named([r for r in mine if not r["wgmma"]])


def test_keys_and_values_arrive_in_16_byte_async_copies(compiled: list[dict[str, Any]]) -> None:
    mine = [r for r in compiled if r["kernel"] in ASYNC_KV]
    assert {r["kernel"] for r in mine} == set(ASYNC_KV)
    assert not named([r for r in mine if r["async_copy_bytes"] < 16])
