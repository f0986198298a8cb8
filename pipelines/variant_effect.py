"""``genosparse variant-effect``: score the variants of a VCF."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig

import genosparse
from genosparse.encoder import Encoder
from genosparse.errors import ConfigError, FileFormatError, GenosparseWarning, OutputError
from genosparse.inputs import STANDARD_INPUT, display_name
from genosparse.loggers import LOGGERS, open_logger
from genosparse.outputs import RUN_FILE, check_writable, fingerprint, open_run
from genosparse.pipelines import app
from genosparse.readers import Genome
from genosparse.variant_effect.records import InputSummary, read_records, scan_records
from genosparse.variant_effect.registry import resolve_scores
from genosparse.variant_effect.scores import (
    BLOCK_RECORDS,
    VariantScorer,
    check_context,
    find_contigs,
    longest_allele,
)
from genosparse.variant_effect.shards import BlockStore, Shard, merge_blocks, score_blocks
from genosparse.variant_effect.statuses import Status, check_references
from genosparse.variant_effect.writers import Provenance, open_writer, output_format

__all__ = ["main"]

_STANDARD_OUTPUT = "-"


@app.pipeline(
    "variant-effect", paths=("model", "genome", "aliases", "alignments", "reference", "variants", "output", "run_dir")
)
def main(config: DictConfig) -> None:
    """Score variants block by block into ``run_dir``, then write all records with their scores to the output."""
    output, run_dir = app.path(config, "output"), Path(app.path(config, "run_dir"))
    shard = None if config.shard is None else Shard.parse(str(config.shard))
    scores = resolve_scores(list(config.scores) if isinstance(config.scores, ListConfig) else str(config.scores))
    context = app.integer(config, "context", minimum=1)
    batch_bases = app.integer(config, "batch_bases", minimum=1)
    max_allele_length = longest_allele(
        None if config.max_allele_length is None else app.integer(config, "max_allele_length"), context
    )
    strict = app.flag(config, "strict")
    overwrite = app.flag(config, "overwrite")
    app.choice(config, "logger", LOGGERS)
    if shard is not None and overwrite:
        raise ConfigError(
            "overwrite=true with shard= would remove what other shards finished; remove the run_dir before the first"
        )
    to_bcf = output_format(output) == "bcf"
    if output != _STANDARD_OUTPUT:
        check_writable(output)
    inputs = [app.model_folder(config), *(app.path(config, key) for key in ("genome", "variants"))]
    options = app.genome_options(config)
    if options["aliases"] is not None:
        inputs.append(options["aliases"])
    alignments = None if config.alignments is None else app.path(config, "alignments")
    inputs += app.alignments_inputs(config, [] if alignments is None else [alignments])
    _check_not_an_input(output, inputs)

    runtime = app.setup(config)
    encoder = Encoder.from_pretrained(inputs[0]).to(runtime.device).eval()
    check_context(encoder, context)
    with (
        Genome(inputs[1], **options) as genome,
        _rereadable(inputs[2]) as variants,
        app.open_channels(config, encoder, genome, alignments) as channels,
    ):
        summary = scan_records(variants, all_declared=to_bcf)
        contigs = find_contigs(
            summary.contigs, genome, display_name(inputs[2]), summary.contig_lengths, summary.build_names
        )
        if strict:
            check_references((record.variant for record in read_records(variants)), genome, contigs)
        scorer = VariantScorer(
            encoder,
            genome,
            contigs,
            scores=scores,
            context=context,
            batch_bases=batch_bases,
            precision=runtime.precision,
            channels=channels,
            max_allele_length=max_allele_length,
        )
        model = encoder.fingerprint()
        identity = {
            "pipeline": "variant-effect",
            "model": model,
            "genome": fingerprint(inputs[1]),
            "circular": sorted(genome.circular),
            "aliases": options["aliases"] and fingerprint(options["aliases"]),
            "alignments": app.alignments_identity(config, [alignments]),
            "variants": fingerprint(variants),
            "scores": "auto" if scores.is_auto else list(scores.names),
            "context": context,
            "max_allele_length": max_allele_length,
            "batch_bases": batch_bases,
            "precision": runtime.precision,
            "block_records": BLOCK_RECORDS,
            "versions": {"genosparse": genosparse.__version__, "torch": torch.__version__},
        }
        if shard is None and not overwrite and Path(output).is_file() and not (run_dir / RUN_FILE).exists():
            raise OutputError(f"output={output} exists, and not from this run; pass overwrite=true or another output=")
        with open_run(
            run_dir, identity, owns=("blocks", "wandb", "wandb-id"), overwrite=overwrite, shared=True, inputs=inputs
        ) as resumes:
            if resumes:
                _say(f"taking up the run in {run_dir}")
            store = BlockStore(run_dir, scores.names)
            if shard is not None:
                with _stopping_well():
                    score_blocks(scorer, read_records(variants), summary.num_records, store, shard)
                _say(f"shard {shard} is done; when all are, the same command without shard= writes the output")
                return
            made_by = Provenance(genosparse.__version__, model, context, scores)
            with (
                open_logger(config.logger, run_dir=run_dir, name=config.name, config=app.as_dict(config)) as logger,
                _stopping_well(),
            ):
                score_blocks(scorer, read_records(variants), summary.num_records, store, Shard())
                with open_writer(output, summary.header_lines, made_by) as writer:
                    counts = merge_blocks(read_records(variants), store, scores.names, writer)
                logger.summarize({"records": summary.num_records, "alts": counts.total(), **counts})
    _summarise(counts, summary, output)


def _check_not_an_input(output: str, inputs: list[str]) -> None:
    if any(os.path.exists(given) and os.path.exists(output) and os.path.samefile(output, given) for given in inputs):
        raise ConfigError(f"output={output} is one of the inputs; give another name")


@contextlib.contextmanager
def _rereadable(variants: str) -> Iterator[Path]:
    """Give a path that can be read more than once; standard input and pipes are copied to a file first."""
    path = Path(variants)
    if variants != STANDARD_INPUT and (path.is_file() or path.is_dir() or not path.exists()):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="genosparse-") as folder:
        copy = Path(folder) / "input.vcf"
        with contextlib.ExitStack() as stack:
            source = sys.stdin.buffer if variants == STANDARD_INPUT else stack.enter_context(path.open("rb"))
            shutil.copyfileobj(source, stack.enter_context(copy.open("wb")))
        try:
            yield copy
        except FileFormatError as error:
            raise FileFormatError(str(error).replace(str(copy), display_name(variants))) from None


@contextlib.contextmanager
def _stopping_well() -> Iterator[None]:
    """Say, when a signal stops the work, that nothing finished is lost."""
    message = "stopped; the same command goes on from the finished blocks"
    try:
        yield
    except KeyboardInterrupt:
        raise app.Interrupted(signal.SIGINT, message) from None
    except app.Interrupted as stop:
        raise app.Interrupted(stop.signal_number, message) from None


def _summarise(counts: Counter[str], summary: InputSummary, output: str) -> None:
    total = counts.total()
    where = "standard output" if output == _STANDARD_OUTPUT else output
    lines = [f"{_counted(total, 'ALT')} in {_counted(summary.num_records, 'record')} -> {where}"]
    width = len(f"{max(counts.values(), default=0):,}")
    lines += [f"  {counts[status]:>{width},}  {status}" for status in reversed(Status) if counts[status]]
    _say("\n".join(lines))
    if counts[Status.REF_MISMATCH] > total / 10:
        mismatches = (
            f"{counts[Status.REF_MISMATCH]:,} of {total:,} ALTs have a REF that is not what the genome has there"
        )
        warnings.warn(f"{mismatches}; check that it is the right assembly", GenosparseWarning, stacklevel=1)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _say(text: str) -> None:
    sys.stderr.write(f"genosparse variant-effect: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
