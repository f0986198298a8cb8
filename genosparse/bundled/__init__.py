"""Encoders that come with the package, by name: folders of ``config.json``, ``model.safetensors`` and a card.

``genosparse bundle`` makes them. They are read from the package's own data, and nothing is ever downloaded.
"""

import os
import warnings
from importlib import resources
from pathlib import Path

from genosparse.errors import GenosparseWarning, InputFileNotFoundError

__all__ = ["find", "names"]

_CONFIG_FILE = "config.json"  # a model folder has one


def names() -> list[str]:
    """Names of the bundled encoders, in order; none where the package was built without any."""
    return sorted(file.parent.name for file in _home().glob(f"*/{_CONFIG_FILE}"))


def find(model: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: a path, or a bundled name.

    What is written like a path (``./bacteria-mini``, ``runs/x/model``) is one. A bare name is a folder where there is
    one of that name, as for every other input, with a warning where a bundled encoder has the name too; else it is the
    bundled encoder.

    Args:
        model: The path or name.

    Raises:
        InputFileNotFoundError: There is neither such a folder nor a bundled encoder of that name.
    """
    given = os.fspath(model)
    is_bundled = given in names()
    if os.path.isdir(given):
        if is_bundled:
            warnings.warn(
                f"{given!r} is taken for the folder of that name here, and not for the bundled encoder; write "
                f"./{given} for the folder, or rename it to get the bundled one",
                GenosparseWarning,
                stacklevel=3,
            )
        return Path(given)
    if is_bundled:
        return _home() / given
    if os.path.lexists(given) or Path(given).name != given:
        raise InputFileNotFoundError(
            f"no model folder {given}; expected a folder with {_CONFIG_FILE} and model.safetensors"
        )
    known = f"bundled are {', '.join(names())}" if names() else "this installation of genosparse bundles none"
    raise InputFileNotFoundError(f"no model folder {given}, and no bundled encoder of that name; {known}")


def _home() -> Path:
    return Path(str(resources.files(__name__)))
