"""BAM byte by byte: what no writer writes, and what few do."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from genosparse.inputs import BGZF_EOF
from genosparse.readers.alignments.records import CIGAR_LETTERS

CONTIGS = {"one": 400_000, "two": 300}


def bgzf_block(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def pack_bgzf(data: bytes, size: int = 65_280) -> bytes:
    return b"".join(bgzf_block(data[at : at + size]) for at in range(0, len(data), size)) + BGZF_EOF


def record(
    name: str | bytes = "r",
    position0: int = 0,
    cigar: Sequence[tuple[int, str]] = ((4, "M"),),
    *,
    bases: int = 4,
    tags: bytes = b"",
    **changed: int,
) -> bytes:
    """A record on the first contig, with some of its numbers changed; a name of bytes is without its NUL."""
    name = name if isinstance(name, bytes) else name.encode() + b"\0"
    operations = b"".join(struct.pack("<I", size << 4 | (CIGAR_LETTERS + "B").index(kind)) for size, kind in cigar)
    body = name + operations + b"\x12" * ((bases + 1) // 2) + b"\x1e" * bases + tags
    numbers = {
        "size": 32 + len(body), "contig": 0, "position": position0, "name_bytes": len(name), "quality": 60, "bin": 4681,
        "operations": len(cigar), "flags": 0, "bases": bases, "mate_contig": -1, "mate_position": -1, "template": 0,
    }  # fmt: skip
    return struct.pack("<iiiBBHHHiiii", *{**numbers, **changed}.values()) + body


def array_tag(tag: bytes, kind: bytes, cigar: Sequence[tuple[int, str]], count: int | None = None) -> bytes:
    """A tag of an array of operations."""
    values = b"".join(struct.pack("<I", size << 4 | CIGAR_LETTERS.index(letter)) for size, letter in cigar)
    return tag + b"B" + kind + struct.pack("<i", len(cigar) if count is None else count) + values


def write_crafted(path: Path, records: Sequence[bytes], size: int = 65_280) -> Path:
    """A BAM file of blocks of so many bytes."""
    text = b"@HD\tVN:1.6\tSO:coordinate\n"
    names = b"".join(
        struct.pack("<i", len(name) + 1) + name.encode() + b"\0" + struct.pack("<i", length)
        for name, length in CONTIGS.items()
    )
    head = b"BAM\1" + struct.pack("<i", len(text)) + text + struct.pack("<i", len(CONTIGS)) + names
    path.write_bytes(pack_bgzf(head + b"".join(records), size))
    return path
