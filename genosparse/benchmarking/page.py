"""The README's section on performance, made of results of the suites: what was aimed at, what was measured, both ways.

    python -m genosparse.benchmarking.page docs/performance README.md

The folder holds a ``SUITE.json`` for each suite, the ``results.json`` of a run, and the pictures beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genosparse.benchmarking.attention import PRODUCTS
from genosparse.benchmarking.pretraining import FINAL_TITLES, final_rows
from genosparse.benchmarking.results import Row, read_results
from genosparse.benchmarking.tables import markdown_table, significant
from genosparse.errors import OutputError
from genosparse.outputs import atomic_output

__all__ = ["performance_section", "replace_section"]

BEGIN, END = "<!-- performance: begin, made by genosparse.benchmarking.page -->", "<!-- performance: end -->"
_SUITES = ("attention", "encoder", "training", "readers", "variant-effect", "pretraining")


@dataclass(frozen=True, slots=True)
class _Aim:
    """A figure that was aimed at.

    Attributes:
        suite: Whose rows tell it.
        what: In words.
        bound: What it is to be.
        at_least: Or else at most.
        measure: The figure from the suite's rows; None where they do not tell it.
    """

    suite: str
    what: str
    bound: float
    at_least: bool
    measure: Callable[[Sequence[Row]], float | None]


def performance_section(folder: Path) -> str:
    """The section as Markdown, from the results in a folder.

    Raises:
        OutputError: A file of results is damaged.
    """
    suites = {name: folder / f"{name}.json" for name in _SUITES if (folder / f"{name}.json").exists()}
    rows = {name: read_results(path) for name, path in suites.items()}
    contents = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in suites.items()}
    machines = {_machine(each) for each in contents.values()}
    parts = [f"Measured on {' and '.join(sorted(machines))}, by turns with what each is compared with; medians."]
    parts.append(markdown_table(("aim", "wanted", "measured", ""), list(_aims(rows)), left=("aim", "")))
    if "encoder" in rows:
        parts.append(
            "Encoders of equal width (256), heads (4), window (512 each side) and depth, each in the precision that it "
            "is faster in; microseconds per base and layer, and the peak of memory of a process that runs it alone:"
        )
        parts.append(_encoders(rows["encoder"]))
        parts.append(f"![Time per base and layer by length]({folder.as_posix()}/encoder.png)")
        parts.append(f"![Peak memory by length]({folder.as_posix()}/encoder-memory.png)")
    if "training" in rows:
        layers = contents["training"]["settings"]["layers"]
        parts.append(
            f"A training step (forward, backward, AdamW) of {layers} such layers on one sequence, by length, "
            "activations kept or made again:"
        )
        parts.append(_training(rows["training"]))
        parts.append(f"![Bases per second of a training step]({folder.as_posix()}/training.png)")
    if "attention" in rows:
        parts.append("Attention alone, useful pairs only, beside torch.mm in the same dtype:")
        parts.append(_attention(rows["attention"]))
        parts.append(f"![Time of attention by length]({folder.as_posix()}/attention.png)")
    if "pretraining" in rows:
        parts.append(
            "Encoders of as many weights, pretrained for the same time on the same windows and masks, each in the "
            "precision that is faster for it and at the best of the same learning rates; bits per base of held-out "
            "sequence at the same sites, means over seeds:"
        )
        parts.append(_pretraining(rows["pretraining"]))
    return "\n\n".join(parts)


def replace_section(page: str, section: str) -> str:
    """A page with the section put between its two marks.

    Raises:
        OutputError: The page lacks a mark.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OutputError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def _machine(contents: Mapping[str, Any]) -> str:
    machine = contents["machine"]
    return f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"


def _aims(rows: Mapping[str, Sequence[Row]]) -> Iterator[list[str]]:
    for aim in _AIMS:
        value = aim.measure(rows.get(aim.suite, ()))
        sign = "at least" if aim.at_least else "at most"
        if value is None:
            yield [aim.what, f"{sign} {aim.bound:g}", "not measured", ""]
            continue
        held = value >= aim.bound if aim.at_least else value <= aim.bound
        yield [aim.what, f"{sign} {aim.bound:g}", significant(value), "" if held else "**missed**"]


