"""Turns, limits and failures, under a clock that the calls themselves move."""

import math
import time

import pytest
import torch

from genosparse.benchmarking.timers import Call, Timing, TooSlowError, time_in_turns, timer_for


class Bench:
    """Calls that take the given seconds, one value per run (the last again and again), and their clock."""

    def __init__(self, **seconds: list[float]) -> None:
        self.log: list[str] = []
        self.calls: dict[str, Call] = {name: lambda name=name: self.log.append(name) for name in seconds}  # type: ignore[misc]
        self.seconds = seconds

    def timer(self, call: Call) -> float:
        call()
        name = self.log[-1]
        values = self.seconds[name]
        return values[min(self.log.count(name), len(values)) - 1]


def test_calls_take_turns_after_a_warm_up_that_does_not_count() -> None:
    bench = Bench(a=[9.0, 1.0, 3.0, 2.0], b=[9.0, 5.0])
    results = time_in_turns(bench.calls, bench.timer, repeats=3, max_seconds={})
    assert bench.log == ["a", "b"] * 4
    assert results == {"a": Timing(2.0, 1.0, 3.0, 3), "b": Timing(5.0, 5.0, 5.0, 3)}


def test_limits_are_of_each_call() -> None:
    bench = Bench(slow=[3.0], quick=[0.1], stopped=[11.0], warm=[9.0])
    limits = dict.fromkeys(bench.calls, 10.0)
    results = time_in_turns(bench.calls, bench.timer, repeats=5, max_seconds=limits)
    counts = {name: result.repeats for name, result in results.items() if isinstance(result, Timing)}
    assert counts == {"slow": 3, "quick": 5, "warm": 1}  # one run at least
    assert isinstance(results["stopped"], TooSlowError)
    assert bench.log.count("stopped") == 1
    assert list(results) == list(bench.calls)


def test_expected_failures_end_a_call_and_not_the_others() -> None:
    def fail_at(number: int) -> Call:
        runs = []

        def call() -> None:
            runs.append(1)
            if len(runs) == number:
                raise KeyError(number)

        return call

    calls = {"first": fail_at(1), "third": fail_at(3), "never": fail_at(0)}

    def timer(call: Call) -> float:
        call()
        return 1.0

    results = time_in_turns(calls, timer, repeats=4, max_seconds={}, expected=(KeyError,))
    assert [type(result) for result in results.values()] == [KeyError, KeyError, Timing]
    assert results["never"] == Timing(1.0, 1.0, 1.0, 4)
    with pytest.raises(KeyError):
        time_in_turns({"first": fail_at(1)}, timer, repeats=1, max_seconds={})


def test_the_clock_of_the_cpu() -> None:
    assert 0.02 <= timer_for(torch.device("cpu"))(lambda: time.sleep(0.02)) < 5


@pytest.mark.gpu
def test_the_clock_of_a_gpu() -> None:
    square = torch.randn(4096, 4096, device="cuda")
    seconds = timer_for(torch.device("cuda"))(lambda: square @ square)
    assert 0 < seconds < 5
    assert math.isfinite(seconds)
