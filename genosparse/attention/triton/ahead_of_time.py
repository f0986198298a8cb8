"""Compile the kernels for GPUs that are not there, and read off the binaries what they take.

Works on any Linux machine, in a process without ``TRITON_INTERPRET``: Triton brings assembler and disassembler along.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genosparse.attention.tables import ENTRIES_PER_ITEM
from genosparse.attention.triton import backward, backward_dkv, forward
from genosparse.attention.triton.configurations import Configuration, find_configuration, padded_head_dim
from genosparse.attention.triton.tiles import NOT_SPECIALIZED
from genosparse.errors import PatternError

__all__ = ["ARCHS", "VARIANTS", "CompiledKernel", "compile_kernel", "compile_kernels"]

ARCHS = (80, 90, 100)

_KERNELS: dict[str, tuple[Any, str]] = {  # function, and the kernel whose configuration it takes
    "forward": (forward._forward_kernel, "forward"),
    "backward_prepare": (backward._backward_prepare_kernel, "backward_dq"),
    "backward_dq": (backward._backward_dq_kernel, "backward_dq"),
    "backward_dkv_columns": (backward_dkv._backward_dkv_columns_kernel, "backward_dkv_columns"),
    "backward_dkv_table": (backward_dkv._backward_dkv_columns_kernel, "backward_dkv_window"),
    "backward_dkv_window": (backward_dkv._backward_dkv_window_kernel, "backward_dkv_window"),
}

_PLAIN = {
    "GROUP": 1,
    "KV_REPEAT": 1,
    "CAUSAL": False,
    "STRIDED": True,
    "STAGGER": False,
    "BLOCK_SIZE": 1,
    "HAS_KEY_MASK": False,
    "HAS_TABLE": False,
    "HAS_COLUMNS": True,
    "GLOBAL_ROWS": False,
    "ENTRIES": ENTRIES_PER_ITEM,
}
# What a pattern and a call can switch on, beside the plain window and stride.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no stride": {"STRIDED": False},
    "key_mask": {"HAS_KEY_MASK": True},
    "causal": {"CAUSAL": True},
    "group 2": {"GROUP": 2},
    "stagger, group 4, key_mask": {"STAGGER": True, "GROUP": 4, "HAS_KEY_MASK": True},
    "global rows": {"GLOBAL_ROWS": True},
    "table": {"HAS_TABLE": True},
    "table, causal, key_mask": {"HAS_TABLE": True, "CAUSAL": True, "HAS_KEY_MASK": True},
    "blocks of 64": {"BLOCK_SIZE": 64, "HAS_TABLE": True},
}

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_FLOAT32 = {"lse_ptr", "delta_ptr", "lse2_ptr", "column_dk_ptr", "column_dv_ptr", "table_dk_ptr", "table_dv_ptr"}
_INT32 = {"entry_ptr", "entry_first_ptr", "item_first_ptr", "item_bucket_ptr"}

# Instructions to count in the machine code, by what they do.
_INSTRUCTIONS = {
    "matrix": r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\b",
    "async_load": r"\bLDGSTS\.E\.(BYPASS\.)?(LTC128B\.)?128",
    "narrow_async_load": r"\bLDGSTS(?![^;]*\.128)",
    "load": r"\bLDG\b",
    "exp2": r"\bMUFU\.EX2\b",
    "spill": r"\b(LDL|STL)\b",
}


@dataclass(frozen=True)
class CompiledKernel:
    """What one kernel takes on one GPU generation.

    Attributes:
        kernel: Its name.
        arch: Compute capability, as 90.
        head_dim: Head size.
        dtype: "bf16", "fp16" or "fp32".
        variant: One of ``VARIANTS``.
        configuration: How it is cut and launched.
        registers: Per thread.
        spilled_bytes: Of the stack per thread; 0 where all fits into registers.
        shared_bytes: Of shared memory per program.
        instructions: Counts in the machine code: "matrix", "async_load" (16 bytes at a time), "narrow_async_load",
            "load", "exp2", "spill", "all".
        ptx: The assembly that the machine code was made from.
    """

    kernel: str
    arch: int
    head_dim: int
    dtype: str
    variant: str
    configuration: Configuration
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: dict[str, int]
    ptx: str


def compile_kernels(
    archs: Sequence[int] = ARCHS,
    head_dims: Sequence[int] = (32, 64, 128),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    variants: Sequence[str] = ("plain",),
) -> Iterator[CompiledKernel]:
    """Compile every kernel, in the configuration that the table has for it, in each combination that it knows.

    Raises:
        PatternError: The process runs Triton's interpreter.
    """
    for arch in archs:
        for head_dim in head_dims:
            for dtype in dtypes:
                for variant in variants:
                    for kernel in _KERNELS:
                        if _knows(kernel, variant):
                            yield compile_kernel(kernel, arch, head_dim, dtype, variant)


def _knows(kernel: str, variant: str) -> bool:
    """Whether a variant makes a difference to a kernel."""
    names = set(_KERNELS[kernel][0].arg_names)
    flags = VARIANTS[variant]
    if kernel == "backward_dkv_columns" and flags.get("HAS_TABLE"):
        return False
    if kernel == "backward_dkv_table" and not flags.get("HAS_TABLE"):
        return False
    return not flags or any(name in names for name in flags)


def compile_kernel(
    kernel: str,
    arch: int,
    head_dim: int,
    dtype: torch.dtype,
    variant: str = "plain",
    configuration: Configuration | None = None,
) -> CompiledKernel:
    """Compile one kernel, in the table's configuration where none is given."""
    if triton.knobs.runtime.interpret:
        raise PatternError("kernels cannot be compiled under TRITON_INTERPRET=1; unset it and start again")
    function, table_name = _KERNELS[kernel]
    configuration = configuration or find_configuration(table_name, arch, head_dim, dtype)
    values = {
        **_PLAIN,
        **VARIANTS[variant],
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": configuration.block_m,
        "BLOCK_N": configuration.block_n,
    }
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(function.arg_names):
        signature[name] = _type_of(name, kernel, _TYPES[dtype])
        if name in values:
            signature[name], constants[name] = "constexpr", values[name]
        elif name not in NOT_SPECIALIZED and not name.startswith("scale"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={
            "num_warps": configuration.num_warps,
            "num_stages": configuration.num_stages,
            "maxnreg": configuration.max_registers,
            "enable_fp_fusion": True,
        },
    )
    registers, stack, instructions = _read_binary(compiled.asm["cubin"])
    return CompiledKernel(
        kernel, arch, head_dim, _TYPES[dtype], variant, configuration, registers, stack, compiled.metadata.shared,
        instructions, compiled.asm["ptx"],
    )  # fmt: skip


def _type_of(name: str, kernel: str, dtype: str) -> str:
    if name == "key_mask_ptr":
        return "*u8"
    if name in _INT32:
        return "*i32"
    if name in _FLOAT32 or (name in ("dk_ptr", "dv_ptr") and kernel != "backward_dkv_window"):
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{dtype}"
    return "fp32" if name.startswith("scale") else "i32"


def _read_binary(cubin: bytes) -> tuple[int, int, dict[str, int]]:
    """Registers per thread, bytes of stack per thread, and counts of instructions."""
    tool = str(Path(triton.backends.__file__).parent / "nvidia" / "bin" / "cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _output([tool, "--dump-resource-usage", str(file)])
        code = _output([tool, "-sass", str(file)])
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match, usage
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/ +([^;]*);", code)
    counts = {what: sum(bool(re.search(regex, line)) for line in lines) for what, regex in _INSTRUCTIONS.items()}
    return int(match[1]), int(match[2]), {**counts, "all": len(lines)}


def _output(command: list[str]) -> str:
    # S603: the program is Triton's own, and its argument a file of ours
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