def _encoders(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if row["layers"] == 1]
    lengths = sorted({row["length"] for row in rows})
    cells = []
    for name in dict.fromkeys(row["implementation"] for row in rows):
        of_name = {row["length"]: row for row in rows if row["implementation"] == name}
        cells.append([name, *(_encoder_cell(of_name.get(length)) for length in lengths)])
    return markdown_table(("encoder", *(f"{length:,} bp" for length in lengths)), cells, left=("encoder",))


def _encoder_cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["seconds"] is None:
        return row["note"] if row["status"] != "out_of_memory" else "out of memory"
    time = significant(1e6 * row["seconds"] / (row["length"] * row["layers"]))
    memory = f", {significant(row['peak_bytes'] / 2**30, 2)} GiB" if row["peak_bytes"] else ""
    return f"{time} us{memory} ({row['dtype']})"


def _training(rows: Sequence[Row]) -> str:
    cells = [
        [
            row["implementation"],
            row["dtype"],
            f"{row['length']:,}",
            significant(row["seconds"]),
            significant(row["length"] / row["seconds"]),
            significant(row["peak_bytes"] / 2**30, 2) if row["peak_bytes"] else "",
        ]
        for row in rows
        if row["seconds"] is not None
    ]
    titles = ("way", "dtype", "length", "seconds", "bases/s", "peak GiB")
    return markdown_table(titles, cells, left=("way", "dtype"))


def _attention(rows: Sequence[Row]) -> str:
    rows = [row for row in rows if row["seconds"] is not None and row["length"] in _long(rows)]
    chosen = [row for row in rows if row["implementation"] not in PRODUCTS]
    cells = [
        [
            row["mode"],
            row["dtype"],
            f"{row['length']:,}",
            row["implementation"],
            significant(1e3 * row["seconds"]),
            significant(1e3 * row["tflops"]),
            significant(row["of_mm"]),
        ]
        for row in chosen
    ]
    titles = ("mode", "dtype", "length", "implementation", "ms", "GFLOP/s", "of torch.mm")
    return markdown_table(titles, cells, left=("mode", "dtype", "implementation"))


def _pretraining(rows: Sequence[Row]) -> str:
    cells = final_rows(rows)
    for row in rows:
        if row["phase"] == "baselines":
            name = {"interpolated": "interpolated k-mers", "best_kmer": "best single k-mer table"}
            told = {"encoder": name[row["implementation"]], "bits per base": f"{row['bits_per_base']:.4f}"}
            cells.append([told.get(title, "") for title in FINAL_TITLES])
    return markdown_table(FINAL_TITLES, cells, left=("encoder",))


def _find(rows: Sequence[Row], **values: Any) -> Row | None:
    """The measured row that has these values."""
    found = (row for row in rows if all(row[key] == value for key, value in values.items()))
    return next((row for row in found if row["seconds"] is not None), None)


def _of_mm(dtype: str, *, backward: bool) -> Callable[[Sequence[Row]], float | None]:
    """The rate of the native kernels over torch.mm's; backward is training less forward, 10 of its 14
    FLOPs. Of several lengths the least."""

    def at(rows: Sequence[Row], length: int) -> float | None:
        of = {"dtype": dtype, "length": length, "implementation": "cpu-native"}
        forward, training = (_find(rows, mode=mode, **of) for mode in ("forward", "training"))
        if not backward:
            return None if forward is None else float(forward["of_mm"])
        if forward is None or training is None:
            return None
        seconds = training["seconds"] - forward["seconds"]
        return float(training["of_mm"] * training["seconds"] * 10 / 14 / seconds)

    def measure(rows: Sequence[Row]) -> float | None:
        return min((rate for length in _long(rows) if (rate := at(rows, length)) is not None), default=None)

    return measure


def _long(rows: Sequence[Row]) -> list[int]:
    """The lengths from 131,072 on, which the aims are of; all where there are none."""
    lengths = sorted({row["length"] for row in rows})
    return [length for length in lengths if length >= 131_072] or lengths


