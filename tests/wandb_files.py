"""What wandb's offline run files hold."""

import time
from pathlib import Path

SECONDS = 60.0


def wandb_file(run_dir: Path, *names: str) -> Path:
    """The one offline run file of a folder, once it has all names.

    wandb's server is a process of its own and may write the end of a run after ``finish`` has returned; it is waited
    for at the end of the process that started it, which the tests' own is not.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
        contents = file.read_bytes()
        missing = [name for name in names if name.encode() not in contents]
        if not missing:
            return file
        assert time.monotonic() < deadline, f"{file} has no {missing}"
        time.sleep(0.1)
