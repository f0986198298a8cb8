"""Variants of VCF and BCF files and of tables."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from genosparse.contigs import ContigMatcher, contig_not_found
from genosparse.errors import ConfigError, FileFormatError, IntervalError
from genosparse.inputs import TextLines, display_name
from genosparse.intervals import Interval, position0_from_1based, position_1based
from genosparse.readers.genotypes import Genotype, parse_genotype
from genosparse.readers.variant_tables import VariantTable, is_variant_table
from genosparse.readers.vcf_text import VcfText, is_bcf, open_vcf_text

__all__ = ["Variant", "VcfText", "open_vcf_text", "parse_vcf_line", "read_variants"]

_EXPECTED = "a VCF or BCF file, or a table of variants"
_BASES = re.compile(r"[ACGTUNRYSWKMBDHVacgtunryswkmbdhv]+")
# float() takes 1_0, blanks and the digits of every script.
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_MOST_POSITION = 2**31 - 1  # of VCF's integers, of BCF and of BAM
_MOST_DIGITS = len(str(_MOST_POSITION))
_END = re.compile(r"(?:^|;)END=([0-9]{1,18})(?:;|$)")


@dataclass(frozen=True, slots=True)
class Variant:
    """One record of a VCF or BCF file, or one row of a table.

    Samples are of no account when two records are compared.

    Args:
        contig: Name of the contig, as in the file.
        position0: 0-based position of REF's first base; -1 for VCF's POS 0, the telomere.
        ref: REF, as in the file.
        alts: ALT alleles, as in the file: bases, or whatever else is there, like ``*``, symbolic alleles (``<DEL>``),
            breakends and insertions of assembled contigs (``C<ctg1>``); empty when ALT is ``.``.
        id: ID, or None when it is ``.``.
        qual: QUAL, or None when it is ``.``.
        filter: FILTER as text, or None when it is ``.``.
        info: INFO as text, or None when it is ``.``.
        record_index: How many records come before this one in the file, or in the region that was asked for.
        samples: Names of the samples that ``sample_columns`` has.
        sample_columns: FORMAT and the samples' columns, as in the file; None where there are none.
    """

    contig: str
    position0: int
    ref: str
    alts: tuple[str, ...]
    id: str | None = None
    qual: float | None = None
    filter: str | None = None
    info: str | None = None
    record_index: int = 0
    samples: tuple[str, ...] = field(default=(), repr=False, compare=False)
    sample_columns: str | None = field(default=None, repr=False, compare=False)

    @property
    def end(self) -> int:
        """The position after the last base that the record spans: of REF, or by INFO's END where that is later."""
        end = self.position0 + len(self.ref)
        if self.info is not None and "END=" in self.info and (match := _END.search(self.info)):
            return max(end, int(match[1]))  # 1-based and included is 0-based and past the end
        return end

    def genotype(self, sample: str) -> Genotype:
        """The genotype of a sample, parsed when it is asked for.

        Args:
            sample: One of ``samples``.

        Raises:
            ConfigError: There is no such sample, or there are two.
            FileFormatError: Its GT or PS is malformed.
        """
        check_sample(sample, self.samples)
        try:
            return parse_genotype(self.sample_columns or ".", self.samples.index(sample), len(self.alts))
        except FileFormatError as error:
            where = f"{self.contig}:{position_1based(self.position0)}"
            raise FileFormatError(f"sample {sample!r} at {where} (1-based): {error}") from None


def read_variants(
    path: str | Path, region: Interval | None = None, *, samples: Iterable[str] | None = None
) -> Iterator[Variant]:
    """Read the records of a VCF or BCF file or of a table, in its order, without loading the file.

    A table has the columns contig, pos (or position0), ref and alt, separated by tabs: see ``VariantTable``.

    Of a region come the records that span one of its bases, by REF or, where INFO's END is later, by END, as from
    `bcftools view -r`. The tabix or CSI index beside a bgzip or BCF file is used where it is not older than the file
    and fits it, with a notice where that is not so; otherwise the file is read from end to end. The records are the
    same either way. Only a file that is read from end to end is checked as a whole.

    Args:
        path: A VCF file or a table, plain or compressed by gzip or bgzip, or a BCF file, by content and not by name;
            ``-`` is standard input, of VCF text or a table.
        region: Where; its strand is of no account. ``chr1`` and ``1`` match, with a notice. None is the whole file.
        samples: Names of the samples (or one name) whose genotypes the variants keep; None keeps all, as text. With
            ``()``, variants that are held in memory take little of it.

    Yields:
        ``Variant``. Of a region ``record_index`` counts from 0, and where an index was used messages count lines from
        the place that they name.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is none of these formats, a record is malformed (named with its line), or it is truncated.
        ConfigError: The file has no sample of that name, or two.
        IntervalError: ``region`` is no ``Interval``.
        ContigNotFoundError: The file has no such contig, or several that could be meant.
    """
    if region is not None and not isinstance(region, Interval):
        raise IntervalError(f"region is {region!r}; expected an Interval: parse_region makes one of chr1:1,001-2,000")
    text = _open_variants(path)
    try:
        kept = None if samples is None else (samples,) if isinstance(samples, str) else tuple(samples)
        for sample in kept or ():
            check_sample(sample, text.samples, f" of {text.place}")
    except BaseException:
        text.close()
        raise
    return _parse_records(text, kept) if region is None else _parse_region(text, region, kept)


