"""``genosparse benchmark`` as a user runs it: results, resuming after a kill, mistakes that leave nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from wandb_files import wandb_file

from genosparse.benchmarking.rivals import OURS
from genosparse.cli import main
from genosparse.errors import ConfigError
from genosparse.pipelines import app

SMALL = [
    "suite=attention", "lengths=[256,512]", "dtypes=[float32]", "modes=[forward]", "repeats=2", "heads=2", "kv_heads=1",
    "head_dim=16", "pattern.window=32", "pattern.stride=64", "device=cpu", "threads=1",
]  # fmt: skip
RUN_DIR = Path("runs/benchmark-attention")
PRODUCTS = ("torch.mm", "oneDNN float32")
BACKENDS = [rival.name for rival in OURS["cpu"]]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module", autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def benchmark(*arguments: str) -> int:
    return main(["benchmark", *arguments])


def results(run_dir: Path = RUN_DIR) -> dict[str, Any]:
    contents = json.loads((run_dir / "results.json").read_text())
    assert isinstance(contents, dict)
    return contents


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_results_table_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar where there is no terminal
    assert files() == [f"{RUN_DIR}/{name}" for name in ("attention.png", "results.json", "run.json")]
    assert (RUN_DIR / "attention.png").read_bytes().startswith(b"\x89PNG")
    contents = results()
    assert list(contents) == ["format", "suite", "genosparse", "machine", "settings", "rows"]
    assert (contents["format"], contents["suite"]) == ("genosparse-benchmark-1", "attention")
    machine = contents["machine"]
    assert machine["processor"]
    assert (machine["threads"], machine["torch"], machine["gpu"]) == (1, torch.__version__, None)
    assert contents["settings"]["pattern"]["window"] == 32
    names = [*PRODUCTS, *BACKENDS, "sdpa (dense)", "flex", "window only"]
    rows = contents["rows"]
    assert [(row["implementation"], row["length"]) for row in rows] == [(name, n) for n in (256, 512) for name in names]
    assert {row["status"] for row in rows} == {"measured"}
    assert len({tuple(row) for row in rows}) == 1  # the same keys in the same order
    # At 512 positions: 65 keys of the window, less 2 * (1 + ... + 32) / 2 at each end, and 8 columns not in the window.
    window = 65 * 512 - 32 * 33
    columns = sum(abs(i - j) > 32 for i in range(512) for j in range(0, 512, 64))
    pairs = 2 * (window + columns)
    assert [row["pairs"] for row in rows[len(names) :]] == [None, None, *[pairs] * (len(BACKENDS) + 2), 2 * window]
    for row in rows:
        assert re.search(rf"{row['length']} +{re.escape(row['implementation'])} +", captured.out)
    assert "forward, float32: batch 1, 2 heads (1 KV), head size 16; window 32, stride 64" in captured.out
    assert os.getcwd() not in (RUN_DIR / "results.json").read_text()


def test_run_that_is_there_is_shown_and_another_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, "lengths=[256]", "rivals=[]"]
    assert benchmark(*small) == 0
    before = (RUN_DIR / "results.json").read_bytes()
    first = capsys.readouterr().out
    assert benchmark(*small) == 0
    again = capsys.readouterr().out
    assert "there already" in again
    assert first.split("\n\n")[2] == again.split("\n\n")[1]  # the same table
    assert benchmark(*small, "head_dim=32") == 2
    assert "settings.head_dim was 16, now 32" in capsys.readouterr().err
    assert (RUN_DIR / "results.json").read_bytes() == before
    assert benchmark(*small, "head_dim=32", "overwrite=true", "name=other", f"run_dir={RUN_DIR}") == 0
    assert results()["settings"]["head_dim"] == 32


def test_killed_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM says so, SIGKILL cannot; what was finished is not measured again."""
    arguments = [*SMALL, "rivals=[sdpa]", "lengths=[256,384,512]", "repeats=2"]
    journal = RUN_DIR / "finished.jsonl"
    for number, stop in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        command = [sys.executable, "-m", "genosparse.cli", "benchmark", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if journal.exists() and len(journal.read_text().splitlines()) >= number:
                break
            time.sleep(0.01)
        process.send_signal(stop)
        _, error = process.communicate(timeout=60)
        if stop == signal.SIGTERM:
            assert error == "genosparse benchmark: stopped; the same command goes on from what is finished\n"
            assert process.returncode == 128 + signal.SIGTERM
        else:
            assert process.returncode == -signal.SIGKILL
    finished = [row for line in journal.read_text().splitlines() for row in json.loads(line)["rows"]]
    per_length = len([*PRODUCTS, *BACKENDS, "sdpa (dense)"])
    assert 2 * per_length <= len(finished) < 3 * per_length
    with journal.open("a") as file:
        file.write('{"unit": "forw')  # a line that the kill cut in two
    assert benchmark(*arguments) == 0
    rows = results()["rows"]
    assert len(rows) == 3 * per_length
    assert rows[: len(finished)] == finished
    assert not journal.exists()


def test_what_takes_too_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(*SMALL, "rivals=[window]", "max_seconds=0.000001") == 0
    rows = [(row["implementation"], row["status"]) for row in results()["rows"]]
    products, window = [(name, "measured") for name in PRODUCTS], ("window only", "skipped")
    assert rows == [
        *(*products, *((name, "stopped") for name in BACKENDS), window),
        *(*products, *((name, "skipped") for name in BACKENDS), window),
    ]
    output = capsys.readouterr().out
    assert "stopped: its first run took" in output
    assert "skipped: stopped at 256" in output
    assert "over max_seconds=1e-06" in output
    assert (RUN_DIR / "attention.png").exists()  # of nothing


def test_wandb_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert benchmark(*SMALL, "lengths=[256]", "rivals=[]", "logger=wandb") == 0
    wandb_file(RUN_DIR, "cpu-aten", "tflops")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (
            ["suite=speed"],
            "suite=speed is unknown; choose one of attention, encoder, training, variant-effect, readers, kernels",
        ),
        ([], "missing suite="),
        (["suite=attention", "lengths=[]"], "lengths=[]"),
        (["suite=attention", "lengths=[256,0]"], "lengths[1]=0"),
        (["suite=attention", "lengths=-4"], "lengths=-4"),
        (["suite=attention", "lengths=[many]"], "lengths[0]=many"),
        (["suite=attention", "heads=3", "kv_heads=2"], "heads=3"),
        (["suite=attention", "kv_heads=0"], "kv_heads=0"),
        (["suite=attention", "dtypes=[float8]"], "float8 is unknown"),
        (["suite=attention", "modes=[]"], "modes"),
        (["suite=attention", "rivals=[natten]"], "natten is unknown"),
        (["suite=attention", "pattern.window=-1"], "window=-1"),
        (["suite=attention", "pattern.windw=1"], "did you mean pattern.window?"),
        (["suite=attention", "pattern.window=null", "pattern.stride=null"], "every rule off"),
        (["suite=attention", "repeats=0"], "repeats=0"),
        (["suite=attention", "device=cuda"], "device=cuda"),
        (["suite=attention", "device=cuda:7"], "device=cuda:7"),
        (["suite=attention", "device=tpu"], "device=tpu is unknown"),
        (["suite=attention", "device=cpu", "tune=true"], "tune=true"),
        (["suite=attention", "precision=bfloat16"], "dtypes="),
        (["suite=attention", "archs=[90]"], "suite=attention does not use archs="),
        (["suite=attention", "logger=tensorboard"], "logger=tensorboard"),
        (["suite=kernels", "lengths=[256]"], "suite=kernels does not use lengths="),
        (["suite=kernels", "pattern.window=3"], "suite=kernels does not use pattern="),
        (["suite=kernels", "archs=[70]"], "70 is unknown"),
        (["suite=kernels", "head_dims=[20]"], "20 is unknown"),
        (["suite=encoder", "kv_heads=2"], "suite=encoder does not use kv_heads="),
        (["suite=encoder", "device=cpu", "rivals=[sdpa]"], "sdpa is unknown; choose from genosparse, longformer"),
        (["suite=encoder", "device=cpu", "memory_limit=0.1"], "memory_limit=0.1"),
        (["suite=training", "sites=3"], "suite=training does not use sites="),
        (
            ["suite=variant-effect", "device=cpu", "model=nowhere", "width=8"],
            "model= brings its own shape; leave out width=",
        ),
        (["suite=variant-effect", "device=cpu", "model=nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert benchmark(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"genosparse benchmark: error: [^\n]+\n", captured.err), captured.err
    assert words in captured.err
    assert list(Path().iterdir()) == []


def test_kernels_under_the_interpreter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert benchmark("suite=kernels") == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_kernels_are_compiled_and_listed() -> None:
    command = [sys.executable, "-m", "genosparse.cli", "benchmark", "suite=kernels", "archs=[90]", "head_dims=[32]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    rows = results(Path("runs/benchmark-kernels"))["rows"]
    assert {row["kernel"] for row in rows} >= {"forward", "backward_dq", "backward_dkv_window", "backward_dkv_columns"}
    for row in rows:
        assert 0 < row["registers"] <= 255
        assert 0 < row["seconds_131072"] < row["seconds_1048576"] < 0.1
        if row["kernel"] != "backward_prepare":
            assert row["instructions_matrix"] > 0
        assert re.search(rf"{row['kernel']} +90 +32 ", done.stdout)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("genosparse benchmark:")
    assert "max_seconds: 60" in output
    assert main(["--help"]) == 0
    assert "benchmark" in capsys.readouterr().out


def test_importing_genosparse_does_not_import_benchmarks() -> None:
    script = "import sys, genosparse; sys.exit(any(name.startswith('genosparse.bench') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def config_with(device: str) -> DictConfig:
    return OmegaConf.create({"seed": 0, "precision": "auto", "device": device, "threads": None})


def test_auto_is_cuda_where_a_pipeline_prefers_it() -> None:
    assert app.setup(config_with("cpu"), prefer_cuda=True).device == torch.device("cpu")
    here = torch.cuda.is_available()
    assert app.setup(config_with("auto"), prefer_cuda=True).device.type == ("cuda" if here else "cpu")
    for device in ("cuda:4096", "cuda:", "cuda:x", "gpu", *([] if here else ["cuda", "cuda:0"])):
        with pytest.raises(ConfigError, match=f"device={device}"):
            app.setup(config_with(device), prefer_cuda=True)


def test_auto_is_the_cpu_elsewhere() -> None:
    assert app.setup(config_with("auto")).device == torch.device("cpu")


@pytest.mark.gpu
def test_attention_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in SMALL if not argument.startswith(("device=", "modes="))]
    assert benchmark(*arguments, "device=cuda", "lengths=[4096]") == 0
    rows = {(row["implementation"], row["mode"]): row for row in results()["rows"]}
    for mode in ("forward", "training"):
        assert rows["triton", mode]["status"] == "measured"
        assert rows["triton", mode]["pairs"] == rows["sdpa (dense)", mode]["pairs"]
    assert "triton" in capsys.readouterr().out


@pytest.mark.parametrize(
    "suite,settings,pictures",
    [
        ("encoder", ["layers=1", "rivals=[]"], ["encoder-memory.png", "encoder.png"]),
        ("training", ["layers=1", "dtypes=[float32]", "kv_heads=1"], ["training-memory.png", "training.png"]),
        ("variant-effect", ["layers=1", "sites=4", "kv_heads=1"], ["variant-effect.png"]),
    ],
)
def test_suites_of_encoders(
    suite: str, settings: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["lengths=[128]", "width=16", "heads=2", "repeats=1", "pattern.window=8", "pattern.stride=32", "threads=1"]
    assert benchmark(f"suite={suite}", "device=cpu", *shape, *settings) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    run_dir = Path(f"runs/benchmark-{suite}")
    assert files() == [f"{run_dir}/{name}" for name in sorted([*pictures, "results.json", "run.json"])]
    rows = results(run_dir)["rows"]
    assert {row["status"] for row in rows} == {"measured"}
    assert len(rows) == (1 if suite == "encoder" else 2)
    assert "genosparse" in captured.out or "checkpointing" in captured.out
