"""The kernels compiled for GPUs that are not there: no spills, the matrix instructions of each generation, wide loads.

Processes of their own, without the interpreter that the other tests run in.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from genosparse.attention.triton import configurations

SCRIPT = """
import dataclasses, json, sys, torch
from genosparse.attention.triton.ahead_of_time import compile_kernels
archs, head_dims, dtypes, variants = json.loads(sys.argv[1])
for kernel in compile_kernels(archs, head_dims, [getattr(torch, dtype) for dtype in dtypes], variants):
    print(json.dumps(dataclasses.asdict(kernel)), flush=True)
"""
README = Path(configurations.__file__).with_name("README.md")
MATRIX_KERNELS = {"forward", "backward_dq", "backward_dkv_columns", "backward_dkv_table", "backward_dkv_window"}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
ARCHS = tuple(MATRIX_INSTRUCTION)
# Consumer cards take the configurations of sm_80 and have 99 KiB.
SHARED_BYTES = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}
ALL_VARIANTS = (
    "plain", "no stride", "key_mask", "causal", "group 2", "stagger, group 4, key_mask", "global rows", "table",
    "table, causal, key_mask", "blocks of 64",
)  # fmt: skip


def compile_all(
    archs: tuple[int, ...],
    head_dims: tuple[int, ...],
    dtypes: tuple[str, ...],
    variants: tuple[str, ...],
    *,
    overlay: Path | None = None,
    cache: Path,
) -> list[dict[str, Any]]:
    """What the kernels take, one dict each; ``overlay`` is a folder of packages that go first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    if overlay is not None:
        environment["PYTHONPATH"] = str(overlay)
    arguments = json.dumps([archs, head_dims, dtypes, variants])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def assert_sound(kernel: dict[str, Any]) -> None:
    what = f"{kernel['kernel']} on sm_{kernel['arch']}, D {kernel['head_dim']}, {kernel['dtype']}, {kernel['variant']}"
    assert kernel["spilled_bytes"] == 0, f"{what}: {kernel['spilled_bytes']} bytes of stack"
    assert kernel["instructions"]["spill"] == 0, what
    # The table says how many registers each may have: one more is a spill.
    assert 0 < kernel["registers"] <= (kernel["configuration"]["max_registers"] or 255), what
    assert kernel["shared_bytes"] <= SHARED_BYTES[kernel["arch"]], what
    # Not empty: the kernel that prepares the backward pass is small, and at head size 16 has 96.
    assert kernel["instructions"]["all"] > (100 if kernel["kernel"] in MATRIX_KERNELS else 50), what
    if kernel["kernel"] in MATRIX_KERNELS and kernel["dtype"] != "fp32":
        assert MATRIX_INSTRUCTION[kernel["arch"]] in kernel["ptx"], what
        assert kernel["instructions"]["matrix"] > 0, what
        assert kernel["instructions"]["async_load"] > 0, what
    if kernel["kernel"] in MATRIX_KERNELS:
        assert kernel["instructions"]["exp2"] > 0, what


@pytest.mark.parametrize("arch", [pytest.param(arch, marks=[pytest.mark.slow] * (arch != 90)) for arch in ARCHS])
def test_kernels_compile_without_spills(arch: int, tmp_path: Path) -> None:
    kernels = compile_all((arch,), (64,), ("bfloat16",), ("plain",), cache=tmp_path)
    assert {kernel["kernel"] for kernel in kernels} == (MATRIX_KERNELS - {"backward_dkv_table"}) | {"backward_prepare"}
    for kernel in kernels:
        assert_sound(kernel)
    if version("triton") != "3.7.1":
        pytest.skip("the README's table is that of triton 3.7.1")
    assert_documented(kernels)


def assert_documented(kernels: list[dict[str, Any]]) -> None:
    """The README's table shows the very registers: one more or less is to be looked at, and written there."""
    for kernel in kernels:
        if kernel["variant"] == "plain" and kernel["dtype"] == "bf16":
            assert documented_registers(kernel) == kernel["registers"], "write the README's table anew: suite=kernels"


def documented_registers(kernel: dict[str, Any]) -> int:
    """What the README's table says."""
    start = (
        f"| {kernel['kernel']} | {kernel['arch']} | {kernel['head_dim']} | {kernel['dtype']} | {kernel['variant']} | "
    )
    (row,) = (line for line in README.read_text().splitlines() if line.startswith(start))
    return int(row.split(" | ")[8])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_every_variant_compiles_without_spills(arch: int, head_dim: int, tmp_path: Path) -> None:
    kernels = compile_all((arch,), (head_dim,), ("bfloat16",), ALL_VARIANTS, cache=tmp_path)
    assert len(kernels) > 30
    for kernel in kernels:
        assert_sound(kernel)
    if head_dim != 16 and version("triton") == "3.7.1":  # which the table leaves out
        assert_documented(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_dtype_compiles_without_spills(arch: int, dtype: str, tmp_path: Path) -> None:
    head_dims = (48, 64, 96) if dtype == "float16" else (16, 64, 80, 128)
    for kernel in compile_all((arch,), head_dims, (dtype,), ("plain",), cache=tmp_path):
        assert_sound(kernel)
    for kernel in compile_all((arch,), (64, 128), (dtype,), ("table, causal, key_mask",), cache=tmp_path):
        assert_sound(kernel)


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["3.6.*", "3.*"], ids=["oldest", "newest"])
def test_other_versions_of_triton(versions: str, tmp_path: Path) -> None:
    """The oldest that the package allows and the newest that there is, each in a folder of its own."""
    overlay = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(overlay)]
    subprocess.run([*install, f"triton=={versions}"], check=True)
    for variant in ("plain", "table, causal, key_mask"):
        for kernel in compile_all(ARCHS, (64, 128), ("bfloat16",), (variant,), overlay=overlay, cache=tmp_path):
            assert_sound(kernel)


def test_interpreter_cannot_compile() -> None:
    from genosparse.attention.triton import ahead_of_time
    from genosparse.errors import PatternError

    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the tests run on a GPU, not in the interpreter")
    with pytest.raises(PatternError, match="unset it"):
        next(ahead_of_time.compile_kernels())
