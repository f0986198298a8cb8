"""The progress bar: on standard error, on a terminal alone, and never in the way of results."""

import os
import pty
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from genosparse.progress import progress
with progress("training [red]x", 1000, unit="bases", initial=400) as bar:
    for step in range(6):
        time.sleep(0.05)
        bar.advance(100, loss=f"{2 - step / 10:.2f}")
        print("result", step)
"""


def run(stderr: int | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr is None else stderr,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )
    return done.stdout, done.stderr or ""


RESULTS = "".join(f"result {step}\n" for step in range(6))


def test_silent_without_a_terminal() -> None:
    assert run() == (RESULTS, "")


def test_on_a_terminal_it_shows_rate_and_values_and_leaves_standard_output_alone(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    output, _ = run(stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # Linux ends a pseudo-terminal with EIO
        os.close(ours)
    text = shown.decode()
    assert output == RESULTS
    assert "training [red]x" in text
    assert "bases/s" in text
    assert "loss 1.50" in text
    assert "50%" in text  # 400 were done before, and the first step makes it half
    assert "100%" in text
    assert "result" not in text
