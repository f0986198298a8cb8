"""``genosparse embed``: embeddings of genomic intervals, as Parquet."""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig, ListConfig

import genosparse
from genosparse.embedding import check_arguments, embed, embedding_blocks, locate, write_parquet
from genosparse.encoder import Encoder
from genosparse.errors import ConfigError, FileFormatError, GenosparseError, IntervalError, OutputError
from genosparse.intervals import Interval
from genosparse.loggers import LOGGERS, open_logger
from genosparse.outputs import RUN_FILE, atomic_output, check_writable, fingerprint, open_run
from genosparse.pipelines import app
from genosparse.progress import progress
from genosparse.readers import Genome, read_intervals

__all__ = ["main"]

_IDENTITY = b"genosparse.run"


@app.pipeline(
    "embed", paths=("model", "genome", "aliases", "alignments", "reference", "intervals", "output", "run_dir")
)
def main(config: DictConfig) -> None:
    """Embed intervals block by block into ``run_dir``, then join the blocks into the output."""
    runtime = app.setup(config)
    output = Path(app.path(config, "output"))
    if output.suffix != ".parquet":
        raise ConfigError(f"output={output}: embeddings are written as Parquet; give a name that ends in .parquet")
    check_writable(output)
    overwrite = app.flag(config, "overwrite")
    app.choice(config, "logger", LOGGERS)
    both_strands = app.flag(config, "both_strands")
    layer, pool, batch_bases = config.layer, config.pool, config.batch_bases

    model = app.model_folder(config)
    encoder = Encoder.from_pretrained(model, device=runtime.device)
    check_arguments(encoder, layer, pool, batch_bases)
    options = app.genome_options(config)
    alignments = None if config.alignments is None else app.path(config, "alignments")
    reads = app.alignments_inputs(config, [] if alignments is None else [alignments])
    with (
        Genome(app.path(config, "genome"), **options) as genome,
        app.open_channels(config, encoder, genome, alignments) as channels,
    ):
        intervals = _read_intervals(
            app.path(config, "intervals"), genome, encoder.config.max_length, _kinds(config.features)
        )
        located = locate(encoder, genome, intervals)
        for interval in located:
            genome.tokens(interval)  # a letter that is no nucleotide is told before anything is written
        if channels is not None:
            channels.check(interval.contig for interval in located)

        metadata = {
            "genosparse.version": genosparse.__version__,
            "genosparse.model": encoder.fingerprint(),
            "genosparse.layer": str(layer),
            "genosparse.pool": str(pool),
            "genosparse.both_strands": str(both_strands).lower(),
        }
        identity = {
            "pipeline": "embed",
            **{key.removeprefix("genosparse."): value for key, value in metadata.items()},
            "genome": fingerprint(genome.path),
            "circular": sorted(genome.circular),
            "aliases": options["aliases"] and fingerprint(options["aliases"]),
            "alignments": app.alignments_identity(config, [alignments]),
            "intervals": app.fingerprint_intervals(intervals),
            "batch_bases": batch_bases,
            "precision": runtime.precision,
            "torch": torch.__version__,
        }
        metadata["genosparse.run"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        if output.exists() and not overwrite:
            _refuse_other_output(output, metadata)
            _finish_cleaning(Path(app.path(config, "run_dir")), identity)
            print(f"{output} is there already, made by the same command; overwrite=true makes it anew")  # noqa: T201
            return

        run_dir = Path(app.path(config, "run_dir"))
        keys = ("genome", "intervals", *(["aliases"] if options["aliases"] else []))
        inputs = [model, *(app.path(config, key) for key in keys), *reads]
        with open_run(run_dir, identity, owns=("parts", "wandb", "wandb-id"), overwrite=overwrite, inputs=inputs):
            parts = run_dir / "parts"
            parts.mkdir(exist_ok=True)
            paths = []
            bases = sum(interval.length for interval in intervals)
            with progress("embedding", bases, "bases") as bar:
                for number, block in enumerate(embedding_blocks(intervals, pool, batch_bases)):
                    paths.append(parts / f"{number:06}.parquet")
                    if not _is_whole(paths[-1]):
                        with atomic_output(paths[-1]) as partial, runtime.autocast():
                            embeddings = embed(
                                encoder,
                                genome,
                                block,
                                layer=layer,
                                pool=pool,
                                both_strands=both_strands,
                                batch_bases=batch_bases,
                                alignments=channels,
                            )
                            write_parquet(partial, [embeddings], encoder.config.d_model, metadata)
                    bar.advance(sum(interval.length for interval in block))
            with atomic_output(output) as partial:
                write_parquet(partial, _read_parts(paths), encoder.config.d_model, metadata)
            rows = pq.read_metadata(output).num_rows
            with open_logger(config.logger, run_dir=run_dir, name=config.name, config=app.as_dict(config)) as logger:
                logger.summarize({"intervals": len(intervals), "bases": bases, "rows": rows})
            _clean_up(run_dir)
    print(f"{output}: {rows} embeddings of {len(intervals)} intervals")  # noqa: T201


def _clean_up(run_dir: Path) -> None:
    """Remove what a finished run needs no more; not the whole folder, as others may keep things in it by now."""
    shutil.rmtree(run_dir / "parts", ignore_errors=True)
    (run_dir / RUN_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run_dir.rmdir()


def _finish_cleaning(run_dir: Path, identity: Mapping[str, Any]) -> None:
    """Clean up after a run that was killed between its output and its cleaning."""
    if (run_dir / RUN_FILE).exists():
        with contextlib.suppress(GenosparseError), open_run(run_dir, identity, owns=("parts",)):
            _clean_up(run_dir)


def _is_whole(part: Path) -> bool:
    """Whether a part is there and can be read; a damaged one is made again."""
    try:
        with part.open("rb") as file:
            pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException):
        return False
    return True


def _kinds(features: Any) -> set[str] | None:
    """The kinds of features that ``features=`` names; None for all."""
    if features is None:
        return None
    kinds = {str(kind) for kind in (features if isinstance(features, ListConfig) else [features])}
    if not kinds:
        raise ConfigError("features=[] names no kind of features; name some, as [gene,CDS], or leave it out for all")
    return kinds


def _read_intervals(source: str, genome: Genome, max_length: int, kinds: set[str] | None) -> list[Interval]:
    if source != "all":
        intervals = list(read_intervals(source, kinds=kinds, lengths=genome.contigs))
        if not intervals:
            wanted = "" if kinds is None else f" of the kinds {', '.join(sorted(kinds))}"
            raise FileFormatError(
                f"{source} has no intervals{wanted}; expected BED, GFF3, GTF, GenBank or EMBL with some"
            )
        return intervals
    for contig, length in genome.contigs.items():
        if length > max_length:
            raise IntervalError(
                f"intervals=all takes contigs whole, and {contig} of {genome.path} has {length} bases where the model "
                f"takes at most {max_length}; give a BED of tiles, as bedtools makewindows -w {max_length} makes"
            )
    return [Interval(contig, 0, length) for contig, length in genome.contigs.items()]


def _refuse_other_output(output: Path, metadata: Mapping[str, str]) -> None:
    """Raise unless a Parquet file was made by the same run."""
    try:
        with output.open("rb") as file:
            held: dict[bytes, Any] = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        held = {}
    if held.get(_IDENTITY) != metadata[_IDENTITY.decode()].encode():
        raise OutputError(
            f"output={output} exists and was made from other inputs or settings; pass overwrite=true or another output="
        )


def _read_parts(paths: list[Path]) -> Iterator[pa.Table]:
    for path in paths:
        with path.open("rb") as file:
            part = pq.ParquetFile(file)
            for group in range(part.num_row_groups):
                yield part.read_row_group(group)


if __name__ == "__main__":
    sys.exit(main())
