"""The errors and warnings that genosparse raises on purpose.

Every message says what was given, what was expected, where, and the way out. A kind exists for each thing that a caller
might want to catch; each is also a ``ValueError`` (or the built-in that fits) where a value was wrong.
"""

__all__ = [
    "ConfigError",
    "ContigNotFoundError",
    "FileFormatError",
    "GenosparseError",
    "GenosparseWarning",
    "InputFileNotFoundError",
    "IntervalError",
    "ModelFormatError",
    "OutputError",
    "PatternError",
    "ReferenceMismatchError",
    "SequenceError",
]


class GenosparseError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(GenosparseError, ValueError):
    """A setting is missing, unknown, or has a value that cannot be used."""


class InputFileNotFoundError(GenosparseError, FileNotFoundError):
    """A file or folder that was named does not exist or cannot be read."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FileFormatError(GenosparseError, ValueError):
    """A file is not what its name or place promises: empty, truncated, or of another format."""


class SequenceError(GenosparseError, ValueError):
    """A sequence has a letter that is not a nucleotide code."""


class IntervalError(GenosparseError, ValueError):
    """An interval is malformed, or reaches outside its contig."""


class ContigNotFoundError(GenosparseError, ValueError):
    """A contig is not in the genome."""


class PatternError(GenosparseError, ValueError):
    """An attention pattern, or the tensors given with it, do not fit together."""


class ReferenceMismatchError(GenosparseError, ValueError):
    """A variant's REF is not what the genome has there."""


class ModelFormatError(GenosparseError, ValueError):
    """A model folder is incomplete, damaged, or of a format that this version does not know."""


class OutputError(GenosparseError, OSError):
    """An output cannot be written, or would overwrite something else."""


class GenosparseWarning(UserWarning):
    """Something that the user should know, and that does not stop the work."""
