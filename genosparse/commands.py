"""Running ``genosparse`` from within genosparse, as a user would."""

import shlex
import subprocess
import sys
from pathlib import Path

__all__ = ["run_genosparse", "told"]


def told(*arguments: str) -> str:
    """The command line, quoted as a shell would need it."""
    return shlex.join(["genosparse", *arguments])


def run_genosparse(*arguments: str, log: Path | None = None) -> int:
    """Run one command in a process of its own, which ends with this one where this one is stopped.

    Args:
        arguments: The subcommand and its settings.
        log: A file that its output is added to; None shows it.

    Returns:
        The exit status; 128 + n where signal n ended it.
    """
    # -P: a module of the user's in the working directory must not stand in for one of ours.
    command = [sys.executable, "-P", "-m", "genosparse.cli", *arguments]
    if log is None:
        return _wait(subprocess.Popen(command))  # noqa: S603  (this package, settings as arguments)
    with log.open("ab") as file:
        return _wait(subprocess.Popen(command, stdout=file, stderr=file))  # noqa: S603


def _wait(child: "subprocess.Popen[bytes]") -> int:
    try:
        status = child.wait()
    except KeyboardInterrupt:  # the terminal has told the child too, which has things to save
        child.wait()
        raise
    except BaseException:
        child.terminate()
        child.wait()
        raise
    return status if status >= 0 else 128 - status
