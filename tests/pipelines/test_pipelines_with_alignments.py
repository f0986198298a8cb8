"""``embed``, ``variant-effect`` and ``evaluate`` with alignments: results, identity of a run, mistakes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sam_files import sam_line, write_bam, write_sample

import genosparse as gs
from genosparse.attention import SparsePattern
from genosparse.channels import CHANNELS
from genosparse.encoder.channels import encoder_channels
from genosparse.evaluation import TestedSequences
from genosparse.pipelines import embed, evaluate, variant_effect
from genosparse.pretraining import HeldOut
from genosparse.pretraining import evaluate as measure

CONTIGS = {"one": 300, "two": 120}
COMMANDS = {
    "embed": (embed.main, ["intervals=r.bed", "output=out.parquet", "pool=base"]),
    "variant-effect": (variant_effect.main, ["variants=v.vcf", "output=out.parquet", "context=64"]),
    "evaluate": (evaluate.main, ["intervals=r.bed", "output=out.parquet", "context=33", "bootstraps=0"]),
}
COLUMNS = {"embed": "embedding", "variant-effect": "GS_LLR", "evaluate": "bits_per_base"}


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a genome, a sample's reads, and models with channels and without."""
    monkeypatch.chdir(tmp_path)
    fasta, bam = write_sample(tmp_path, CONTIGS)
    fasta.rename("g.fa")
    bam.rename("reads (1)=x.bam")
    genome = gs.Genome("g.fa")
    Path("r.bed").write_text("one\t20\t80\ta\t0\t-\ntwo\t0\t33\tb\t0\t+\n")
    ref = genome.fetch(gs.Interval("one", 140, 141))
    alts = ",".join("ACGT".replace(ref, ""))
    Path("v.vcf").write_text(
        f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t141\t.\t{ref}\t{alts}\t.\t.\t.\n"
    )
    for name, channels in (("with", CHANNELS), ("without", ())):
        torch.manual_seed(0)
        pattern = SparsePattern(window=8, stride=16, num_global=1)
        config = gs.EncoderConfig(
            d_model=16, num_layers=2, num_heads=2, patterns=(pattern,), max_length=300, channels=channels
        )
        encoder = gs.Encoder(config)
        with torch.no_grad():
            encoder.head.linear.weight.normal_()
            if channels:
                encoder.channel_projection.weight.normal_()
        encoder.save_pretrained(name)
    return tmp_path


def run(command: str, *arguments: str, model: str = "with") -> int:
    main, given = COMMANDS[command]
    return main([f"model={model}", "genome=g.fa", *given, "threads=1", *arguments])


def numbers(command: str) -> np.ndarray:
    values = np.array(pq.read_table("out.parquet")[COLUMNS[command]].to_pylist(), np.float32)
    return values[:2] if command == "evaluate" else values  # all sites, both strands and one


def expected(command: str, alignments: gs.Alignments) -> np.ndarray:
    encoder, genome = gs.Encoder.from_pretrained("with"), gs.Genome("g.fa")
    if command == "embed":
        intervals = [gs.Interval("one", 20, 80, "-"), gs.Interval("two", 0, 33)]
        return gs.embed(encoder, genome, intervals, pool="base", alignments=alignments).embedding
    if command == "evaluate":
        intervals = [gs.Interval("one", 20, 80), gs.Interval("two", 0, 33)]
        channels = encoder_channels(encoder, genome, alignments)
        held_out = HeldOut(TestedSequences(genome, intervals, context=33, channels=channels), seed=0)
        settings = [{"both_strands": both} for both in (True, False)]
        return np.array([measure(encoder, held_out, batch_windows=1, **each)["bits_per_base"] for each in settings])
    return gs.score_variants(encoder, genome, gs.read_variants("v.vcf"), context=64, alignments=alignments)["llr"]


@pytest.mark.parametrize("command", COMMANDS)
def test_results_are_those_of_the_library(command: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "alignments=reads (1)=x.bam") == 0
    assert "warning" not in capsys.readouterr().err
    plain = expected(command, gs.Alignments("reads (1)=x.bam"))
    np.testing.assert_allclose(numbers(command), plain, atol=1e-5)
    given = ["filters.exclude_flags=[REVERSE,DUP]", "filters.min_base_quality=10", "filters.max_depth=4"]
    assert run(command, "alignments=reads (1)=x.bam", *given) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert run(command, "alignments=reads (1)=x.bam", *given, "overwrite=true") == 0
    filters = gs.ReadFilters(exclude_flags=0x10 | 0x400, min_base_quality=10, max_depth=4)
    filtered = expected(command, gs.Alignments("reads (1)=x.bam", filters=filters))
    np.testing.assert_allclose(numbers(command), filtered, atol=1e-5)
    assert np.abs(filtered - plain).max() > 1e-3


