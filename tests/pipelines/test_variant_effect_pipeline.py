"""``genosparse variant-effect`` from end to end: real files, real processes, every record and byte."""

import gzip
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pysam
import pysam.bcftools
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.pipelines.variant_effect import main
from genosparse.readers import Genome, read_variants
from genosparse.variant_effect import SCORES, score_variants

CONTEXT = 64
SMALL = [f"context={CONTEXT}", f"batch_bases={16 * CONTEXT}", "device=cpu", "threads=1"]
HEADER = """##fileformat=VCFv4.2
##contig=<ID=one,length=5000>
##contig=<ID=two,length=3000>
##contig=<ID=gone,length=3000>
##FILTER=<ID=q10,Description="low">
##INFO=<ID=AF,Number=A,Type=Float,Description="frequency">
##INFO=<ID=DP,Number=1,Type=Integer,Description="depth">
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1
"""
NUM_RECORDS = 2100  # two whole blocks and a part of one


@pytest.fixture(scope="module", autouse=True)
def own_threads():
    """Leave torch's threads, which the pipeline sets, to the tests after these as they were."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_sequence(generator, length):
    return "".join(generator.choice(list("ACGT"), size=length))


def make_records(sequences, num_records, generator):
    """SNVs for the most part, and now and then one of everything else."""
    lines = []
    for index in range(num_records):
        contig = ("one", "two")[index * 2 // num_records]
        position0 = int(generator.integers(0, len(sequences[contig]) - 3))
        ref = sequences[contig][position0]
        first, second, third = "ACGT".replace(ref, "")
        kind = index % 20
        alt = first
        if kind == 3:
            alt = f"{first},{second},{third}"
        elif kind == 7:
            alt = f"{ref}{first},{second}"
        elif kind == 9:
            alt = "."
        elif kind == 11:
            alt = f"{second},*,<DEL>"
        elif kind == 13:
            ref = first
            alt = second
        elif kind == 17:
            contig = "gone"
        qual = ("1e3", ".", "12.3456789012", "0")[index % 4]
        info = (".", "AF=0.00019968100", "DP=7;AF=1e-07")[index % 3]
        if alt.count(","):
            info = "DP=3"
        lines.append(f"{contig}\t{position0 + 1}\trs{index}\t{ref}\t{alt}\t{qual}\tPASS\t{info}\tGT\t0|1")
    return lines


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a genome, variants, and an untrained model."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(5)
    sequences = {"one": random_sequence(generator, 5000), "two": random_sequence(generator, 3000)}
    (folder / "g.fa").write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    (folder / "in.vcf").write_text(HEADER + "\n".join(make_records(sequences, NUM_RECORDS, generator)) + "\n")
    (folder / "few.vcf").write_text(HEADER + "\n".join(make_records(sequences, 40, generator)) + "\n")
    torch.manual_seed(0)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    config = EncoderConfig(d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, patterns=(pattern,), max_length=512)
    Encoder(config).save_pretrained(folder / "tiny")
    return folder


def arguments(inputs, variants, output, run_dir, *more):
    return [
        f"model={inputs / 'tiny'}",
        f"genome={inputs / 'g.fa'}",
        f"variants={variants}",
        f"output={output}",
        f"run_dir={run_dir}",
        *SMALL,
        *more,
    ]


def command(*given):
    return [sys.executable, "-m", "genosparse.cli", "variant-effect", *given]


def split(path):
    """Return the header and the record lines of VCF text, compressed or not."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode().splitlines()
    return [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]


def cut_out(info):
    return ";".join(entry for entry in info.split(";") if not entry.startswith("GS_")) or "."


def assert_same_columns(before, after):
    """Every record is there, in order, with its text; each that has an ALT has a status for each."""
    assert len(before) == len(after)
    for old_line, new_line in zip(before, after, strict=True):
        old, new = old_line.split("\t"), new_line.split("\t")
        assert new[:7] + new[8:] == old[:7] + old[8:]
        assert cut_out(new[7]) == old[7]
        added = dict(entry.split("=") for entry in new[7].split(";") if entry.startswith("GS_"))
        if old[4] == ".":
            assert added == {}
        else:
            num_alts = old[4].count(",") + 1
            for field in ("GS_LLR", "GS_DELTA_PLL", "GS_STATUS"):
                assert len(added[field].split(",")) == num_alts


