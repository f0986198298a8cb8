"""The unpacked bytes of a BGZF file, from any place on.

Offsets are virtual: a block's place in the file << 16 | the place in the unpacked block (section 4.1 of the SAM
specification).
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

from genosparse.errors import FileFormatError, InputFileNotFoundError
from genosparse.inputs import Closing

__all__ = ["BlockReader", "DamagedBlockError", "KeptBlocks", "damaged_block"]

_GZIP_START, _BGZF_FIELD = b"\x1f\x8b\x08\x04", b"\x06\x00BC\x02\x00"
_HEADER_BYTES = 18
_FOOTER = struct.Struct("<II")  # CRC-32 and size of what is unpacked
_MOST_BLOCK_BYTES = 1 << 16  # packed or not
# Read at once of the packed file, some ten blocks: system calls cost little then, and little is read in vain.
_PACKED_BYTES = 1 << 18
# Unpacked blocks that stay, 4 MB at the most: neighbouring intervals, and two passes over one, begin in the same ones.
_NUM_KEPT = 64


class DamagedBlockError(FileFormatError):
    """A block cannot be unpacked.

    Attributes:
        byte: Where it begins in the file.
    """

    def __init__(self, path: Path, byte: int) -> None:
        super().__init__(f"{path} is truncated or damaged in the block at byte {byte}; fetch or write the file again")
        self.byte = byte


class KeptBlocks:
    """Unpacked blocks that stay, those that were used last. Readers and threads may share them.

    Each step is one call of a dictionary's, during which no other thread runs: so there is no lock, which a fork might
    leave closed.

    Args:
        most: How many, of 64 KiB each at the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._blocks: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bytes, int] | None:
        """A block, and where in its file it ends."""
        found = self._blocks.get(key)
        if found is not None:
            with contextlib.suppress(KeyError):  # another thread needed the room
                self._blocks.move_to_end(key)
        return found

    def put(self, key: Hashable, block: tuple[bytes, int]) -> None:
        """Keep a block in the room of the one whose use is longest ago."""
        self._blocks[key] = block
        while len(self._blocks) > self._most:
            with contextlib.suppress(KeyError):
                self._blocks.popitem(last=False)

    def __len__(self) -> int:
        return len(self._blocks)