def _over_ours(rival: str, length: int, key: str) -> Callable[[Sequence[Row]], float | None]:
    def measure(rows: Sequence[Row]) -> float | None:
        at = {"layers": 1, "length": length}
        ours, other = (_find(rows, implementation=name, **at) for name in ("genosparse", rival))
        return float(other[key] / ours[key]) if ours and other and ours[key] and other[key] else None

    return measure


def _step_memory(rows: Sequence[Row]) -> float | None:
    row = _find(rows, implementation="checkpointing", length=131_072, dtype="float32")
    return None if row is None or not row["peak_bytes"] else float(row["peak_bytes"] / 2**30)


def _over_first(implementation: str, over: str) -> Callable[[Sequence[Row]], float | None]:
    """The largest ratio of two readers' times of FASTA windows, or the least where the second is ours."""

    def measure(rows: Sequence[Row]) -> float | None:
        ratios = []
        for length in {row["length"] for row in rows if row["task"] == "sequence"}:
            at = {"task": "sequence", "length": length}
            one, other = (_find(rows, implementation=name, **at) for name in (implementation, over))
            if one and other:
                ratios.append(one["seconds"] / other["seconds"])
        if not ratios:
            return None
        return max(ratios) if implementation == "genosparse" else min(ratios)

    return measure


def _naive(rows: Sequence[Row]) -> float | None:
    row = _find(rows, implementation="naive loop", context=2048)
    return None if row is None or row["over_ours"] is None else float(row["over_ours"])


_AIMS = (
    _Aim(
        "attention", "attention forward, bfloat16, over torch.mm's rate", 0.5, True, _of_mm("bfloat16", backward=False)
    ),
    _Aim(
        "attention", "attention backward, bfloat16, over torch.mm's rate", 0.35, True, _of_mm("bfloat16", backward=True)
    ),
    _Aim("attention", "attention forward, float32, over torch.mm's rate", 1.2, True, _of_mm("float32", backward=False)),
    _Aim("attention", "attention backward, float32, over torch.mm's rate", 0.9, True, _of_mm("float32", backward=True)),
    _Aim("encoder", "times faster than Longformer at 16,384 bp", 8, True, _over_ours("Longformer", 16_384, "seconds")),
    _Aim("encoder", "times faster than BigBird at 16,384 bp", 12, True, _over_ours("BigBird", 16_384, "seconds")),
    _Aim("encoder", "times faster than Longformer at 65,536 bp", 15, True, _over_ours("Longformer", 65_536, "seconds")),
    _Aim(
        "encoder",
        "times less memory than Longformer at 65,536 bp",
        10,
        True,
        _over_ours("Longformer", 65_536, "peak_bytes"),
    ),
    _Aim(
        "encoder",
        "times faster than long convolutions at 131,072 bp",
        2,
        True,
        _over_ours("Hyena, order 2", 131_072, "seconds"),
    ),
    _Aim(
        "encoder",
        "times faster than long convolutions at 1,048,576 bp",
        4,
        True,
        _over_ours("Hyena, order 2", 1_048_576, "seconds"),
    ),
    _Aim(
        "encoder",
        "times less memory than long convolutions at 1,048,576 bp",
        2,
        True,
        _over_ours("Hyena, order 2", 1_048_576, "peak_bytes"),
    ),
    _Aim("training", "GiB of a training step at 131,072 bp, with checkpointing", 12, False, _step_memory),
    _Aim(
        "readers", "FASTA to tokens over pysam's bare fetch", 1.3, False, _over_first("genosparse", "pysam, bare text")
    ),
    _Aim(
        "readers",
        "times faster than pyfaidx and a dictionary of letters",
        5,
        True,
        _over_first("pyfaidx + Python's dict", "genosparse"),
    ),
    _Aim("variant-effect", "times faster than a loop of single passes, context 2,048", 5, True, _naive),
)


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m genosparse.benchmarking.page FOLDER PAGE", file=sys.stderr)  # noqa: T201
        return 2
    folder, page = map(Path, arguments)
    text = replace_section(page.read_text(encoding="utf-8"), performance_section(folder))
    with atomic_output(page) as partial:
        partial.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
