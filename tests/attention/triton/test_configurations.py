"""The table of configurations: complete, found by generation, replaceable, and refused when it is none."""

import json
from pathlib import Path

import pytest
import torch

from genosparse.attention.triton import configurations
from genosparse.attention.triton.configurations import (
    KERNELS,
    Configuration,
    Key,
    candidates,
    find_configuration,
    load_table,
    override,
    padded_head_dim,
    write_table,
)
from genosparse.errors import PatternError

TABLE = Path(configurations.__file__).with_name("configurations.json")


def test_table_is_complete_for_three_generations() -> None:
    table = load_table(TABLE)
    assert {key.arch for key in table} == {80, 90, 100}
    assert len(table) == len(KERNELS) * 3 * 4 * 2


def test_generation_is_the_newest_that_is_not_newer() -> None:
    table = load_table(TABLE)
    for asked, expected in ((80, 80), (86, 80), (89, 80), (90, 90), (100, 100), (103, 100), (120, 80)):
        found = find_configuration("forward", asked, 100, torch.bfloat16)
        assert found == table[Key("forward", expected, 128, 16)]


def test_old_gpus_are_refused() -> None:
    with pytest.raises(PatternError, match=r"8\.0 or later and this one has 7\.5"):
        find_configuration("forward", 75, 64, torch.float16)


def test_head_sizes_are_padded_to_powers_of_two() -> None:
    assert [padded_head_dim(size) for size in (1, 16, 17, 48, 64, 80, 128)] == [16, 16, 32, 64, 64, 128, 128]


def test_variable_names_another_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_table(TABLE)
    changed = Configuration(32, 16, 2, 1, max_registers=100)
    table[Key("forward", 80, 64, 16)] = changed
    write_table(tmp_path / "mine.json", table)
    assert load_table(tmp_path / "mine.json") == table
    monkeypatch.setenv("GENOSPARSE_CONFIGURATIONS", str(tmp_path / "mine.json"))
    assert find_configuration("forward", 80, 64, torch.float16) == changed


def test_override_ends_with_its_block() -> None:
    before = find_configuration("forward", 80, 64, torch.float16)
    with override({"forward": Configuration(16, 16, 1, 1)}):
        assert find_configuration("forward", 80, 64, torch.float16) == Configuration(16, 16, 1, 1)
    assert find_configuration("forward", 80, 64, torch.float16) == before


def test_shipped_table_stands_as_it_would_be_written(tmp_path: Path) -> None:
    write_table(tmp_path / "again.json", load_table(TABLE))
    assert (tmp_path / "again.json").read_text() == TABLE.read_text()


def test_candidates_are_many_and_valid() -> None:
    for arch in (80, 90, 100):
        for head_dim in (16, 32, 64, 128):
            for bits in (16, 32):
                assert len(candidates(Key("forward", arch, head_dim, bits))) >= 6


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no table"),
        ("[]", "no table"),
        ('{"format": 2, "configurations": []}', "format 2"),
        ('{"format": 1, "configurations": []}', "holds no configuration"),
        ('{"format": 1, "configurations": [{"kernel": "forward"}]}', "no table"),
    ],
)
def test_what_is_no_table_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(PatternError, match=message) as error:
        load_table(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def test_table_that_lacks_an_entry_says_which(tmp_path: Path) -> None:
    contents = json.loads(TABLE.read_text())
    gone = contents["configurations"].pop()
    (tmp_path / "short.json").write_text(json.dumps(contents))
    with pytest.raises(PatternError, match=f"lacks {gone['kernel']} at sm_{gone['arch']}"):
        load_table(tmp_path / "short.json")


@pytest.mark.parametrize("values", [(48, 64, 4, 2), (64, 8, 4, 2), (64, 64, 3, 2), (64, 64, 4, 0), (64, 64, 4, 2, 8)])
def test_impossible_configurations_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(PatternError, match="expected"):
        Configuration(*values)
