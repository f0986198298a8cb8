"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["available_bytes", "describe_machine", "processor_features"]

_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The processor, the GPU where the device is one, threads and versions, as JSON values."""
    on_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_cuda else None
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None if properties is None else properties.name,
        "gpu_arch": None if properties is None else properties.major * 10 + properties.minor,
        "cuda": torch.version.cuda if on_cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version_of("triton"),
    }


def available_bytes(device: torch.device) -> int | None:
    """Memory that a call may still take without the machine running out; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = []
    lines = _read("/proc/meminfo").splitlines()
    left += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    left += [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min(left, default=None)


def processor_features() -> list[str]:
    """What the processor has of the instruction sets that matter to attention."""
    lines = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")]
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    return [name for name in _FEATURES if name in flags]


def _processor_name() -> str:
    names = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
