"""Fixtures for all tests."""

import os
import signal
from pathlib import Path

import pytest
import torch

# Two workers of one thread each: tests are small, and threads that wait for one another cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background has SIGINT ignored, and processes that the tests send it to would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real genomes, variants and alignments; tests that use it are marked ``realdata``."""
    folder = os.environ.get("GENOSPARSE_TEST_DATA")
    if not folder:
        pytest.skip("GENOSPARSE_TEST_DATA does not name the folder of real data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"GENOSPARSE_TEST_DATA names {folder}, which is no folder")
    return path


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
