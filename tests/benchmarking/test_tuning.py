"""The choice among measured candidates; the measuring itself needs a GPU."""

from pathlib import Path

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.attention.triton.configurations import (
    KERNELS,
    Configuration,
    Key,
    candidates,
    find_configuration,
    load_table,
    write_table,
)
from genosparse.benchmarking.attention import AttentionSuite
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.timers import Timing
from genosparse.benchmarking.tuning import TABLE, TuningSuite, choose, completed_table, differs, tuning_row
from genosparse.errors import ConfigError

KEY = Key("forward", 90, 64, 16)
SMALL, MIDDLE, LARGE = (Configuration(64, size, 4, 2) for size in (32, 64, 128))


def timed(key: Key, configuration: Configuration, seconds: float) -> Row:
    return tuning_row(key, configuration, Timing(seconds, seconds / 2, 2 * seconds, 5))


def test_the_fastest_that_ran_is_chosen() -> None:
    other = Key("backward_dq", 90, 128, 32)
    nowhere = Key("backward_dq", 90, 16, 32)
    rows = [
        timed(KEY, LARGE, 3.0),
        timed(KEY, SMALL, 2.0),
        timed(KEY, MIDDLE, 2.0),
        tuning_row(KEY, Configuration(128, 128, 8, 4), RuntimeError("out of resource:\n shared memory")),
        timed(other, LARGE, 9.0),
        tuning_row(nowhere, SMALL, RuntimeError("no")),
    ]
    assert choose(rows) == {KEY: SMALL, other: LARGE}
    assert rows[3]["note"] == "out of resource: shared memory"
    assert (rows[3]["seconds"], rows[3]["repeats"]) == (None, None)
    assert choose([]) == {}
    capped = Configuration(64, 64, 4, 2, max_registers=168)
    assert choose([timed(KEY, capped, 1.0)]) == {KEY: capped}


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_table_is_complete_for_a_gpu_of_any_generation(
    arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Key("forward", arch, 64, 16)
    tuned = Configuration(256, 16, 2, 7)  # which is in no table
    before = {kernel: find_configuration(kernel, arch, 64, torch.bfloat16) for kernel in KERNELS}
    assert tuned not in before.values()
    path = tmp_path / TABLE
    write_table(path, completed_table(arch, {key: tuned}))
    assert {known.arch for known in load_table(path)} >= {80, 90, 100, arch}
    monkeypatch.setenv("GENOSPARSE_CONFIGURATIONS", str(path))
    assert find_configuration("forward", arch, 64, torch.bfloat16) == tuned
    assert find_configuration("forward", arch, 64, torch.float32) != tuned
    for kernel in KERNELS[1:]:
        assert find_configuration(kernel, arch, 64, torch.bfloat16) == before[kernel]


def test_wrong_results_are_told_from_rounding() -> None:
    expected = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert not differs(expected.bfloat16(), expected, 16)
    assert not differs(expected * (1 + 1e-6), expected, 32)
    assert differs(expected * 1.1, expected, 16)
    assert differs(expected.bfloat16(), expected, 32)
    assert differs(torch.where(expected > 2, torch.nan, expected), expected, 16)
    assert not differs(torch.zeros(3), torch.zeros(3), 32)


def test_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="device=cuda"):
        TuningSuite(AttentionSuite(SparsePattern(window=4), (64,)))


@pytest.mark.gpu
def test_tuning_on_a_gpu(tmp_path: Path) -> None:
    pattern = SparsePattern(window=128, stride=64)
    attention = AttentionSuite(pattern, (4096,), repeats=2, device=torch.device("cuda", 0))
    suite = TuningSuite(attention)
    units = {unit.name: unit for unit in suite.units()}
    assert len(units) == len(KERNELS) * 8
    rows = [row for name in ("forward 16 64", "backward_dkv_columns 16 64") for row in suite.measure(units[name], [])]
    major, minor = torch.cuda.get_device_capability()
    key = Key("forward", 10 * major + minor, 64, 16)
    assert {(row["block_m"], row["block_n"]) for row in rows} >= {
        (configuration.block_m, configuration.block_n) for configuration in candidates(key)
    }
    chosen = choose(rows)
    assert chosen[key].block_m >= 16
    assert [path.name for path in suite.write(tmp_path, rows)] == [TABLE]
    assert load_table(tmp_path / TABLE)[key] == chosen[key]
    assert "forward" in suite.table(rows)
