"""Compiles every shipped kernel for every architecture on a machine without a GPU, and says what came out.

`python -m kernels.triton.aot [--arch 90] [--family paged_decode] [--json FILE]` prints registers, stack, shared
memory and which instructions were used. Each family lists its launches in `aot_cases`; nothing is compiled that a
launcher would not launch. With `--known FILE`, results of an earlier run are taken over for kernels that have not
changed since: a key over source, types, constants, options, architecture and Triton's version tells.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton.arch import INTERPRETED, KNOWN, Arch, pretending
from kernels.triton.launch import Launch, dtype_name, recording

FAMILIES: tuple[str, ...] = (
    "activation",
    "flash",
    "cache_write",
    "norms",
    "norms_backward",
    "rope",
    "quant_gemm",
    "merge",
    "paged_decode",
    "paged_prefill",
    "sampling",
    "rejection",
)
"""Modules of this package that launch kernels; each has `aot_cases() -> Iterable[(name, function)]`, where the function
calls a launcher on meta tensors and may ask `arch.current` what it runs on."""

_ASYNC_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?,\s*(0x\w+|\d+)\s*[,;]")


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one architecture."""

    family: str
    case: str
    kernel: str
    arch: int
    num_warps: int
    num_stages: int
    blocks: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    shared_limit: int
    wgmma: bool
    tensor_cores: bool
    async_copy_bytes: int
    """Widest cp.async (16 where global loads are pipelined as they should be); 0 without any."""
    error: str | None = None
    key: str = ""
    """Digest of everything that decides the result."""


def launches(family: str, arch: Arch) -> Iterator[tuple[str, Launch]]:
    """(case, launch) for everything that a family ships on this architecture; the same kernel is given once."""
    module = importlib.import_module(f"kernels.triton.{family}")
    seen: set[str] = set()
    for case, call in module.aot_cases():
        with pretending(arch), recording() as recorded:
            call()
        for one in recorded:
            key = repr((one.kernel.__name__, _signature(one), one.num_warps, one.num_stages))
            if key not in seen:
                seen.add(key)
                yield case, one


def compile_launch(family: str, case: str, one: Launch, arch: Arch) -> Compiled:
    """Compiles to a cubin with Triton's own ptxas and reads what it uses."""
    signature, constants, attributes = _signature(one)
    source = ASTSource(one.kernel, signature=signature, constexprs=constants, attrs=attributes)
    key = digest(family, case, one, arch)
    blocks = " ".join(f"{k}={v}" for k, v in one.constants.items() if k.startswith("BLOCK"))
    head = (family, case, one.kernel.__name__, arch.cc, one.num_warps, one.num_stages, blocks)
    try:
        options = {"num_warps": one.num_warps, "num_stages": one.num_stages, "enable_fp_fusion": True}
        built: Any = triton.compile(source, target=GPUTarget("cuda", arch.cc, 32), options=options)
        registers, stack = _resources(built.asm["cubin"])
    except Exception as error:  # a compiler can fail in any way; the report names the kernel and goes on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Compiled(*head, 0, 0, 0, arch.shared_limit, False, False, 0, reason, key)
    ptx = built.asm["ptx"]
    widths = [int(width, 0) for width in _ASYNC_COPY.findall(ptx)]
    return Compiled(
        *head,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=built.metadata.shared,
        shared_limit=arch.shared_limit,
        wgmma="wgmma" in ptx,
        tensor_cores="mma" in ptx,
        async_copy_bytes=max(widths, default=0),
        key=key,
    )