@pytest.fixture(scope="module")
def scored(inputs, tmp_path_factory):
    """The output of one run without interruption or shards."""
    folder = tmp_path_factory.mktemp("scored")
    assert main(arguments(inputs, inputs / "in.vcf", folder / "out.vcf.gz", folder / "run")) == 0
    return folder / "out.vcf.gz"


def test_vcf_to_vcf_keeps_every_column_and_adds_info(inputs, scored):
    old_header, old = split(inputs / "in.vcf")
    header, records = split(scored)
    assert_same_columns(old, records)
    assert header[: len(old_header) - 1] + header[-1:] == old_header
    fingerprint = Encoder.from_pretrained(inputs / "tiny").fingerprint()
    assert f",Model={fingerprint},Scores=auto,Context={CONTEXT}>" in header[-2]
    statuses = [entry for line in records for entry in line.split("\t")[7].split(";") if entry.startswith("GS_STATUS")]
    assert set(statuses) == {
        "GS_STATUS=scored",
        "GS_STATUS=scored,scored,scored",
        "GS_STATUS=scored,scored",
        "GS_STATUS=scored,symbolic,symbolic",
        "GS_STATUS=ref_mismatch",
        "GS_STATUS=contig_missing",
    }
    assert pysam.bcftools.view("-H", str(scored)).count("\n") == NUM_RECORDS


def test_values_are_those_of_the_python_interface(inputs, scored):
    with Genome(inputs / "g.fa") as genome:
        encoder = Encoder.from_pretrained(inputs / "tiny")
        table = score_variants(
            encoder, genome, read_variants(inputs / "in.vcf"), context=CONTEXT, batch_bases=16 * CONTEXT
        )
    infos = [
        dict(entry.split("=") for entry in line.split("\t")[7].split(";") if "=" in entry) for line in split(scored)[1]
    ]
    values = {
        name: [value for info in infos for value in info.get(f"GS_{name.upper()}", "").split(",") if value]
        for name in ("llr", "delta_pll")
    }
    statuses = [status for info in infos for status in info.get("GS_STATUS", "").split(",") if status]
    assert statuses == table.status.tolist()
    for name in values:
        assert values[name] == ["." if np.isnan(value) else f"{value:.6g}" for value in table[name].tolist()]


def test_the_summary_counts_every_alt(inputs, tmp_path, capfd):
    assert main(arguments(inputs, inputs / "few.vcf", tmp_path / "out.tsv", tmp_path / "run")) == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    rows = (tmp_path / "out.tsv").read_text().splitlines()[1:]
    assert f"{len(rows)} ALTs in 40 records -> {tmp_path / 'out.tsv'}" in shown.err
    for status in ("scored", "symbolic", "ref_mismatch", "contig_missing"):
        assert f"{sum(row.endswith(status) for row in rows)}  {status}\n" in shown.err


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_give_the_same_bytes_in_any_order(inputs, scored, tmp_path, order):
    given = arguments(inputs, inputs / "in.vcf", tmp_path / "out.vcf.gz", tmp_path / "run")
    for index in order:
        assert main([*given, f"shard={index}/3"]) == 0
        assert not (tmp_path / "out.vcf.gz").exists()
        finished = sorted(path.name for path in (tmp_path / "run" / "blocks").iterdir())
        assert len(finished) == order.index(index) + 1
    assert main(given) == 0
    assert (tmp_path / "out.vcf.gz").read_bytes() == scored.read_bytes()


@pytest.mark.slow
def test_all_scores_in_sixteen_shards_or_in_one_give_the_same_bytes(inputs, tmp_path):
    wanted = f"scores=[{','.join(SCORES)}]"
    whole = arguments(inputs, inputs / "in.vcf", tmp_path / "whole.vcf.gz", tmp_path / "whole", wanted)
    process = subprocess.Popen(command(*whole), stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "whole" / "blocks").glob("0*.npz")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert main(whole) == 0
    shards = arguments(inputs, inputs / "in.vcf", tmp_path / "shards.vcf.gz", tmp_path / "shards", wanted)
    for index in range(16, 0, -1):
        assert main([*shards, f"shard={index}/16"]) == 0
    assert main(shards) == 0
    assert (tmp_path / "shards.vcf.gz").read_bytes() == (tmp_path / "whole.vcf.gz").read_bytes()


