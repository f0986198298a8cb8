"""Opening text inputs: plain, gzip, bgzip or standard input; a cut-off file is an error and never a silent end."""

import gzip
import io
import re
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from genosparse.errors import FileFormatError, InputFileNotFoundError

__all__ = [
    "BGZF_EOF",
    "STANDARD_INPUT",
    "Closing",
    "TextLines",
    "check_bgzf_end",
    "check_input_file",
    "damaged_error",
    "display_name",
    "is_bgzf",
    "is_gzip",
    "read_head",
    "refuse_other_compression",
    "truncated_error",
]

STANDARD_INPUT = "-"

# The empty block that ends every BGZF file (SAM specification, section 4.1.2).
BGZF_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_BGZF_HEADER_LENGTH = 18
_BUFFER_BYTES = 1 << 18
# What else files are compressed by, and how such a file begins.
_OTHER_COMPRESSION = {
    "bzip2": re.compile(rb"BZh[1-9]1AY&SY"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "zip": re.compile(rb"PK\x03\x04"),
    "compress": re.compile(rb"\x1f\x9d"),
    "zlib": re.compile(rb"\x78[\x01\x5e\x9c\xda]"),
}


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is gzip, BGZF included."""
    return head[:2] == b"\x1f\x8b"


def is_bgzf(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (18 bytes or more) is BGZF, as bgzip writes it."""
    return head[:4] == b"\x1f\x8b\x08\x04" and head[12:16] == b"BC\x02\x00"


def refuse_other_compression(path: str | Path, head: bytes) -> None:
    """Raise ``FileFormatError`` for a file that begins with ``head`` and is compressed by neither gzip nor bgzip."""
    if head == b"\x1f":  # a blank, to Python
        raise truncated_error(path)
    for name, start in _OTHER_COMPRESSION.items():
        if start.match(head):
            raise FileFormatError(
                f"{display_name(path)} is compressed by {name}; expected plain text, gzip or bgzip: unpack it, or "
                "compress it with bgzip"
            )


def display_name(path: str | Path) -> str:
    """The name of an input in messages."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def check_input_file(path: str | Path, expected: str, *, allow_empty: bool = False) -> Path:
    """Check that ``path`` is a file that can be read.

    Args:
        path: The file.
        expected: What it should be, for messages: ``"a FASTA file"``.
        allow_empty: Accept a file of no bytes.

    Raises:
        InputFileNotFoundError: It does not exist or cannot be read.
        FileFormatError: It is a folder, or empty.
    """
    file = Path(path)
    try:
        # A pipe (a shell's <(...)) must not be opened twice: its first bytes would be gone.
        if file.is_file():
            with file.open("rb") as stream:
                empty = not stream.read(1)
        else:
            file.stat()
            empty = False
    except FileNotFoundError:
        raise InputFileNotFoundError(f"{path} does not exist; expected {expected}") from None
    except OSError as error:
        raise InputFileNotFoundError(f"{path} cannot be read ({error.strerror}); expected {expected}") from None
    if file.is_dir():
        raise FileFormatError(f"{path} is a folder; expected {expected}")
    if empty and not allow_empty:
        raise FileFormatError(f"{path} is empty; expected {expected}")
    return file


def check_bgzf_end(path: str | Path) -> None:
    """Check that a BGZF file ends with its end-of-file block.

    Raises:
        FileFormatError: The block is missing: the file was cut off.
    """
    with Path(path).open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - len(BGZF_EOF)))
        if stream.read() != BGZF_EOF:
            raise truncated_error(path)


def truncated_error(path: str | Path) -> FileFormatError:
    """The error for compressed data that stop before their end."""
    return FileFormatError(
        f"{display_name(path)} is truncated: its compressed data stop before the end; fetch or write the file again"
    )


def damaged_error(path: str | Path, cause: Exception) -> FileFormatError:
    """The error for compressed data that cannot be unpacked."""
    return FileFormatError(f"{display_name(path)} has damaged compressed data ({cause}); fetch or write the file again")


class _Tail(io.RawIOBase):
    """A byte stream that remembers the last bytes that passed through."""

    def __init__(self, stream: BinaryIO, close: bool) -> None:
        self.tail = b""
        self._stream = stream
        self._close = close
        # On a pipe, take what has come instead of waiting until the buffer is full.
        self._readinto: Any = getattr(stream, "readinto1", None) or getattr(stream, "readinto", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._readinto(buffer) or 0
        if count:
            self.tail = (self.tail + bytes(memoryview(buffer)[max(0, count - len(BGZF_EOF)) : count]))[-len(BGZF_EOF) :]
        return count

    def close(self) -> None:
        if self._close and not self.closed:
            self._stream.close()
        super().close()


def read_head(path: str | Path, size: int) -> bytes:
    """The first ``size`` bytes of a file, uncompressed where it is compressed; fewer when it is shorter.

    Raises:
        FileFormatError: Its compressed data are truncated or damaged, or of another compression.
    """
    with Path(path).open("rb") as stream:
        compressed = is_gzip(stream.read(2))
        stream.seek(0)
        if not compressed:
            head = stream.read(size)
            refuse_other_compression(path, head)
            return head
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            try:
                return unpacked.read(size)
            except EOFError:
                raise truncated_error(path) from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise damaged_error(path, error) from None


class Closing(ABC):
    """A context manager that closes itself at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class TextLines(Closing):
    r"""Lines of a text file, without their ends (``\n`` or ``\r\n``); a context manager.

    Args:
        path: A plain, gzip or bgzip file, by content and not by name; ``-`` is standard input.
        expected: What the file should be, for messages.
        keep_bytes: Carry bytes that are not UTF-8 through as surrogate escapes, so that a writer with
            ``errors="surrogateescape"`` gives them back unchanged; otherwise they are an error.
        virtual_offset: Where in a bgzip file to begin, as its indexes have it: the offset of a block times 65536 plus
            the offset within the unpacked block. Lines are counted from there.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is a folder, or compressed by something else; or, while reading, compressed data are
            truncated or damaged, or it is not text.
    """

    def __init__(self, path: str | Path, expected: str, *, keep_bytes: bool = False, virtual_offset: int = 0) -> None:
        self.path = path
        self.line_number = 0
        self._expected = expected
        self._peeked: str | None = None
        if str(path) == STANDARD_INPUT:
            if sys.stdin is None or sys.stdin.closed:
                raise InputFileNotFoundError(f"standard input is closed; expected {expected}")
            self._tail = _Tail(sys.stdin.buffer, close=False)
        else:
            file = check_input_file(path, expected, allow_empty=True)
            stream = file.open("rb", buffering=0)
            if virtual_offset:
                stream.seek(virtual_offset >> 16)
            self._tail = _Tail(stream, close=True)
        buffered = io.BufferedReader(self._tail, _BUFFER_BYTES)
        head = buffered.peek(_BGZF_HEADER_LENGTH)[:_BGZF_HEADER_LENGTH]
        if not virtual_offset:
            refuse_other_compression(path, head)
        self._is_bgzf = is_bgzf(head)
        if self._is_bgzf and str(path) != STANDARD_INPUT and Path(path).is_file():
            check_bgzf_end(path)
        self._binary: Any = buffered
        if is_gzip(head):
            self._binary = io.BufferedReader(gzip.GzipFile(fileobj=buffered, mode="rb"), _BUFFER_BYTES)
        if virtual_offset:
            try:
                self._binary.read(virtual_offset & 0xFFFF)
            except (EOFError, OSError, zlib.error) as error:
                self._tail.close()
                raise damaged_error(path, error) from None
        self._buffered = buffered
        self._text = io.TextIOWrapper(
            self._binary, encoding="utf-8", errors="surrogateescape" if keep_bytes else "strict", newline="\n"
        )

    def peek(self, size: int) -> bytes:
        """The first bytes, uncompressed, before any line was read; none where the data are damaged: reading says so."""
        try:
            return bytes(self._binary.peek(size)[:size])
        except (EOFError, OSError, zlib.error):
            return b""

    def peek_line(self) -> str | None:
        """The first line, before any was read, which stays the next one; None where the file has none."""
        if self._peeked is None:
            self._peeked = next(self, None)
        return self._peeked

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._peeked is not None:
            line, self._peeked = self._peeked, None
            return line
        try:
            line = self._text.readline()
        except EOFError:
            raise truncated_error(self.path) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise damaged_error(self.path, error) from None
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{display_name(self.path)} is not UTF-8 text (byte 0x{error.object[error.start]:02x} "
                f"after line {self.line_number}); expected {self._expected}"
            ) from None
        except OSError as error:
            raise InputFileNotFoundError(f"{display_name(self.path)} cannot be read ({error.strerror})") from None
        if not line:
            if self._is_bgzf and self._tail.tail != BGZF_EOF:
                raise truncated_error(self.path)
            raise StopIteration
        self.line_number += 1
        if self.line_number == 1:
            line = line.removeprefix("\ufeff")
        return line.removesuffix("\n").removesuffix("\r")

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._text.close()
        self._buffered.close()