def digest(family: str, case: str, one: Launch, arch: Arch) -> str:
    """What tells whether a kernel would compile to the same again; helpers that it calls are part of its source."""
    source = (one.kernel.cache_key, _signature(one), one.num_warps, one.num_stages)
    parts = (family, case, source, arch.cc, triton.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _signature(one: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Types, constants and alignment attributes, as Triton's own launcher would derive them from the arguments."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    values = dict(zip(one.kernel.arg_names, one.args, strict=False)) | one.constants
    for position, parameter in enumerate(one.kernel.params):
        value = values[parameter.name]
        plain_one = isinstance(value, int) and not isinstance(value, bool) and value == 1
        if parameter.is_constexpr or value is None or (plain_one and not parameter.do_not_specialize):
            types[parameter.name] = "constexpr"
            constants[(position,)] = value
            continue
        if isinstance(value, torch.Tensor):
            types[parameter.name] = "*" + dtype_name(value.dtype)
            aligned = value.storage_offset() * value.itemsize % 16 == 0
        elif isinstance(value, bool):
            types[parameter.name], aligned = "u1", False
        elif isinstance(value, int):
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        else:
            types[parameter.name], aligned = "fp32", False
        if aligned and not parameter.do_not_specialize:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack (spills included) of a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {text[:200]}")
    return int(found[1]), int(found[2])


def _compile_family(family: str, cc: int, known: dict[str, Compiled], first_only: bool) -> list[Compiled]:
    torch.set_num_threads(1)
    arch = next(one for one in KNOWN if one.cc == cc)
    results, seen = [], set()
    for case, one in launches(family, arch):
        if not (first_only and one.kernel.__name__ in seen):
            seen.add(one.kernel.__name__)
            results.append(known.get(digest(family, case, one, arch)) or compile_launch(family, case, one, arch))
    return results


def compile_all(
    families: tuple[str, ...] = FAMILIES,
    archs: tuple[int, ...] | None = None,
    known: dict[str, Compiled] | None = None,
    first_only: bool = False,
) -> list[Compiled]:
    """Everything, or only the first case of each kernel, on all cores; `known` results are taken over by their key.

    Must not run under the interpreter, which has replaced the kernels.
    """
    if INTERPRETED:
        raise ValueError("TRITON_INTERPRET=1 is set: compile in a process without it.")
    jobs = [(family, arch.cc) for family in families for arch in KNOWN if archs is None or arch.cc in archs]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(_compile_family, *job, known or {}, first_only) for job in jobs]
        return [compiled for future in futures for compiled in future.result()]


def read(file: Path) -> dict[str, Compiled]:
    """Results of an earlier run by their key."""
    return {entry["key"]: Compiled(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))}


def write(file: Path, results: list[Compiled]) -> None:
    """One result a line, in an order of their own, so that a change shows as a change."""
    lines = sorted(json.dumps(asdict(r)) for r in results)
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def table(results: list[Compiled]) -> str:
    """One line a kernel."""
    lines = []
    for r in results:
        what = f"sm{r.arch:<4}{r.kernel:34.34} {r.case:38.38} w{r.num_warps} s{r.num_stages} {r.blocks:34.34}"
        if r.error:
            lines.append(f"{what} FAILED {r.error}")
            continue
        mma = "wgmma" if r.wgmma else "mma" if r.tensor_cores else "-"
        used = f"regs {r.registers:3} stack {r.stack_bytes:4} shared {r.shared_bytes / 1024:5.0f}K"
        lines.append(f"{what} {used} {mma:5} cp.async {r.async_copy_bytes}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family (repeatable)")
    parser.add_argument("--arch", action="append", type=int, choices=[a.cc for a in KNOWN], help="only this one")
    parser.add_argument("--first", action="store_true", help="only the first case of each kernel")
    parser.add_argument("--known", type=Path, help="take over what this file of an earlier run has")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    archs = tuple(options.arch) if options.arch else None
    known = read(options.known) if options.known and options.known.is_file() else None
    results = compile_all(tuple(options.family or FAMILIES), archs, known, options.first)
    sys.stdout.write(table(results) + "\n")
    if options.json:
        write(options.json, results)
    return int(any(r.error for r in results))


if __name__ == "__main__":
    sys.exit(main())
