"""The metrics table, and wandb by its own offline files."""

from pathlib import Path

import pytest
from wandb_files import wandb_file

from genosparse.errors import ConfigError, OutputError
from genosparse.loggers import CsvTable, open_logger


def test_table_is_cut_back_to_the_last_step(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    table = CsvTable(file, ["step", "loss"])
    for step in (10, 20, 30):
        table.append({"step": step, "loss": step / 100})
    with file.open("a") as handle:
        handle.write("40,0.")  # a row that a crash cut in two
    table = CsvTable(file, ["step", "loss"], last_step=20)
    table.append({"step": 30})
    assert file.read_text() == "step,loss\n10,0.1\n20,0.2\n30,\n"


def test_table_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    CsvTable(tmp_path / "metrics.csv", ["step"]).append({"step": 5})
    CsvTable(tmp_path / "metrics.csv", ["step"])
    assert (tmp_path / "metrics.csv").read_text() == "step\n"


def test_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    CsvTable(tmp_path / "metrics.csv", ["step", "loss"]).append({"step": 1, "loss": 2})
    with pytest.raises(OutputError, match="other columns"):
        CsvTable(tmp_path / "metrics.csv", ["step", "error"], last_step=1)


def test_unknown_logger_lists_the_known(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="logger=tensorboard is unknown; choose one of csv, wandb"),
        open_logger("tensorboard", run_dir=tmp_path, name="x", config={}),
    ):
        raise AssertionError


def test_wandb_offline_keeps_the_metrics_in_its_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_logger("wandb", run_dir=tmp_path, name="trial", config={"seed": 5}) as logger:
        logger.log(10, {"loss_of_this_test": 1.25})
        logger.summarize({"summary_of_this_test": 1.5})
    file = wandb_file(tmp_path, "loss_of_this_test", "summary_of_this_test", "trial")
    run_id = (tmp_path / "wandb-id").read_text().strip()
    assert run_id in file.name
    with open_logger("wandb", run_dir=tmp_path, name="trial", config={"seed": 5}):
        assert (tmp_path / "wandb-id").read_text().strip() == run_id
