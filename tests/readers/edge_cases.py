"""The table of what becomes of every file of ``edge_cases``, and how it is written anew.

    python tests/readers/edge_cases.py $GENOSPARSE_TEST_DATA/edge_cases

writes ``edge_cases.tsv`` beside this file, keeps the reasons in its last column, and lists the rows that want one. Its
columns: path; reader; reference of CRAM; what becomes of it (``reads`` or ``error``); the number of records and a
digest of them, or the message behind the file's name; the oracle; what the oracle does (``same``, ``differs`` or
``refuses``; where we do not read the file ``reads`` or ``refuses``); why, where the two do not agree.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path

from whole_files import ORACLES, READERS, Lines, OracleError, difference, text_lines
from workers import run_jobs

import genosparse as gs

TABLE = Path(__file__).with_name("edge_cases.tsv")
SECONDS = 30
_MOST_MESSAGE = 200
_INDEXES = (".fai", ".gzi", ".bai", ".csi", ".crai", ".tbi")
_READER_OF_SUFFIX = {
    **dict.fromkeys(("bed", "bed12", "bedgraph", "gff", "gff2", "gff3", "gtf"), "intervals"),
    **dict.fromkeys(("vcf", "vcf40", "bcf", "tbi"), "variants"),
    **dict.fromkeys(("sam", "bam", "cram", "bai", "crai", "donottest"), "alignments"),
}
_CE = "hts-specs/test/cram/ce.fa"
_REFERENCES = (
    (r"hts-specs/test/cram/3\.0/.*/0[123]\d\d_.*\.cram|.*level-2\.cram", ""),  # of a contig that is not in ce.fa
    (r"hts-specs/.*\.cram", _CE),
    (r"nucleus/.*\.cram", "nucleus/nucleus/testdata/test.fasta"),
    (r"gatk/.*\.cram", "gatk/src/test/resources/filediagnostics/mitoCorrupt.bug8768.fa"),
)


@dataclass(frozen=True)
class Row:
    path: str
    reader: str
    reference: str
    outcome: str
    detail: str
    oracle: str
    verdict: str
    why: str

    @property
    def needs_reason(self) -> bool:
        return (self.outcome, self.verdict) not in (("reads", "same"), ("error", "refuses"))


def read_table() -> dict[str, Row]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {row.path: row for row in (Row(*line.split("\t")) for line in lines[1:])}


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def job_of(folder: Path, path: str) -> dict[str, str]:
    reference = next((name for pattern, name in _REFERENCES if re.fullmatch(pattern, path)), "")
    return {"folder": str(folder), "path": path, "reader": _reader_of(Path(path).name), "reference": reference}


def _reader_of(name: str) -> str:
    base = re.sub(r"(\.tar)?\.(gz|bz2|z|Z|xz|zip)$", "", name)
    suffix = base.rpartition(".")[2]
    if suffix == "out":  # of tabix
        return "variants" if base.startswith(("vcf", "large")) else "intervals"
    return _READER_OF_SUFFIX.get(suffix, "sequence")


def examine(folder: str, path: str, reader: str, reference: str) -> dict[str, str | None]:
    """Read a copy of a file, with its index where one lies beside it, as we do and as the oracle does."""
    original = Path(folder, path)
    genome = Path(folder, reference) if reference else None
    with tempfile.TemporaryDirectory() as workspace:
        os.environ["XDG_CACHE_HOME"] = f"{workspace}/cache"
        place = Path(workspace, "data")
        place.mkdir()
        for file in original.parent.iterdir():
            is_index = file.suffix in _INDEXES and file.name.startswith(original.stem)
            if file == original or (is_index and original.suffix not in _INDEXES):
                shutil.copyfile(file, place / file.name)
                # However the files were fetched, an index is younger than its file.
                os.utime(place / file.name, (10**9 + is_index, 10**9 + is_index))
        copy = place / original.name
        ours = theirs = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours = READERS[reader](copy, genome)
            outcome, detail = "reads", digest(ours)
        except gs.GenosparseError as error:
            outcome, detail = "error", _message(error, copy, folder)
        name, oracle = ORACLES[reader]
        try:
            theirs = oracle(copy, genome)
        except OracleError:
            verdict, where = "refuses", None
            if ours is not None and reader == "variants":
                assert (where := difference(reader, ours, text_lines(copy))) is None, f"beside its text: {where}"
        else:
            where = None if ours is None else difference(reader, ours, theirs)
            verdict = "reads" if ours is None else "differs" if where else "same"
    return {"outcome": outcome, "detail": detail, "oracle": name, "verdict": verdict, "difference": where}


def digest(lines: Lines) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return f"{len(lines)} records, {hashlib.sha256(text).hexdigest()[:12]}"


def _message(error: gs.GenosparseError, copy: Path, folder: str) -> str:
    text = str(error)
    assert str(copy) in text, f"the message does not name the file: {text}"
    assert "\n" not in text, f"a message of several lines: {text}"
    text = text.removeprefix(str(copy)).replace(f"{copy.parent}/", "").replace(f"{folder}/", "")
    return text.strip(" ,:")[:_MOST_MESSAGE].replace("\t", "\\t")


def main(folder: Path) -> None:
    reasons = {row.path: row.why for row in read_table().values()} if TABLE.exists() else {}
    rows = []
    jobs = [job_of(folder, path) for path in files_of(folder)]
    for job, result in run_jobs("edge_cases:examine", jobs, seconds=SECONDS, workers=2):
        path = job["path"]
        if "failed" in result or "error" in result:
            sys.exit(f"{path}: {result}")
        row = Row(
            path, job["reader"], job["reference"],
            *(result[key] for key in ("outcome", "detail", "oracle", "verdict")),
            reasons.get(path, ""),
        )  # fmt: skip
        if row.needs_reason and not row.why:
            print(row, result["difference"])
        rows.append("\t".join(astuple(row)))
    header = "path\treader\treference\toutcome\tdetail\toracle\tverdict\twhy"
    TABLE.write_text("\n".join([header, *sorted(rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
