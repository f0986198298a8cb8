"""A measurement in a process of its own, which has its own peak of memory and may run out of it.

    python -m genosparse.benchmarking.isolated < task.json

The task is a function's name and its arguments as JSON; what it returns goes to standard output as JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["OutOfMemoryError", "TimedOutError", "peak_bytes", "run_isolated"]

_OUT_OF_MEMORY = 77  # exit status


class OutOfMemoryError(Exception):
    """The task wanted more memory than it may have."""


class TimedOutError(Exception):
    """The task took longer than it may."""


def run_isolated(
    function: str, arguments: dict[str, Any], *, max_bytes: int | None = None, max_seconds: float | None = None
) -> Any:
    """Call a function of ``genosparse.benchmarking`` in a new process, with as many threads as torch has here.

    Args:
        function: ``module:name``, within ``genosparse.benchmarking``.
        arguments: Its keyword arguments, as JSON values.
        max_bytes: Memory that the process may write to.
        max_seconds: Longest time that it may take.

    Returns:
        What the function returned, as JSON values.

    Raises:
        OutOfMemoryError: It wanted more memory.
        TimedOutError: It took longer.
        RuntimeError: It failed for another reason, whose last line this has.
    """
    task = {
        "function": function, "arguments": arguments, "max_bytes": max_bytes, "threads": torch.get_num_threads(),
        "parent": os.getpid(),
    }  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603  (this module, and a task of ours on its standard input)
            [sys.executable, "-m", __name__],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=max_seconds,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "TRANSFORMERS_VERBOSITY": "error"},
        )
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"took longer than {max_seconds:.0f} s") from None
    # The kernel, too, ends what takes too much.
    if done.returncode in (_OUT_OF_MEMORY, -9):
        raise OutOfMemoryError("out of memory")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int | None:
    """The most memory that this process has held at once; None where the system does not tell."""
    # Not getrusage, which counts the process that this one was forked from.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _end_with(parent: int) -> None:
    """Have Linux end this process with the one that started it, which may be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit(1)


def _main() -> int:
    task = json.load(sys.stdin)
    _end_with(task["parent"])
    torch.set_num_threads(task["threads"])
    if task["max_bytes"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (task["max_bytes"], task["max_bytes"]))
    module, name = task["function"].split(":")
    function = getattr(importlib.import_module(f"genosparse.benchmarking.{module}"), name)
    try:
        result = function(**task["arguments"])
    except MemoryError:
        return _OUT_OF_MEMORY
    except RuntimeError as error:
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            return _OUT_OF_MEMORY
        raise
    print(json.dumps(result))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(_main())
