"""Small genomes, written as FASTA in several ways."""

import struct
import zlib

import numpy as np
import pysam

from genosparse.inputs import BGZF_EOF

SEQUENCES = {"one": "ACGTNacgtnRYSWKMBDHVuU", "two": "G", "chr3": "ACGTA" * 4}


def fasta_text(sequences, width=5, line_end="\n"):
    lines = []
    for name, sequence in sequences.items():
        lines += [f">{name} a description", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    return line_end.join([*lines, ""]).encode()


def write_bgzip(path, content):
    with pysam.BGZFile(str(path), "wb") as stream:
        stream.write(content)
    return path


def bgzip_bytes(content, block_bytes=60_000):
    """What bgzip makes of bytes: one block a piece of so many, and the empty block at the end."""
    blocks = []
    for start in range(0, len(content), block_bytes):
        piece = content[start : start + block_bytes]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(piece) + packer.flush()
        head = bytes.fromhex("1f8b08040000000000ff060042430200")
        size = struct.pack("<H", len(packed) + 25)
        blocks.append(head + size + packed + struct.pack("<II", zlib.crc32(piece), len(piece)))
    return b"".join([*blocks, BGZF_EOF])


def random_sequence(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGTNacgt"), length))