class BlockReader(Closing):
    """A BGZF file's unpacked bytes; a context manager.

    The file is read at given places, so that processes may share a descriptor over a fork: what moves is this object's.
    Each block's size and checksum are compared with what it says of them.

    Args:
        path: The file.
        kept: Where unpacked blocks stay; None for the reader's own 4 MB.

    Raises:
        InputFileNotFoundError: It cannot be opened; or, while reading, it cannot be read.
        DamagedBlockError: While reading: a block is truncated or damaged, or there is none at an offset.
    """

    def __init__(self, path: Path, kept: KeptBlocks | None = None) -> None:
        self._file = -1
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._file)
        except FileNotFoundError:
            raise InputFileNotFoundError(f"{path} does not exist any more") from None
        except OSError as error:
            raise self._unreadable(error) from None
        self._packed, self._packed_at = b"", 0
        self._kept = KeptBlocks(_NUM_KEPT) if kept is None else kept
        # Another file, and this one once it is written to, has other blocks.
        self._version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        # The block that is unpacked, from where to where it is in the file, and what of it has been read.
        self._block, self._begin, self._end, self._within = b"", 0, 0, 0

    def _unreadable(self, error: OSError) -> InputFileNotFoundError:
        return InputFileNotFoundError(f"{self.path} cannot be read ({error.strerror})")

    def tell(self) -> int:
        """The offset of the next byte."""
        if self._within == len(self._block):
            return self._end << 16
        return self._begin << 16 | self._within

    def seek(self, offset: int) -> None:
        """Go on at an offset."""
        begin, within = offset >> 16, offset & 0xFFFF
        if begin != self._begin or not self._block:
            self._block, self._begin, self._end, self._within = b"", begin, begin, 0
            if within and not self._next_block(begin):
                raise DamagedBlockError(self.path, begin)
        if within > len(self._block):
            raise DamagedBlockError(self.path, begin)
        self._within = within

    def block_size(self, begin: int) -> int:
        """The unpacked bytes of the block that begins at a byte of the file, which is then the next to be read."""
        self.seek(begin << 16)
        if not self._block and not self._next_block(begin):
            raise DamagedBlockError(self.path, begin)
        return len(self._block)

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the file's end."""
        buffer = bytearray()
        self.read_onto(buffer, size)
        return bytes(buffer)

    def read_onto(self, buffer: bytearray, size: int, end: int | None = None) -> int:
        """Append so many bytes to ``buffer``, fewer at the file's end or at an offset ``end``.

        Returns:
            How many.
        """
        before = len(buffer)
        missing = size
        last, within = (None, 0) if end is None else (end >> 16, end & 0xFFFF)
        while missing > 0:
            if self._within == len(self._block):
                if last is not None and (self._end > last or (self._end == last and not within)):
                    break
                if not self._next_block(last):
                    break
            stop = self._within + missing
            if last is not None and self._begin >= last:
                stop = min(stop, within if self._begin == last else 0)
            piece = self._block[self._within : stop] if self._within or stop < len(self._block) else self._block
            if not piece and self._block:
                break
            buffer += piece
            self._within += len(piece)
            missing -= len(piece)
        return len(buffer) - before

    def read_line(self) -> bytes | None:
        """The rest of a line, without its end; None at the file's end."""
        line = bytearray()
        while self._within < len(self._block) or self._next_block():
            end = self._block.find(b"\n", self._within)
            line += self._block[self._within : end if end >= 0 else None]
            self._within = end + 1 if end >= 0 else len(self._block)
            if end >= 0:
                return bytes(line)
        return bytes(line) if line else None

    def _next_block(self, last: int | None = None) -> bool:
        """Unpack the block that follows; ``last`` is the one behind which nothing is wanted.

        Returns:
            Whether there is one.
        """
        at = self._end
        key = (self._version, at)
        found = self._kept.get(key)
        if found is None:
            found = self._unpacked(at, last)
            if found is None:
                return False
            self._kept.put(key, found)
        self._block, self._end = found
        self._begin, self._within = at, 0
        return True

    def _unpacked(self, at: int, last: int | None) -> tuple[bytes, int] | None:
        """The block that begins at a byte of the file, and where it ends; None at the file's end."""
        place = self._placed(at, _HEADER_BYTES, last)
        head = self._packed[place : place + _HEADER_BYTES]
        if not head:
            return None
        # As htslib has it, BGZF's own field is the only one.
        if len(head) < _HEADER_BYTES or head[:4] != _GZIP_START or head[10:16] != _BGZF_FIELD:
            raise DamagedBlockError(self.path, at)
        size = int.from_bytes(head[16:], "little") + 1
        place = self._placed(at, size, last)
        footer_at = place + size - _FOOTER.size
        if footer_at < place + _HEADER_BYTES or place + size > len(self._packed):
            raise DamagedBlockError(self.path, at)
        try:
            block = zlib.decompress(self._packed[place + _HEADER_BYTES : footer_at], -zlib.MAX_WBITS, _MOST_BLOCK_BYTES)
        except zlib.error:
            raise DamagedBlockError(self.path, at) from None
        says = _FOOTER.unpack_from(self._packed, footer_at)
        if says != (zlib.crc32(block), len(block)) or len(block) > _MOST_BLOCK_BYTES:
            raise DamagedBlockError(self.path, at)
        return block, at + size

    def _placed(self, at: int, size: int, last: int | None) -> int:
        """Where in the packed bytes at hand the file's byte ``at`` is, with ``size`` bytes from it on if there are."""
        place = at - self._packed_at
        if place < 0 or place + size > len(self._packed):
            wanted = _PACKED_BYTES
            if last is not None:
                wanted = min(wanted, max(last - at, 0) + _MOST_BLOCK_BYTES)
            try:
                self._packed = os.pread(self._file, max(wanted, size), at)
            except (OSError, OverflowError) as error:
                raise (
                    self._unreadable(error) if isinstance(error, OSError) else DamagedBlockError(self.path, at)
                ) from None
            self._packed_at, place = at, 0
        return place

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                os.close(file)

    def __del__(self) -> None:
        self.close()


def damaged_block(path: Path) -> int | None:
    """Where the first block begins that cannot be unpacked, in bytes; None where all can be."""
    with BlockReader(path) as stream:
        try:
            while stream._next_block():
                pass  # to unpack a block is to check it
        except DamagedBlockError as error:
            return error.byte
    return None