@pytest.mark.parametrize("command", COMMANDS)
def test_without_alignments_channels_are_0_with_one_notice(
    command: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 0
    errors = capsys.readouterr().err
    assert errors.count("warning") == 1
    assert "warning: the model takes channels of alignments (depth, A, C" in errors
    found = numbers(command)
    assert run(command, "alignments=reads (1)=x.bam") == 2  # nor is it the same run
    write_bam(Path("empty.bam"), [], "@SQ\tSN:one\tLN:300\n@SQ\tSN:two\tLN:120\n")
    assert run(command, "alignments=empty.bam", "overwrite=true") == 0
    assert "no read of empty.bam counts" in capsys.readouterr().err
    np.testing.assert_array_equal(numbers(command), found)


def test_shards_and_resumed_blocks_have_the_same_bytes(work: Path) -> None:
    arguments = ["alignments=reads (1)=x.bam", "run_dir=shared"]
    assert run("variant-effect", *arguments, "shard=1/2") == 0
    assert run("variant-effect", *arguments, "shard=2/2") == 0
    assert run("variant-effect", *arguments) == 0
    shards = Path("out.parquet").read_bytes()
    assert run("variant-effect", "alignments=reads (1)=x.bam", "overwrite=true") == 0
    assert Path("out.parquet").read_bytes() == shards
    assert run("variant-effect", *arguments[:1], "run_dir=shared", "filters.min_mapping_quality=20", "shard=1/2") == 2


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["model=without", "alignments=reads (1)=x.bam"], "the model takes no channels of alignments"),
        (["alignments=none.bam"], "none.bam does not exist"),
        (["alignments=g.fa"], "g.fa is not a BAM, CRAM or SAM file"),
        (["alignments=cut.bam"], "cut.bam is truncated"),
        (["alignments=other.bam"], "no contig of other.bam ('chrX') is in g.fa ('one', 'two')"),
        (["alignments=free.bam"], "free.bam declares no contigs"),
        (["alignments=reads (1)=x.bam", "reference=none.fa"], "none.fa does not exist"),
        (["reference=g.fa"], "reference says how alignments are read, and none are given"),
        (["filters.max_depth=3"], "filters says how alignments are read, and none are given"),
        (["alignments=reads (1)=x.bam", "filters.max_depth=0"], "filters.max_depth=0: expected a whole number from 1"),
        (["alignments=reads (1)=x.bam", "filters.exclude_flags=[DUPE]"], "expected a number, or some of PAIRED"),
        (["alignments=reads (1)=x.bam", "filters.require_flags=UNMAP"], "have bits in common"),
        (["alignments=reads (1)=x.bam", "filters.count_overlaps=1"], "filters.count_overlaps=1 is neither true nor"),
        (["alignments=reads (1)=x.bam", "filters=5"], "filters=5: expected settings"),
        (["alignments=reads (1)=x.bam", "filters.min_quality=5"], "filters.min_quality"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    command: str, work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("cut.bam").write_bytes(Path("reads (1)=x.bam").read_bytes()[:-28])
    write_bam(Path("other.bam"), [sam_line("a", 1, "4M", contig="chrX")], "@SQ\tSN:chrX\tLN:300\n")
    write_bam(Path("free.bam"), [sam_line("u", 0, "*", flags=4, contig="*", bases="ACGT")], "@HD\tVN:1.6\n")
    before = sorted(Path().rglob("*"))
    assert run(command, *arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"genosparse {command}: error: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert sorted(Path().rglob("*")) == before


def test_names_of_contigs_are_matched_with_one_notice(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "@SQ\tSN:chrone\tLN:300\n@SQ\tSN:chrtwo\tLN:120\n"
    write_bam(Path("chr.bam"), [sam_line("a", 21, "60M", contig="chrone")], header)
    assert run("embed", "alignments=chr.bam") == 0
    errors = capsys.readouterr().err
    assert errors.count("warning") == 1
    assert "contigs of chr.bam are matched to g.fa by name: 'chrone' is 'one', 'chrtwo' is 'two'" in errors
    Path("names.txt").write_text("chrone one\nchrtwo two\n")
    assert run("embed", "alignments=chr.bam", "aliases=names.txt", "overwrite=true") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.realdata
def test_real_variants_with_reads_as_bam_and_as_cram(
    test_data: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NA12878's reads name the chromosome chr20, the genome 20; CRAM is decoded with the genome itself."""
    folder = test_data / "human_chr20_b37"
    shared = [
        "model=with",
        f"genome={folder / '20.fa.gz'}",
        f"variants={folder / 'test_nist.b37_chr20_100kbp_at_10mb.vcf.gz'}",
    ]
    shared += ["context=64", "threads=1"]
    scores = []
    for name in ("NA12878_S1.chr20.10_10p1mb.bam", "NA12878_S1.chr20.10_10p1mb.derived.cram", None):
        given = (
            ["alignments=null"] if name is None else [f"alignments={folder / name}", "filters.min_mapping_quality=20"]
        )
        assert variant_effect.main([*shared, *given, "output=out.parquet", "overwrite=true"]) == 0
        errors = capsys.readouterr().err
        told = [line for line in errors.splitlines() if "warning" in line]
        # One of the variants, which say chr20 too; and one of the reads, or that there are none.
        assert len(told) == 2
        assert sum("'chr20' is '20'" in line for line in told) == (1 if name is None else 2)
        table = pq.read_table("out.parquet").to_pylist()
        scores.append(
            {
                row["position0"]: row["GS_DELTA_PLL"] if row["GS_LLR"] is None else row["GS_LLR"]
                for row in table
                if row["GS_STATUS"] == "scored"
            }
        )
    assert len(scores[0]) > 150
    with_bam, with_cram, without = (np.array(list(each.values())) for each in scores)
    # The CRAM lacks the few reads whose mates are on other chromosomes.
    assert np.mean(np.abs(with_bam - with_cram) < 1e-5) > 0.8
    assert np.mean(np.abs(with_bam - without) < 1e-5) < 0.05