def test_shards_that_run_at_once_share_the_run_folder(inputs, scored, tmp_path):
    given = arguments(inputs, inputs / "in.vcf", tmp_path / "out.vcf.gz", tmp_path / "run")
    shards = [subprocess.Popen(command(*given, f"shard={index}/2")) for index in (1, 2)]
    assert [process.wait(300) for process in shards] == [0, 0]
    assert len(list((tmp_path / "run" / "blocks").iterdir())) == 3
    assert main(given) == 0
    assert (tmp_path / "out.vcf.gz").read_bytes() == scored.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_and_started_again(inputs, scored, tmp_path, number, capfd):
    given = arguments(inputs, inputs / "in.vcf", tmp_path / "out.vcf.gz", tmp_path / "run")
    blocks = tmp_path / "run" / "blocks"
    process = subprocess.Popen(command(*given), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(blocks.glob("0*.npz")):
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert errors.count("\n") == 1
        assert "the same command goes on" in errors
    assert not (tmp_path / "out.vcf.gz").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in blocks.glob("0*.npz")}
    assert 0 < len(finished) < 3

    assert main(given) == 0
    assert "taking up the run" in capfd.readouterr().err
    assert {name: (blocks / name).stat().st_mtime_ns for name in finished} == finished
    assert (tmp_path / "out.vcf.gz").read_bytes() == scored.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.vcf.gz", "run"]


def test_a_finished_run_again_writes_the_same_without_the_forward_passes(inputs, scored, tmp_path, capfd):
    given = arguments(inputs, inputs / "in.vcf", scored, scored.parent / "run")
    before = scored.read_bytes()
    started = time.monotonic()
    assert main(given) == 0
    assert time.monotonic() - started < 5
    assert scored.read_bytes() == before
    other = arguments(inputs, inputs / "in.vcf", tmp_path / "out.bcf", scored.parent / "run")
    assert main(other) == 0
    assert pysam.bcftools.view("-H", str(tmp_path / "out.bcf")) == pysam.bcftools.view("-H", str(scored))


def test_bcf_in_and_out(inputs, tmp_path):
    pysam.bcftools.view("-Ob", "-o", str(tmp_path / "in.bcf"), str(inputs / "few.vcf"), catch_stdout=False)
    for name in ("in.bcf", "few.vcf"):
        variants = tmp_path / name if name == "in.bcf" else inputs / name
        assert main(arguments(inputs, variants, tmp_path / f"{name}.out.bcf", tmp_path / f"run-{name}")) == 0
    outputs = [pysam.bcftools.view("-H", str(tmp_path / f"{name}.out.bcf")) for name in ("in.bcf", "few.vcf")]
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 40
    assert "##INFO=<ID=GS_LLR,Number=A,Type=Float" in pysam.bcftools.view("-h", str(tmp_path / "in.bcf.out.bcf"))


def test_tsv_and_parquet_agree(inputs, tmp_path):
    for name in ("out.tsv", "out.parquet"):
        assert main(arguments(inputs, inputs / "few.vcf", tmp_path / name, tmp_path / "run")) == 0
    header, *rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert header == ["contig", "pos", "id", "ref", "alt", "GS_LLR", "GS_DELTA_PLL", "GS_STATUS"]
    assert [int(row[1]) - 1 for row in rows] == table["position0"]
    assert [row[4] for row in rows] == table["alt"]
    assert [row[7] for row in rows] == table["GS_STATUS"]
    for column in (5, 6):
        values = table[header[column]]
        assert [row[column] for row in rows] == ["." if value is None else f"{value:.6g}" for value in values]
        assert any(row[column] != "." for row in rows)
    alts = [alt for line in split(inputs / "few.vcf")[1] for alt in line.split("\t")[4].split(",") if alt != "."]
    assert [row[4] for row in rows] == alts


