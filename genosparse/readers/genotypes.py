"""Genotypes of samples: the GT and PS fields of VCF."""

import re
from dataclasses import dataclass

from genosparse.errors import FileFormatError

__all__ = ["Genotype", "keep_allele", "parse_genotype"]

_GENOTYPE = re.compile(r"[|/]?(?:\d{1,9}|\.)(?:[|/](?:\d{1,9}|\.))*", re.ASCII)
_ALLELE = re.compile(r"\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Genotype:
    """The alleles of one sample at one record.

    Args:
        alleles: 0 for REF, n for the n-th ALT, None where it is not known; as many as the sample has copies, and none
            where the record has no GT.
        phased: Whether their order means something: every separator is ``|``, or there is one allele alone.
        phase_set: PS: genotypes of one phase set are phased with one another; None where there is no PS.
    """

    alleles: tuple[int | None, ...]
    phased: bool = False
    phase_set: int | None = None


def parse_genotype(sample_columns: str, index: int, num_alts: int) -> Genotype:
    """Parse the genotype of one sample.

    GT is as VCF up to 4.4 has it: ``0|1``, ``1``, ``./.``, ``.|1``, ``0/1/1``, and ``|0/1``, where the first sign tells
    whether the first allele is phased.

    Args:
        sample_columns: FORMAT and the samples' columns, as in the file.
        index: Which of the samples, from 0.
        num_alts: Number of the record's ALTs.

    Raises:
        FileFormatError: GT or PS is malformed, or names an ALT that the record does not have.
    """
    columns = sample_columns.split("\t", index + 2)
    if len(columns) < index + 2:
        raise FileFormatError(f"{len(columns) - 1} columns of samples; expected at least {index + 1}")
    values = dict(zip(columns[0].split(":"), columns[index + 1].split(":"), strict=False))
    text = values.get("GT", "")
    phase_set = values.get("PS", ".")
    if phase_set != "." and not re.fullmatch(r"-?\d{1,18}", phase_set, re.ASCII):
        raise FileFormatError(f"PS is {phase_set!r}; expected a whole number or '.'")
    if not text:
        return Genotype(())
    if not _GENOTYPE.fullmatch(text):
        raise FileFormatError(f"GT is {text!r}; expected alleles separated by '|' or '/'")
    alleles = tuple(None if allele == "." else int(allele) for allele in re.split(r"[|/]", text.lstrip("|/")))
    beyond = max((allele for allele in alleles if allele is not None), default=0)
    if beyond > num_alts:
        raise FileFormatError(f"GT is {text!r}, and the record has {num_alts} ALT; expected alleles up to {num_alts}")
    return Genotype(alleles, "/" not in text, None if phase_set == "." else int(phase_set))


def keep_allele(sample_columns: str, allele: int) -> str:
    """Return FORMAT and the samples' columns for one ALT of a record by itself: GT, where it is 1, and PS.

    Another ALT reads as 0 then, as `bcftools norm -m -` has it. Fields that count or list the alleles do not fit any
    more, and are left out.

    Args:
        sample_columns: As in the file.
        allele: The ALT, from 1.
    """
    keys, *samples = sample_columns.split("\t")
    kept = [(key, at) for at, key in enumerate(keys.split(":")) if key in ("GT", "PS")]
    if not kept:
        return "\t".join([".", *("." for _ in samples)])
    columns = [":".join(key for key, _ in kept)]
    for sample in samples:
        values = sample.split(":")
        fields = [(key, values[at] if at < len(values) else ".") for key, at in kept]
        columns.append(":".join(_renumbered(value, allele) if key == "GT" else value for key, value in fields))
    return "\t".join(columns)


def _renumbered(genotype: str, allele: int) -> str:
    return _ALLELE.sub(lambda match: "1" if int(match[0]) == allele else "0", genotype)
