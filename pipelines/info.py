"""What is installed, what the machine has, and which attention backend each dtype gets there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata

import torch

import genosparse
from genosparse.attention.api import default_backend
from genosparse.attention.cpu import native
from genosparse.benchmarking.machine import describe_machine, processor_features
from genosparse.readers import _lines as fasta_lines

__all__ = ["main"]

_PACKAGES = ("torch", "triton", "numpy", "pysam", "accelerate", "safetensors", "pyarrow")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def main(arguments: Sequence[str]) -> int:
    """Print it; return 0, or 2 where something was asked for: there are no settings."""
    if arguments and arguments[0] in ("--help", "-h"):
        print("usage: genosparse info\n\nprints versions, the processor, GPUs and backends; has no settings")
        return 0
    if arguments:
        print(f"genosparse info: error: unknown setting {arguments[0]!r}; it has none", file=sys.stderr)
        return 2
    print("\n".join(_lines()))
    return 0


def _lines() -> list[str]:
    machine = describe_machine(torch.device("cpu"))
    why_not = native.why_not(torch.float32, 64, 1)
    rows = [
        ("genosparse", genosparse.__version__),
        ("python", machine["python"]),
        *((package, _version_of(package)) for package in _PACKAGES),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads in use"),
        ("features", ", ".join(processor_features()) or "none of those that the kernels ask for"),
        (
            "native kernels",
            f"none: cpu-native {why_not}" if why_not else ", ".join(native.available_instruction_sets()),
        ),
        ("native FASTA", fasta_lines.instruction_set() or f"none, numpy serves: {fasta_lines.why_not()}"),
    ]
    devices = [torch.device("cpu")]
    for index in range(torch.cuda.device_count()):
        devices.append(torch.device("cuda", index))
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.append(
            (f"gpu {index}", f"{properties.name}, compute capability {properties.major}.{properties.minor}, {memory}")
        )
    if len(devices) == 1:
        rows.append(("gpu", "none that torch sees"))
    for device in devices:
        for dtype in _DTYPES:
            backend = default_backend(dtype, device)
            if backend == "cpu-native":
                backend += f" ({native.instruction_set_for(dtype)})"
            rows.append((f"{str(dtype).removeprefix('torch.')} on {device}", backend))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
