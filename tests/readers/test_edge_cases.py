"""Every file of the formats' own tests reads as ``edge_cases.tsv`` says, or is refused as it says."""

from pathlib import Path

import pytest
from edge_cases import SECONDS, Row, files_of, job_of, read_table
from workers import run_jobs

GROUPS = {"vcf-validator": "vcf-validator/", "hts-specs": "hts-specs/", "others": ""}


def group_of(path: str) -> str:
    return next(group for group, start in GROUPS.items() if path.startswith(start))


@pytest.mark.realdata
def test_the_table_has_every_file_and_no_other(test_data: Path) -> None:
    assert list(read_table()) == files_of(test_data / "edge_cases")
    assert not [row.path for row in read_table().values() if row.needs_reason and not row.why]


@pytest.mark.realdata
@pytest.mark.parametrize("group", GROUPS)
def test_every_file_reads_right_or_is_refused_in_one_line(test_data: Path, group: str) -> None:
    folder = test_data / "edge_cases"
    table = read_table()
    jobs = [job_of(folder, path) for path in table if group_of(path) == group]
    wrong = []
    for job, result in run_jobs("edge_cases:examine", jobs, seconds=SECONDS):
        row = table[job["path"]]
        if problem := _problem(row, result):
            wrong.append(f"{row.path}: {problem}")
    assert not wrong, "\n".join(sorted(wrong))


def _problem(row: Row, result: dict[str, str]) -> str | None:
    if "failed" in result:
        return result["failed"]
    if result["stderr"]:
        return f"it wrote to standard error: {result['stderr'][:200]}"
    if (result["outcome"], result["detail"]) != (row.outcome, row.detail):
        return f"{result['outcome']}: {result['detail']}; the table has {row.outcome}: {row.detail}"
    # Another version of the oracle may refuse more or less; what both read is the same, or the table says why not.
    if result["verdict"] == "differs" and not row.why:
        return f"{result['oracle']} differs: {result['difference']}"
    if row.verdict == "same" and result["verdict"] != "same" and not row.why:
        return f"{result['oracle']} does not read it any more"
    return None
