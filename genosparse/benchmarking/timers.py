"""Clocks, and calls timed by turns so that a machine that is busy for a while disturbs all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Call", "Timer", "Timing", "TooSlowError", "time_in_turns", "timer_for"]

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Runs a call once and returns the seconds it took."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of several runs of one call."""

    median: float
    least: float
    most: float
    repeats: int


class TooSlowError(Exception):
    """A call took longer to warm up than it may take altogether.

    Args:
        seconds: How long.
        part: How much of a run that was, where the call stopped itself.
    """

    def __init__(self, seconds: float, part: str = "its first run") -> None:
        super().__init__(f"{part} took {seconds:.3g} s")
        self.seconds = seconds


def timer_for(device: torch.device) -> Timer:
    """The clock of a device: ``perf_counter`` on the CPU, events on CUDA, with the L2 cache flushed before each run."""
    if device.type != "cuda":
        return _cpu_seconds
    # As large as twice the cache, so that nothing of the run before is left in it.
    flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)

    def cuda_seconds(call: Call) -> float:
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return cuda_seconds


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_in_turns(
    calls: Mapping[str, Call],
    timer: Timer,
    *,
    repeats: int,
    max_seconds: Mapping[str, float],
    expected: tuple[type[Exception], ...] = (),
) -> dict[str, Timing | Exception]:
    """Warm each call up with a run that does not count, then run them by turns.

    Args:
        calls: By name.
        timer: Their clock.
        repeats: Runs of each; fewer, but one at least, where more would pass ``max_seconds``.
        max_seconds: By name, seconds that the counted runs of a call may take together. A call whose warm-up takes
            longer is not run again. A call that is not named has no limit.
        expected: Exceptions of a call that end its turns and not the measurement.

    Returns:
        By name, the timing; or the exception that the call raised, ``TooSlowError`` where it was stopped.
    """
    results: dict[str, Timing | Exception] = {}
    seconds: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            took = timer(call)
            if took > max_seconds.get(name, math.inf) and torch.cuda.is_available():
                took = timer(call)  # the first run on a GPU compiles
        except expected as error:
            results[name] = _bare(error)
            continue
        if took > max_seconds.get(name, math.inf):
            results[name] = TooSlowError(took)
        else:
            seconds[name] = []
    for _ in range(repeats):
        for name in list(seconds):
            spent = seconds[name]
            if spent and sum(spent) + max(spent) > max_seconds.get(name, math.inf):
                continue
            try:
                spent.append(timer(calls[name]))
            except expected as error:
                results[name] = _bare(error)
                del seconds[name]
    for name, spent in seconds.items():
        results[name] = Timing(statistics.median(spent), min(spent), max(spent), len(spent))
    return {name: results[name] for name in calls}


def _bare(error: Exception) -> Exception:
    """An exception without its frames, which would hold on to the tensors of the call."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
