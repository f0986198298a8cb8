"""The package as a whole: what importing it costs, what its names are, who imports whom."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import genosparse as gs

ROOT = Path(gs.__file__).parent
HEAVY = ("accelerate", "hydra", "matplotlib", "pyarrow", "rich", "torch", "triton", "wandb")


def modules_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_is_light() -> None:
    assert not modules_after("import genosparse").intersection(HEAVY)
    # torch brings some of these itself; the API's own modules add none of the optional ones.
    assert not modules_after("import genosparse; genosparse.Encoder, genosparse.Genome").intersection(
        {"accelerate", "hydra", "matplotlib", "rich", "wandb"}
    )


def test_every_public_name_is_there() -> None:
    for name in gs.__all__:
        assert getattr(gs, name) is not None
    assert set(gs.__all__) <= set(dir(gs))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = gs.nonsense  # type: ignore[attr-defined]  # wrong on purpose


def test_errors_are_of_one_family() -> None:
    from genosparse import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, gs.GenosparseError | UserWarning), name
        assert kind.__doc__


def test_nothing_in_the_package_imports_the_pipelines() -> None:
    """import-linter sees the folder `pipelines` under its own name alone; the installed name is looked for here."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("genosparse.pipelines") for name in names), path


@pytest.mark.skipif(not (ROOT.parent / "pyproject.toml").exists(), reason="not a checkout")
def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [*ROOT.rglob("__init__.py"), *(ROOT.parent / name / "__init__.py" for name in ("conf", "pipelines"))]
    names = [".".join(folder.parent.relative_to(ROOT.parent).parts) for folder in folders]
    moved = {folder: package for package, folder in settings["package-dir"].items()}
    assert sorted(settings["packages"]) == sorted(moved.get(name, name) for name in names)
