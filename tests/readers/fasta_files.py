"""Small genomes, written as FASTA in several ways."""

import numpy as np
import pysam

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


def random_sequence(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGTNacgt"), length))
