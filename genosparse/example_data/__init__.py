"""A real bacterial genome, with variants and intervals on it: enough to try everything out."""

from importlib import resources
from pathlib import Path

from genosparse.errors import InputFileNotFoundError

__all__ = ["path"]


def path(name: str) -> Path:
    """Return where a bundled file is.

    Args:
        name: ``ecoli536.fa.gz`` (genome), ``ecoli536.variants.vcf.gz`` (stop-gained and synonymous variants) or
            ``ecoli536.intervals.bed`` (ten open reading frames). The README.md beside them says where they come from.

    Raises:
        InputFileNotFoundError: No such file is bundled.
    """
    folder = Path(str(resources.files(__name__)))
    if not (folder / name).is_file():
        names = ", ".join(sorted(file.name for file in folder.iterdir() if file.name.startswith("ecoli536")))
        raise InputFileNotFoundError(f"{name!r} is not among the example data, which are {names}")
    return folder / name