def test_any_set_of_scores(inputs, tmp_path, capfd):
    """All of them in one pass: declared, in every format, the values of the Python interface."""
    wanted = f"scores=[{','.join(SCORES)}]"
    for name in ("out.bcf", "out.tsv", "out.parquet"):
        assert main(arguments(inputs, inputs / "few.vcf", tmp_path / name, tmp_path / "run", wanted)) == 0
    with Genome(inputs / "g.fa") as genome:
        encoder, variants = Encoder.from_pretrained(inputs / "tiny"), read_variants(inputs / "few.vcf")
        table = score_variants(
            encoder, genome, variants, scores=list(SCORES), context=CONTEXT, batch_bases=16 * CONTEXT
        )
    columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
    tsv = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    header = pysam.bcftools.view("-h", str(tmp_path / "out.bcf"))
    for name, score in SCORES.items():
        values = table[name].tolist()
        assert sum(not np.isnan(value) for value in values) > 20
        np.testing.assert_array_equal(np.array(columns[score.field], float), values)
        shown = ["." if np.isnan(value) else f"{value + 0.0:.6g}" for value in values]
        assert [row[tsv[0].index(score.field)] for row in tsv[1:]] == shown
        assert f'##INFO=<ID={score.field},Number=A,Type=Float,Description="{score.description}">' in header
        assert score.units in header
    capfd.readouterr()
    assert main(arguments(inputs, inputs / "few.vcf", tmp_path / "out.tsv", tmp_path / "run", "scores=llr")) == 2
    assert "scores was" in capfd.readouterr().err
    assert main(arguments(inputs, inputs / "few.vcf", tmp_path / "llr.tsv", tmp_path / "other", "scores=llr")) == 0
    assert (tmp_path / "llr.tsv").read_text().splitlines()[0].split("\t")[5:] == ["GS_LLR", "GS_STATUS"]
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "llr.tsv", tmp_path / "other", "scores=[llr,delta_pll]")
    assert main(given) == 2


def test_strict_passes_where_all_refs_are_right(inputs, tmp_path):
    _, records = split(inputs / "few.vcf")
    right = [line for index, line in enumerate(records) if index % 20 != 13]
    (tmp_path / "right.vcf").write_text(HEADER + "\n".join(right) + "\n")
    assert main(arguments(inputs, tmp_path / "right.vcf", tmp_path / "out.vcf", tmp_path / "run", "strict=true")) == 0
    assert len(split(tmp_path / "out.vcf")[1]) == 38


