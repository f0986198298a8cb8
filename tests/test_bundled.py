"""Encoders that come with the package: found by name in its own data, offline, and shipped in wheel and sdist."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import genosparse as gs
from genosparse import bundled
from genosparse.errors import GenosparseWarning, InputFileNotFoundError

ROOT = Path(gs.__file__).parent
CHECKOUT = ROOT.parent


def save(folder: Path, width: int) -> gs.Encoder:
    torch.manual_seed(width)
    pattern = gs.SparsePattern(window=4, stride=8, num_global=1)
    encoder = gs.Encoder(
        gs.EncoderConfig(
            d_model=width, num_layers=1, num_heads=2, patterns=(pattern,), max_length=256, trained_context=64
        )
    )
    encoder.save_pretrained(folder, card="# a card\n", dtype=torch.bfloat16)
    return gs.Encoder.from_pretrained(folder)


def copy_package(folder: Path, copy: Callable[[str, str], object]) -> None:
    """The package as a wheel lays it out."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT, folder / "genosparse", copy_function=copy, ignore=ignore)
    for name in ("pipelines", "conf"):
        source = next(path for path in (ROOT / name, CHECKOUT / name) if path.is_dir())
        shutil.copytree(source, folder / "genosparse" / name, copy_function=copy, ignore=ignore, dirs_exist_ok=True)


SCRIPT = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
import genosparse as gs
from genosparse import bundled, cli

found = {"file": gs.__file__, "names": bundled.names(), "encoder": gs.Encoder.from_pretrained("small").fingerprint()}
try:
    gs.Encoder.from_pretrained("smal")
except gs.GenosparseError as error:
    found["error"] = str(error)
shared = ["genome=ref.fa", "threads=1"]
found["status"] = [
    cli.main(["embed", "model=small", "intervals=r.bed", "output=e.parquet", *shared]),
    cli.main(["variant-effect", "model=small", "variants=v.vcf", "output=v.tsv", "context=64", *shared]),
    cli.main(["pretrain", "init=small", "data.genome=ref.fa", "trainer.max_steps=0", "run_dir=further", "threads=1"]),
]
found["embedded"] = pq.read_metadata("e.parquet").metadata[b"genosparse.model"].decode()
found["began_from"] = gs.Encoder.from_pretrained("further/model").fingerprint()
print(json.dumps(found))
"""


def test_names_serve_python_and_pipelines(tmp_path: Path) -> None:
    copy_package(tmp_path / "site", os.symlink)
    expected = save(tmp_path / "site" / "genosparse" / "bundled" / "small", 16).fingerprint()
    save(tmp_path / "site" / "genosparse" / "bundled" / "other", 8)
    (tmp_path / "ref.fa").write_text(f">one\n{'ACGTTGCA' * 50}\n")
    (tmp_path / "r.bed").write_text("one\t10\t90\n")
    (tmp_path / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t97\t.\tA\tC\t.\t.\t.\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["file"] == str(tmp_path / "site" / "genosparse" / "__init__.py")
    assert set(found["names"]) >= {"other", "small"}
    assert found["error"].startswith("no model folder smal, and no bundled encoder of that name; bundled are ")
    assert "small" in found["error"].split("bundled are ")[1].split(", ")
    assert found["status"] == [0, 0, 0]
    assert {found["encoder"], found["embedded"], found["began_from"]} == {expected}
    assert "scored" in (tmp_path / "v.tsv").read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["variant-effect-small"]


def test_unknown_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFileNotFoundError, match="no model folder nonsense, and no bundled encoder") as error:
        gs.Encoder.from_pretrained("nonsense")
    known = "bundled are" if bundled.names() else "this installation of genosparse bundles none"
    assert known in str(error.value)
    for path in ("./nonsense", "runs/nonsense"):
        with pytest.raises(InputFileNotFoundError, match=r"expected a folder with config\.json") as error:
            gs.Encoder.from_pretrained(path)
        assert "bundled" not in str(error.value)
    Path("file").touch()
    with pytest.raises(InputFileNotFoundError, match="expected a folder"):
        bundled.find("file")


def test_a_folder_of_the_name_goes_first_and_says_so(tmp_path: Path) -> None:
    """In a process whose package bundles the name."""
    copy_package(tmp_path / "site", os.symlink)
    (tmp_path / "site" / "genosparse" / "bundled" / "small").mkdir()
    (tmp_path / "site" / "genosparse" / "bundled" / "small" / "config.json").touch()
    (tmp_path / "small").mkdir()
    script = (
        "import warnings; from genosparse import bundled\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    found = [bundled.find(path) for path in ('small', './small')]\n"
        "print(*found, *[each.message for each in seen], sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    first, second, *told = done.stdout.splitlines()
    assert (first, second) == ("small", "small")
    (warning,) = told
    assert warning.startswith("'small' is taken for the folder of that name here, and not for the bundled encoder")
    assert issubclass(GenosparseWarning, UserWarning)


@pytest.mark.parametrize("name", bundled.names())
def test_bundled_encoders_are_whole_and_small(name: str) -> None:
    encoder = gs.Encoder.from_pretrained(name)
    folder = bundled.find(name)
    assert encoder.config.trained_context
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").exists(), reason="not a checkout")
def test_wheel_and_sdist_carry_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "runs", ".*_cache", "*.so"
    )
    shutil.copytree(CHECKOUT, source, ignore=ignore)
    expected = save(source / "genosparse" / "bundled" / "small", 16).fingerprint()
    script = (
        "import sys; from setuptools import build_meta\n"
        "print(build_meta.build_sdist('out')); print(build_meta.build_wheel('out'))"
    )
    (source / "out").mkdir()
    subprocess.run([sys.executable, "-c", script], cwd=source, check=True, capture_output=True, timeout=600)
    files = {f"genosparse/bundled/small/{name}" for name in ("config.json", "model.safetensors", "README.md")}
    (wheel,), (sdist,) = (source / "out").glob("*.whl"), (source / "out").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())
        archive.extractall(tmp_path / "site")  # noqa: S202  (of our own making)
    with tarfile.open(sdist) as archive:
        assert files <= {name.partition("/")[2] for name in archive.getnames()}
    script = "import genosparse as gs; print(gs.__file__, gs.Encoder.from_pretrained('small').fingerprint())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "site" / "genosparse" / "__init__.py"), expected]