def check_sample(sample: str, samples: tuple[str, ...], where: str = "") -> None:
    """Raise ``ConfigError`` where a sample is not among ``samples``, or is there twice."""
    count = samples.count(sample)
    if not count:
        raise unknown_sample(sample, samples, where)
    if count > 1:
        raise ConfigError(
            f"sample {sample!r} is the name of {count} samples{where}; rename them, as with `bcftools reheader`"
        )


def unknown_sample(sample: str, samples: tuple[str, ...], where: str = "") -> ConfigError:
    """The error for a sample that a file does not have, naming those that it has."""
    if not samples:
        return ConfigError(f"sample {sample!r} is asked for, and the variants{where} have no samples; leave it out")
    listed = ", ".join(map(repr, samples[:8])) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
    return ConfigError(f"sample {sample!r} is not among the samples{where}; expected one of {listed}")


def _open_variants(path: str | Path) -> VcfText | VariantTable:
    lines = TextLines(path, _EXPECTED, keep_bytes=True)
    try:
        if not is_bcf(lines) and is_variant_table(lines.peek_line() or ""):
            return VariantTable(lines)
        return VcfText(path, lines)
    except BaseException:
        lines.close()
        raise


def _parse_records(text: VcfText | VariantTable, kept: tuple[str, ...] | None) -> Iterator[Variant]:
    with text:
        samples = text.samples if kept is None or kept else ()
        for index, line in enumerate(text):
            variant = parse_vcf_line(line, text.place, text.line_number, record_index=index, samples=samples)
            yield _with_samples(variant, kept) if kept else variant


def _parse_region(text: VcfText | VariantTable, region: Interval, kept: tuple[str, ...] | None) -> Iterator[Variant]:
    with text:
        file = text.place
        index = text.index if isinstance(text, VcfText) else None
        known = dict.fromkeys([*text.contig_lengths, *(index.names if index else ())])
        matcher = ContigMatcher([region.contig], wanted_from=file, available_from="the region")
        names = [region.contig] if region.contig in known else [name for name in known if matcher.match(name)]
        contig = names[0] if names else None
        if isinstance(text, VcfText) and index is not None:
            if contig is None:
                raise contig_not_found(region.contig, known, file)
            if not text.seek(contig, region.start):
                return
        samples = text.samples if kept is None or kept else ()
        number = 0
        for line in text:
            variant = parse_vcf_line(line, text.place, text.line_number, record_index=number, samples=samples)
            if variant.contig not in known:
                known[variant.contig] = None
                if contig != region.contig and matcher.match(variant.contig):
                    contig = variant.contig
            is_there = variant.contig == contig
            if index is not None and not (is_there and variant.position0 < region.end):
                return
            if is_there and variant.position0 < region.end and variant.end > region.start:
                number += 1
                yield _with_samples(variant, kept) if kept else variant
        if contig is None and known:
            raise contig_not_found(region.contig, known, file)


def _with_samples(variant: Variant, kept: tuple[str, ...]) -> Variant:
    if variant.sample_columns is None:
        return variant
    columns = variant.sample_columns.split("\t")
    chosen = [columns[0], *(columns[1 + variant.samples.index(sample)] for sample in kept)]
    return replace(variant, samples=kept, sample_columns="\t".join(chosen))


def parse_vcf_line(
    line: str, path: str | Path, line_number: int, *, record_index: int = 0, samples: tuple[str, ...] = ()
) -> Variant:
    """Parse the first eight columns of a record line.

    Args:
        line: The line, without its end.
        path: The file, for messages.
        line_number: The line's number, for messages.
        record_index: Goes into the ``Variant``.
        samples: Names of the samples that the further columns are of, which the ``Variant`` then keeps.

    Raises:
        FileFormatError: The line is not a VCF record.
    """

    def malformed(what: str) -> FileFormatError:
        return FileFormatError(f"{display_name(path)}, line {line_number}: {what}")

    columns = line.split("\t", 8)
    if len(columns) < 8:
        raise malformed(f"{len(columns)} columns; a VCF record has at least 8, separated by tabs")
    contig, position, identifier, ref, alt, qual, filters, info = columns[:8]
    if not contig or contig == "." or " " in contig:
        raise malformed(f"CHROM is {contig!r}; expected the name of a contig")
    # Its digits are counted first: int() refuses a number of thousands of them.
    is_number = position.isascii() and position.isdigit() and len(position.lstrip("0")) <= _MOST_DIGITS
    if not is_number or int(position) > _MOST_POSITION:
        raise malformed(f"POS is {_shortened(position)}; expected a whole number up to {_MOST_POSITION}")
    if not _BASES.fullmatch(ref):
        raise malformed(f"REF is {_shortened(ref)}; expected bases")
    alts = () if alt == "." else tuple(alt.split(","))
    # What an allele that is not bases means is not for the reader to judge; it must only be one.
    if "" in alts or alt.split() != [alt]:
        raise malformed(f"ALT is {_shortened(alt)}; expected alleles without blanks, separated by commas, or '.'")
    if qual != "." and not _NUMBER.fullmatch(qual):
        raise malformed(f"QUAL is {_shortened(qual)}; expected a number or '.'")
    return Variant(
        contig=contig,
        position0=position0_from_1based(int(position)),
        ref=ref,
        alts=alts,
        id=None if identifier == "." else identifier,
        qual=None if qual == "." else float(qual),
        filter=None if filters == "." else filters,
        info=None if info == "." else info,
        record_index=record_index,
        samples=samples,
        sample_columns=columns[8] if samples and len(columns) > 8 else None,
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