def test_standard_input_and_output(inputs, tmp_path):
    given = arguments(inputs, "-", "-", tmp_path / "run")
    with (inputs / "few.vcf").open("rb") as file:
        result = subprocess.run(command(*given), stdin=file, capture_output=True, check=True, timeout=300)
    assert main(arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")) == 0  # the same content
    assert result.stdout == (tmp_path / "out.vcf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.vcf", "run"]


def test_a_mistake_on_standard_input_is_named_so(inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{HEADER}one\tx\n".encode())))
    assert main(arguments(inputs, "-", tmp_path / "out.vcf", tmp_path / "run")) == 2
    errors = capfd.readouterr().err
    assert "error: standard input, line 10:" in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_scoring_a_scored_file_again_replaces_the_fields(inputs, tmp_path):
    for variants, output, run_dir in (("few.vcf", "once.vcf", "a"), (tmp_path / "once.vcf", "twice.vcf", "b")):
        assert main(arguments(inputs, inputs / variants, tmp_path / output, tmp_path / run_dir)) == 0
    assert (tmp_path / "once.vcf").read_bytes() == (tmp_path / "twice.vcf").read_bytes()


def test_crlf_line_ends(inputs, tmp_path):
    (tmp_path / "crlf.vcf").write_bytes((inputs / "few.vcf").read_bytes().replace(b"\n", b"\r\n"))
    for variants, output in ((inputs / "few.vcf", "lf"), (tmp_path / "crlf.vcf", "crlf")):
        assert main(arguments(inputs, variants, tmp_path / f"{output}.out.vcf", tmp_path / output)) == 0
    assert (tmp_path / "lf.out.vcf").read_bytes() == (tmp_path / "crlf.out.vcf").read_bytes()


def test_contig_names_that_differ_by_chr_are_matched_with_one_notice(inputs, tmp_path, capfd):
    text = (inputs / "few.vcf").read_text().replace("one", "chrone").replace("two", "chrtwo")
    (tmp_path / "chr.vcf").write_text(text)
    assert main(arguments(inputs, tmp_path / "chr.vcf", tmp_path / "out.tsv", tmp_path / "run")) == 0
    errors = capfd.readouterr().err
    assert errors.count("warning") == 1
    assert "'chrone' is 'one'" in errors
    rows = (tmp_path / "out.tsv").read_text().splitlines()[1:]
    assert any(row.startswith("chrone\t") and row.endswith("\tscored") for row in rows)


@pytest.mark.parametrize("name", ["out.vcf", "out.bcf", "out.parquet"])
def test_a_vcf_without_records(inputs, tmp_path, name):
    (tmp_path / "none.vcf").write_text(HEADER)
    assert main(arguments(inputs, tmp_path / "none.vcf", tmp_path / name, tmp_path / "run")) == 0
    assert (tmp_path / name).exists()


def test_another_setting_or_input_stops_and_overwrite_starts_anew(inputs, tmp_path, capfd):
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")
    assert main(given) == 0
    before = (tmp_path / "out.vcf").read_bytes()
    capfd.readouterr()
    assert main([*given, "context=32"]) == 2
    assert "context was 64, now 32" in capfd.readouterr().err
    (tmp_path / "other.vcf").write_text((inputs / "few.vcf").read_text().replace("rs1\t", "rs1b\t"))
    other = arguments(inputs, tmp_path / "other.vcf", tmp_path / "out.vcf", tmp_path / "run")
    assert main(other) == 2
    assert "variants was" in capfd.readouterr().err
    assert (tmp_path / "out.vcf").read_bytes() == before
    assert main([*given, "threads=2", "logger=csv", f"output={tmp_path / 'more.vcf'}"]) == 0  # these may change
    assert main([*other, "overwrite=true"]) == 0
    assert (tmp_path / "out.vcf").read_bytes() != before


def test_an_output_of_another_run_is_not_replaced_unasked(inputs, tmp_path, capfd):
    (tmp_path / "out.vcf").write_text("precious\n")
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")
    for _ in range(2):
        assert main(given) == 2
        assert "exists, and not from this run" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "out.vcf").read_text() == "precious\n"
    assert main([*given, "overwrite=true"]) == 0
    assert "GS_LLR" in (tmp_path / "out.vcf").read_text()


def test_a_contig_of_another_length_is_not_taken_for_an_alias(inputs, tmp_path, capfd):
    """The chrM of UCSC's hg19 is not the MT of GRCh37; the header's length says so."""
    (tmp_path / "g.fa").write_text(f">MT\n{'ACGT' * 50}\n>other\nACGT\n")
    for length, status in ((200, "scored"), (201, "contig_missing")):
        (tmp_path / "in.vcf").write_text(
            f"##fileformat=VCFv4.2\n##contig=<ID=chrM,length={length}>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
            "chrM\t5\t.\tA\tC\t.\t.\t.\nother\t1\t.\tA\tC\t.\t.\t.\n"
        )
        given = arguments(inputs, tmp_path / "in.vcf", tmp_path / "out.vcf", tmp_path / "run", "overwrite=true")
        assert main([*given, f"genome={tmp_path / 'g.fa'}"]) == 0
        first = (tmp_path / "out.vcf").read_text().splitlines()[-2]
        assert first.endswith(f"GS_STATUS={status}")
    assert "lengths differ" in capfd.readouterr().err


def test_a_shard_never_starts_anew(inputs, tmp_path, capfd):
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")
    assert main([*given, "shard=1/2", "overwrite=true"]) == 2
    assert "what other shards finished" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reference_of_another_assembly_gives_one_warning(inputs, tmp_path, capfd):
    (tmp_path / "other.fa").write_text(">one\n" + "A" * 5000 + "\n>two\n" + "A" * 3000 + "\n")
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.tsv", tmp_path / "run")
    assert main([*given, f"genome={tmp_path / 'other.fa'}"]) == 0
    assert "check that it is the right assembly" in capfd.readouterr().err


@pytest.mark.parametrize(
    "reference, length, told",
    [("hg19", None, "header says"), ("hg38", 48129895, "lengths of its contigs say"), ("hg19", 46709983, None)],
)
def test_variants_of_another_build_give_one_warning(inputs, tmp_path, capfd, reference, length, told):
    (tmp_path / "hg38.fa").write_text(f">chr21\n{'A' * 46709983}\n")
    (tmp_path / "in.vcf").write_text(
        f"##fileformat=VCFv4.2\n##reference=file:///ref/{reference}.fa\n"
        f"##contig=<ID=chr21{'' if length is None else f',length={length}'}>\n"
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr21\t5\t.\tA\tC\t.\t.\t.\n"
    )
    given = arguments(inputs, tmp_path / "in.vcf", tmp_path / "out.tsv", tmp_path / "run")
    assert main([*given, f"genome={tmp_path / 'hg38.fa'}"]) == 0
    errors = capfd.readouterr().err
    assert errors.count("GRCh37 (hg19)") == (told is not None)
    assert (f"in.vcf is of GRCh37 (hg19), as {'the ' if length else 'its '}{told}" in errors) == (told is not None)


def test_aliases_and_circular_contigs(inputs, tmp_path, capfd):
    (tmp_path / "names.tsv").write_text("NC_1\tone\n")
    text = (inputs / "few.vcf").read_text().replace("\none\t", "\nNC_1\t")
    (tmp_path / "in.vcf").write_text(text.replace("ID=one,", "ID=NC_1,"))
    outputs = {}
    for name, more in (("line", []), ("ring", ["circular=[one]"])):
        given = arguments(inputs, tmp_path / "in.vcf", tmp_path / f"{name}.tsv", tmp_path / name, *more)
        assert main([*given, f"aliases={tmp_path / 'names.tsv'}"]) == 0
        outputs[name] = (tmp_path / f"{name}.tsv").read_text()
    assert "matched to" not in capfd.readouterr().err
    assert main(arguments(inputs, inputs / "few.vcf", tmp_path / "named.tsv", tmp_path / "named")) == 0
    assert outputs["line"] == (tmp_path / "named.tsv").read_text().replace("\none\t", "\nNC_1\t")
    with Genome(inputs / "g.fa", circular=["one"]) as genome:
        encoder = Encoder.from_pretrained(inputs / "tiny").eval()
        table = score_variants(encoder, genome, read_variants(inputs / "few.vcf"), context=CONTEXT)
    column = outputs["ring"].splitlines()[0].split("\t").index("GS_LLR")
    scores = [line.split("\t")[column] for line in outputs["ring"].splitlines()[1:]]
    for text, score in zip(scores, table["llr"], strict=True):
        assert np.isnan(score) if text in ("", ".", "nan") else abs(float(text) - score) < 1e-4
    given = arguments(inputs, tmp_path / "in.vcf", tmp_path / "line.tsv", tmp_path / "line", "circular=[one]")
    assert main([*given, f"aliases={tmp_path / 'names.tsv'}"]) == 2
    assert "circular" in capfd.readouterr().err


MISTAKES = {
    "no such VCF": (["variants=absent.vcf"], "absent.vcf does not exist"),
    "no such genome": (["genome=absent.fa"], "absent.fa does not exist"),
    "no such model": (["model=absent"], "absent"),
    "empty VCF": (["variants=empty.vcf"], "empty.vcf is empty"),
    "empty genome": (["genome=empty.fa"], "empty.fa is empty"),
    "a genome that is a VCF": (["genome=in.vcf"], "in.vcf"),
    "protein letters": (["genome=protein.fa"], "protein.fa"),
    "no contig in the genome": (["variants=elsewhere.vcf"], "'chrX'"),
    "a malformed record": (["variants=bad.vcf"], "bad.vcf, line 10"),
    "a truncated model": (["model=broken"], "broken"),
    "an unknown key": (["contxt=64"], "contxt"),
    "no such folder for the output": (["output=nowhere/out.vcf"], "nowhere"),
    "an output that is a folder": (["output=tiny"], "tiny"),
    "an unknown suffix": (["output=out.txt"], ".parquet"),
    "output over an input": (["output=in.vcf"], "is one of the inputs"),
    "a context over max_length": (["context=513"], "context=513: expected 1 to 512"),
    "a context that is none": (["context=many"], "context=many"),
    "a shard that is none": (["shard=4/3"], "shard=4/3"),
    "an allele length over the context": (["max_allele_length=65"], "max_allele_length=65: expected 1 to 64 bases"),
    "a REF that is not the genome's, strictly": (["strict=true"], "has the REF"),
    "strict that is neither": (["strict=perhaps"], "strict=perhaps is neither true nor false"),
    "an unknown score": (["scores=cadd"], "'cadd' is not a score"),
    "a run folder that is a file": (["run_dir=in.vcf"], "in.vcf"),
    "a run folder of something else": (["run_dir=tiny"], "tiny"),
    "an unknown logger": (["logger=paper"], "logger=paper"),
    "BCF of what is not declared": (["variants=undeclared.vcf", "output=out.bcf"], "FILTER 'q20' is not declared"),
}


@pytest.fixture(scope="module")
def mistakes(inputs):
    """Adds files with something wrong to the inputs."""
    record = "one\t1\t.\tA\tC\t.\t{filter}\t.\tGT\t.\n"
    (inputs / "empty.vcf").write_text("")
    (inputs / "empty.fa").write_text("")
    (inputs / "protein.fa").write_text(">one\nMSLEFPQILWY\n")
    (inputs / "elsewhere.vcf").write_text(HEADER + record.format(filter=".").replace("one", "chrX"))
    (inputs / "bad.vcf").write_text(HEADER + record.format(filter=".").replace("\t1\t", "\tfirst\t"))
    (inputs / "undeclared.vcf").write_text(HEADER + record.format(filter="q20"))
    (inputs / "broken").mkdir()
    (inputs / "broken" / "config.json").write_bytes((inputs / "tiny" / "config.json").read_bytes())
    weights = (inputs / "tiny" / "model.safetensors").read_bytes()
    (inputs / "broken" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return inputs


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistakes, tmp_path, monkeypatch, capfd, mistake):
    monkeypatch.chdir(mistakes)
    before = {path: path.read_bytes() for path in mistakes.rglob("*") if path.is_file() and path.suffix != ".fai"}
    changed, expected = MISTAKES[mistake]
    keys = {change.partition("=")[0] for change in changed}
    given = [
        "model=tiny",
        "genome=g.fa",
        "variants=in.vcf",
        f"output={tmp_path / 'out.vcf'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    status = main([*(setting for setting in [*given, *SMALL] if setting.partition("=")[0] not in keys), *changed])
    shown = capfd.readouterr()
    assert status == 2
    assert shown.err.startswith("genosparse variant-effect: error: ")
    assert expected in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []
    after = {path: path.read_bytes() for path in mistakes.rglob("*") if path.is_file() and path.suffix != ".fai"}
    assert after == before


@pytest.mark.parametrize("left_out", ["model", "genome", "variants", "output"])
def test_a_mandatory_value_left_out(inputs, tmp_path, capfd, left_out):
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")
    assert main([setting for setting in given if not setting.startswith(f"{left_out}=")]) == 2
    errors = capfd.readouterr().err
    assert f"missing {left_out}=" in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_script_of_a_checkout_is_the_command(inputs, tmp_path):
    script = os.path.abspath("pipelines/variant_effect.py")
    given = arguments(inputs, inputs / "few.vcf", tmp_path / "out.vcf", tmp_path / "run")
    subprocess.run([sys.executable, script, *given], check=True, capture_output=True, timeout=300)
    assert len(split(tmp_path / "out.vcf")[1]) == 40


REAL = {
    "clinvar": ("human_chr20_b37/20.fa.gz", "human_chr20_b37/clinvar.b37.chr20.vcf.gz", 300),
    "1000 genomes sites": (
        "human_chr20_b37/20.fa.gz",
        "human_chr20_b37/1000G_phase3_chr20_1000001-2000000_sites.vcf.gz",
        300,
    ),
    "1000 genomes panel": (
        "human_chr20_b37/20.fa.gz",
        "human_chr20_b37/1000G_chr20_1-4Mb_300hap_shapeit4ref.vcf.gz",
        50,
    ),
    "giab": ("human_chr20_b37/20.fa.gz", "human_chr20_b37/test_nist.b37_chr20_100kbp_at_10mb.vcf.gz", 300),
    "dbsnp": (
        "human_1mb/Homo_sapiens_assembly19_chr1_1M.fasta",
        "human_1mb/Homo_sapiens_assembly19.dbsnp135.chr1_1M.exome_intervals.vcf",
        300,
    ),
    "yeast": ("yeast/S_cerevisiae.fasta.gz", "yeast/SK1_vs_S288C_snps.vcf.gz", 300),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_every_record_of_real_variants_comes_out(inputs, test_data, tmp_path, capfd, name):
    genome, variants, most = REAL[name]
    header, records = split(test_data / variants)
    # From all over the file, so that indels, multi-allelic sites and odd INFO are among them.
    records = records[:: max(1, len(records) // most)]
    (tmp_path / "in.vcf").write_text("\n".join([*header, *records]) + "\n")
    given = arguments(inputs, tmp_path / "in.vcf", tmp_path / "out.vcf.gz", tmp_path / "run")
    assert main([*given, f"genome={test_data / genome}"]) == 0
    assert_same_columns(records, split(tmp_path / "out.vcf.gz")[1])
    assert "ref_mismatch" not in capfd.readouterr().err
    one_by_one = [line.split("\t")[:5] for line in pysam.bcftools.view("-H", str(tmp_path / "out.vcf.gz")).splitlines()]
    assert one_by_one == [record.split("\t")[:5] for record in records]
