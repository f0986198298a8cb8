"""``genosparse pretrain``: a masked-base encoder from genomes or reads."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

import genosparse
from genosparse.channels import CHANNELS
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.encoder.channels import notice_without_alignments
from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.intervals import Interval, read_bed
from genosparse.loggers import LOGGERS, CsvTable, Logger, open_logger
from genosparse.outputs import atomic_output, fingerprint, holds_run, open_run
from genosparse.pipelines import app
from genosparse.plotting import plot_loss_curve
from genosparse.pretraining import (
    Corpus,
    HeldOut,
    MaskingSettings,
    ReadCorpus,
    Sampling,
    TrainerSettings,
    TrainingResult,
    ValidationBlocks,
    evaluate,
    model_card,
    train,
)
from genosparse.pretraining.card import lineage
from genosparse.pretraining.leakage import KMER, Leakage, leakage
from genosparse.pretraining.loop import CHECKPOINT, check_one_process, check_training, columns
from genosparse.pretraining.masking import MaskedWindows
from genosparse.pretraining.windows import WindowSource
from genosparse.readers import Alignments, Genome, GenomeChannels, ReadFilters, default_token_cache, read_tokens

__all__ = ["main"]

_DEFAULT_MINUTES = 40
METRICS_FILE = "metrics.json"
TABLE_FILE = "metrics.csv"
CURVE_FILE = "loss_curve.png"


_BED_KEYS = ("data.regions", "data.exclude")
_PATHS = (
    "data.genome",
    "data.validation_genomes",
    "data.cache",
    "data.aliases",
    "data.reads",
    "data.alignments",
    "data.reference",
    *_BED_KEYS,
    "init",
    "run_dir",
)
# Channels of a genome are kept where they take no more than this, in each process: six million positions of all.
_CHANNEL_CACHE_BYTES = 1 << 28
# Held-out figures tell little of new sequence where more of it than this was seen. Repeats alone make some per cent.
_MOST_LEAKAGE = 0.2


@app.pipeline("pretrain", paths=_PATHS)
def main(config: DictConfig) -> None:
    """Train, or go on training, and end with a model folder, a card and a curve."""
    check_one_process()
    runtime = app.setup(config)
    precision = _training_precision(config, runtime)
    if config.trainer.max_minutes == "auto":
        config.trainer.max_minutes = None if config.trainer.max_steps is not None else _DEFAULT_MINUTES
    settings = _settings(TrainerSettings, config.trainer, "trainer")
    masking = _settings(MaskingSettings, config.data.masking, "data.masking")
    app.choice(config, "logger", LOGGERS)
    overwrite = app.flag(config, "overwrite")
    checks_leak = app.flag(config, "data.leak_check")
    context = app.integer(config, "data.context", minimum=1)
    run_dir = Path(app.path(config, "run_dir"))

    torch.manual_seed(runtime.seed)
    encoder = _make_encoder(config)
    ancestors = [] if config.init is None else lineage(encoder, Path(app.model_folder(config, "init")))
    if config.init is not None and encoder.config.trained_context and not app.is_given("data.context"):
        context = config.data.context = encoder.config.trained_context
    if context > encoder.config.max_length:
        raise ConfigError(
            f"data.context={context} is longer than the model's max_length={encoder.config.max_length}; lower it, or "
            "raise model.max_length"
        )
    paths, reads = _sources(config)
    alignments = _alignments(config, len(paths))
    held_out_paths = _validation_genomes(config)
    reads_and_reference = app.alignments_inputs(
        config, [*reads, *(path for path in alignments if path is not None)], "data."
    )
    beds = {key: app.path(config, key) for key in _BED_KEYS if OmegaConf.select(config, key) is not None}
    intervals = {key: list(read_bed(path)) for key, path in beds.items()}
    checksums = [fingerprint(path) for path in paths]
    held_out_checksums = [fingerprint(path) for path in held_out_paths]
    for path, checksum in zip(held_out_paths, held_out_checksums, strict=True):
        if checksum in checksums:
            raise ConfigError(
                f"{path} of data.validation_genomes is {paths[checksums.index(checksum)]} of data.genome too; take it "
                "out of one of them"
            )
    options = app.genome_options(config, "data.")
    identity = {
        "pipeline": "pretrain",
        "version": genosparse.__version__,
        "torch": torch.__version__,
        "seed": runtime.seed,
        "precision": precision,
        "start": encoder.fingerprint(),
        "genome": checksums,
        "validation_genomes": held_out_checksums,
        "data": _contents(config.data, aside=_DATA_ASIDE),
        "aliases": options["aliases"] and fingerprint(options["aliases"]),
        "reads": app.alignments_identity(config, reads, "data."),
        "alignments": app.alignments_identity(config, alignments, "data."),
        "beds": {key: app.fingerprint_intervals(values) for key, values in intervals.items()},
        "trainer": _contents(config.trainer, aside=_TRAINER_ASIDE),
    }
    if not overwrite and holds_run(run_dir, identity) and (run_dir / METRICS_FILE).exists():
        (run_dir / CHECKPOINT).unlink(missing_ok=True)  # of a run killed after its last output
        print(  # noqa: T201
            f"{run_dir / 'model'} is there already, made by these settings; overwrite=true makes it anew, and "
            f"init={run_dir / 'model'} with another run_dir= trains it further"
        )
        return
    inputs = [
        *paths,
        *held_out_paths,
        *reads_and_reference,
        *beds.values(),
        *([options["aliases"]] if options["aliases"] else []),
        *([app.model_folder(config, "init")] if config.init is not None else []),
    ]
    is_trained = settings.max_steps != 0
    with ExitStack() as opened:
        corpus: WindowSource | None
        if reads:
            corpus, data = _read_reads(config, encoder, reads, identity, context, is_trained=is_trained)
        else:
            corpus, data = _read_genomes(
                opened,
                config,
                encoder,
                paths,
                held_out_paths,
                alignments,
                identity,
                intervals,
                context,
                is_trained=is_trained,
            )
        if corpus is not None:
            context = config.data.context = corpus.context  # of reads it may be less
        held_out = None if corpus is None else HeldOut(corpus, runtime.seed)
        if is_trained:
            check_training(settings, context, held_out)
        opened.enter_context(open_run(run_dir, identity, owns=_OWNED, overwrite=overwrite, inputs=inputs))
        if corpus is None or held_out is None:
            _finish(run_dir, encoder, config, data, ancestors, settings, None, None, {}, {}, None, None)
            print(f"{run_dir / 'model'}: an untrained model of {encoder.num_parameters:,} parameters")  # noqa: T201
            return
        encoder.to(runtime.device)
        leak = leakage(corpus) if checks_leak else None
        if leak is not None:
            _tell_leak(leak, held_out, is_of_reads=bool(reads))
        baselines = held_out.baselines() if held_out.num_sites else {}
        examples = MaskedWindows(corpus, masking, runtime.seed)
        table_columns = columns(encoder.config.num_layers)
        with ExitStack() as stack:
            loggers: list[Logger] = []

            def open_log(last_step: int) -> Logger:
                table = CsvTable(run_dir / TABLE_FILE, table_columns, last_step=last_step)
                values = {"name": config.name, "config": _contents(config), "table": table}
                loggers.append(stack.enter_context(open_logger(config.logger, run_dir=run_dir, **values)))
                return loggers[0]

            result = train(
                encoder,
                examples,
                settings,
                run_dir=run_dir,
                context=context,
                precision=precision,
                held_out=held_out if held_out.num_sites else None,
                open_log=open_log,
            )
            if result.stopped_by is not None:
                raise app.Interrupted(
                    result.stopped_by,
                    f"stopped after step {result.step} and saved; the same command goes on from there",
                )
            batch_windows = settings.windows_per_pass(context)
            metrics = _final_metrics(encoder, held_out, batch_windows, precision) if held_out.num_sites else {}
            loggers[0].summarize({**metrics, **{f"baseline_{name}": value for name, value in baselines.items()}})
            if leak is not None:
                loggers[0].summarize({"leak_share": leak.share})
        table = CsvTable(run_dir / TABLE_FILE, table_columns, last_step=result.step)
        _finish(run_dir, encoder, config, data, ancestors, settings, result, held_out, metrics, baselines, leak, table)
    _report(run_dir, settings, result, metrics, baselines, held_out)


# What changes no result; a run that the watch over spikes has ended may go on without it.
_TRAINER_ASIDE = ("max_minutes", "workers", "activation_checkpointing", "spike", "spike_steps")
_DATA_ASIDE = (
    "genome", "reads", "aliases", "alignments", "reference", "filters", "regions", "exclude", "cache",
    "validation_genomes",
)  # fmt: skip
# What is of genomes, and not of reads.
_GENOME_KEYS = (
    "alignments", "regions", "exclude", "circular", "aliases", "cache", "weights", "validation_blocks",
    "validation_gap", "validation_genomes",
)  # fmt: skip
_OWNED = ("model", METRICS_FILE, TABLE_FILE, CURVE_FILE, CHECKPOINT, "wandb", "wandb-id")


def _sources(config: DictConfig) -> tuple[list[str], list[str]]:
    """The genomes, or the reads that are there in their place."""
    given = [key for key in ("genome", "reads") if config.data[key] is not None]
    if not given:
        raise ConfigError("missing data.genome= or data.reads= (genosparse pretrain --help explains them)")
    if len(given) > 1:
        raise ConfigError(
            "data.genome= and data.reads= are both given; train on one, and further on the other by init="
        )
    if given == ["genome"]:
        return app.paths(config, "data.genome"), []
    for key in _GENOME_KEYS:
        if config.data[key]:
            raise ConfigError(f"data.{key} is of genomes, and data.reads= has none; leave it out, or give data.genome=")
    for key in ("data.sampling", "data.validation_seed"):
        if app.is_given(key):
            raise ConfigError(f"{key} is of genomes, and data.reads= has none; leave it out, or give data.genome=")
    filters = app.read_filters(config, "data.filters")
    if filters.max_depth is not None or filters.count_overlaps:
        raise ConfigError(
            "data.filters.max_depth and count_overlaps are of positions in a genome, and data.reads= takes reads "
            "whole; leave them out"
        )
    return [], app.paths(config, "data.reads")


def _read_reads(
    config: DictConfig,
    encoder: Encoder,
    paths: Sequence[str],
    identity: Mapping[str, Any],
    context: int,
    *,
    is_trained: bool,
) -> tuple[ReadCorpus | None, list[str]]:
    """As ``_read_genomes``, of reads."""
    reference = None if config.data.reference is None else app.path(config, "data.reference")
    filters = app.read_filters(config, "data.filters")
    lines = [
        f"reads of {Path(path).name} ({_checksum(checksum)})"
        for path, checksum in zip(paths, identity["reads"]["files"], strict=True)
    ]
    lines.append(f"reads and bases that count: {_told(filters)}; neither secondary nor supplementary records")
    if encoder.config.channels and is_trained:
        lines.append(_without_alignments(encoder))
    with ExitStack() as opened:
        sources = [opened.enter_context(Alignments(path, reference, filters=filters)) for path in paths]
        if not is_trained:
            return None, lines
        corpus = ReadCorpus(
            sources,
            validation=_validation(config),
            context=context,
            max_n=app.number(config, "data.max_n", minimum=0, maximum=1),
            max_bases=app.integer(config, "data.max_read_bases", minimum=1),
        )
    lines.insert(len(paths), f"{corpus.num_reads:,} reads, {corpus.num_bases:,} bases")
    return corpus, lines


def _without_alignments(encoder: Encoder) -> str:
    """Say that a model's channels are all 0, now and in its card."""
    notice_without_alignments(encoder)
    return "no alignments: the channels that the model takes were all 0"


def _alignments(config: DictConfig, num_genomes: int) -> list[str | None]:
    """The alignments of each genome, None for one without."""
    value = config.data.alignments
    if value is None:
        return [None] * num_genomes
    if not isinstance(value, ListConfig):
        value = [value]
    if len(value) != num_genomes:
        raise ConfigError(
            f"data.alignments names {len(value)} and data.genome {num_genomes} files; give one of alignments for each "
            "genome, in the order of the genomes, and null for a genome without"
        )
    is_list = isinstance(config.data.alignments, ListConfig)
    keys = [f"data.alignments[{index}]" if is_list else "data.alignments" for index in range(num_genomes)]
    return [None if path is None else app.path(config, key) for path, key in zip(value, keys, strict=True)]


def _validation_genomes(config: DictConfig) -> list[str]:
    """Genomes that are held out whole. ``data.validation`` holds out nothing then, unless it was asked to as well."""
    if config.data.validation_genomes is None:
        return []
    if app.is_given("data.validation") and config.data.validation:
        raise ConfigError(
            f"data.validation={config.data.validation} and data.validation_genomes both say what is held out; give one"
        )
    if config.data.alignments is not None:
        raise ConfigError(
            "data.validation_genomes have no alignments, and data.alignments= gives some of the others; hold out "
            "contigs or a fraction by data.validation= instead"
        )
    config.data.validation = None
    return app.paths(config, "data.validation_genomes")


def _validation_blocks(config: DictConfig) -> ValidationBlocks | None:
    """Where a fraction is held out, as ``data.validation_blocks`` says; None for the last part of each contig."""
    data = config.data
    if data.validation_blocks is None:
        for key in ("data.validation_gap", "data.validation_seed"):
            if app.is_given(key) and OmegaConf.select(config, key) is not None:
                raise ConfigError(f"{key} is of data.validation_blocks, which is not given; leave it out, or give both")
        return None
    gap = {} if data.validation_gap is None else {"gap": data.validation_gap}
    return ValidationBlocks(size=data.validation_blocks, seed=data.validation_seed, **gap)


def _sampling(config: DictConfig) -> Sampling:
    weights = config.data.weights
    if weights is not None and not isinstance(weights, ListConfig):
        raise ConfigError(f"data.weights={weights}: expected a number for each genome, as [2,1]")
    return Sampling(by=str(config.data.sampling), weights=None if weights is None else tuple(weights))


def _token_cache(config: DictConfig) -> Path | None:
    """The folder for token ids; None to keep them in memory."""
    if config.data.cache is None:
        return default_token_cache()
    if config.data.cache in ("off", False):  # a YAML file's off is False
        return None
    return Path(app.path(config, "data.cache"))


def _read_genomes(
    opened: ExitStack,
    config: DictConfig,
    encoder: Encoder,
    paths: Sequence[str],
    held_out_paths: Sequence[str],
    alignments: Sequence[str | None],
    identity: Mapping[str, Any],
    intervals: Mapping[str, list[Interval]],
    context: int,
    *,
    is_trained: bool,
) -> tuple[Corpus | None, list[str]]:
    """The corpus (None where nothing is trained), and a line on each input for the model card.

    ``opened`` keeps open what windows are read from.
    """
    blocks, sampling, cache = _validation_blocks(config), _sampling(config), _token_cache(config)
    options = app.genome_options(config, "data.")
    genomes = [opened.enter_context(each) for each in _open_genomes(paths, **options)]
    lines = [
        f"{Path(path).name}: {sum(genome.contigs.values()):,} bases ({_checksum(checksum)})"
        for path, genome, checksum in zip(paths, genomes, identity["genome"], strict=True)
    ]
    apart = [opened.enter_context(each) for each in _open_genomes(held_out_paths, False, options["aliases"])]
    lines += [
        f"{Path(path).name}: {sum(genome.contigs.values()):,} bases, held out ({_checksum(checksum)})"
        for path, genome, checksum in zip(held_out_paths, apart, identity["validation_genomes"], strict=True)
    ]
    channels: list[GenomeChannels | None] = []
    if any(alignments):
        channels = _open_channels(opened, config, encoder, genomes, alignments)
    elif encoder.config.channels and is_trained:
        lines.append(_without_alignments(encoder))
    if identity["alignments"] is not None:
        files = zip(alignments, identity["alignments"]["files"], paths, strict=True)
        lines += [
            f"{Path(path).name}: alignments on {Path(genome).name} ({_checksum(checksum)})"
            for path, checksum, genome in files
            if path is not None
        ]
        filters = app.read_filters(config, "data.filters")
        lines.append(f"reads and bases of alignments that count: {_told(filters)}")
    if not is_trained:
        return None, lines
    checksums = [*identity["genome"], *identity["validation_genomes"]]
    corpus = Corpus(
        genomes,
        validation=_validation(config),
        validation_blocks=blocks,
        validation_genomes=apart,
        context=context,
        regions=intervals.get("data.regions"),
        exclude=intervals.get("data.exclude", ()),
        max_n=app.number(config, "data.max_n", minimum=0, maximum=1),
        sampling=sampling,
        channels=channels,
        tokens=(
            read_tokens(genome, cache, checksum) for genome, checksum in zip([*genomes, *apart], checksums, strict=True)
        ),
    )
    return corpus, lines


def _open_channels(
    opened: ExitStack,
    config: DictConfig,
    encoder: Encoder,
    genomes: Sequence[Genome],
    alignments: Sequence[str | None],
) -> list[GenomeChannels | None]:
    options = {"group": "data.", "cache_bytes": _CHANNEL_CACHE_BYTES // len(genomes)}
    return [
        None if path is None else opened.enter_context(app.open_channels(config, encoder, genome, path, **options))
        for genome, path in zip(genomes, alignments, strict=True)
    ]


def _checksum(sha256: str) -> str:
    return f"SHA-256 of the file {sha256[:16]}"


def _told(filters: ReadFilters) -> str:
    """Filters in words of settings."""
    values = dataclasses.asdict(filters)
    flags = {name: f"{values[name]:#x}" for name in ("exclude_flags", "require_flags")}
    return ", ".join(f"{name}={value}" for name, value in {**values, **flags}.items())


def _open_genomes(paths: Sequence[str], circular: bool | list[str], aliases: str | None) -> Iterator[Genome]:
    """Open genomes, each with those of the circular contigs that it has, and rest them: there may be hundreds."""
    if isinstance(circular, bool) or len(paths) == 1:
        for path in paths:
            genome = Genome(path, circular=circular, aliases=aliases)
            genome.rest()
            yield genome
        return
    missing = set(circular)
    for path in paths:
        with Genome(path, aliases=aliases) as genome:
            there = [name for name in circular if genome.matcher().find(name) is not None]
        missing -= set(there)
        genome = Genome(path, circular=there, aliases=aliases)
        genome.rest()
        yield genome
    if missing:
        raise ConfigError(f"data.circular names contig {min(missing)!r}, which no genome has; check its spelling")


def _training_precision(config: DictConfig, runtime: app.Runtime) -> str:
    """``auto`` trains in bfloat16 where the processor or the GPU multiplies it natively."""
    if config.precision == "auto" and runtime.device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Older torch does not tell; float32 is right everywhere.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if config.precision == "auto" and capabilities.get("avx512_bf16"):
        return "bfloat16"
    return runtime.precision


def _settings(kind: type[Any], node: DictConfig, prefix: str) -> Any:
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{prefix}={node}: expected settings, as {prefix}.{dataclasses.fields(kind)[0].name}=...")
    try:
        return kind(**_contents(node))
    except TypeError as error:
        raise ConfigError(f"{prefix}: {error}") from error


def _contents(node: DictConfig, *, aside: Sequence[str] = ()) -> dict[str, Any]:
    return {key: value for key, value in app.as_dict(node).items() if key not in aside}


def _make_encoder(config: DictConfig) -> Encoder:
    """A new encoder as ``model`` describes it, or the one that ``init`` names."""
    if config.init is not None:
        if app.is_given("model"):
            raise ConfigError("init= brings its own model; leave model= out")
        return Encoder.from_pretrained(app.model_folder(config, "init"))
    values = _contents(config.model, aside=("name", "context"))
    if values.get("channels") == "auto":
        values["channels"] = [] if config.data.alignments is None else list(CHANNELS)
    try:
        return Encoder(EncoderConfig.from_dict(values))
    except ConfigError as error:  # which begins with a setting's name
        raise type(error)(f"model.{error}" if str(error).partition("=")[0] in values else str(error)) from None


def _validation(config: DictConfig) -> float | list[str] | None:
    value = config.data.validation
    if isinstance(value, ListConfig):
        return [str(name) for name in value]
    if isinstance(value, str):
        return [value]
    return value


def _tell_leak(leak: Leakage, held_out: HeldOut, *, is_of_reads: bool) -> None:
    print(f"held out: {held_out.num_bases:,} bases; {leak}", flush=True)  # noqa: T201
    if leak.share > _MOST_LEAKAGE and not is_of_reads:  # of reads, which overlap, the card says so anyway
        warnings.warn(
            f"{leak.share:.0%} of the held-out {KMER}-mers are in the training sequence too, so that held-out figures "
            "say little of new sequence; hold out other contigs, or a genome that is further away by "
            "data.validation_genomes=",
            GenosparseWarning,
            stacklevel=2,
        )


def _told_validation(config: DictConfig, leak: Leakage | None) -> str:
    """What was held out, for the card."""
    data, validation = config.data, config.data.validation
    if data.reads is not None:
        told = f"{validation or 0:.3g} of the reads, by a hash of their names; reads of one place may be on both sides"
    elif data.validation_genomes is not None:
        told = "whole genomes, " + ", ".join(Path(path).name for path in app.paths(config, "data.validation_genomes"))
    elif isinstance(validation, ListConfig):
        told = "contigs " + ", ".join(str(name) for name in validation)
    elif (blocks := _validation_blocks(config)) is not None:
        told = (
            f"{validation:.3g} of the contigs, in blocks of {blocks.size:,} bases at random places (seed "
            f"{blocks.seed}), with {blocks.gap:,} bases on each side that were not trained on"
        )
    elif isinstance(validation, float):
        told = f"the last {validation:.3g} of each contig"
    else:
        told = str(validation)
    return told if leak is None else f"{told}; {leak}"


def _final_metrics(encoder: Encoder, held_out: HeldOut, batch_windows: int, precision: str) -> dict[str, float]:
    def autocast() -> torch.autocast:
        return torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    metrics = evaluate(encoder, held_out, batch_windows=batch_windows, autocast=autocast())
    both = evaluate(encoder, held_out, batch_windows=batch_windows, both_strands=True, autocast=autocast())
    return {**metrics, "bits_per_base_both_strands": both["bits_per_base"]}


def _finish(
    run_dir: Path,
    encoder: Encoder,
    config: DictConfig,
    data: list[str],
    ancestors: list[str],
    settings: TrainerSettings,
    result: TrainingResult | None,
    held_out: HeldOut | None,
    metrics: dict[str, float],
    baselines: dict[str, float],
    leak: Leakage | None,
    table: CsvTable | None,
) -> None:
    """Write the model folder, the curve and, last, the metrics, whose presence says that the run is finished."""
    steps = result.step if result is not None else 0
    if result is not None and result.context:
        trained = max(result.context, encoder.config.trained_context or 0)
        encoder.config = dataclasses.replace(encoder.config, trained_context=trained)
    training: dict[str, Any] = {
        "steps": f"{steps:,}",
        "bases seen": f"{result.bases if result is not None else 0:,}",
        "context": _told_context(settings, config.data.context, result),
        "bases per step": f"{settings.bases_per_step(config.data.context):,}",
        "masking": _told_masking(_settings(MaskingSettings, config.data.masking, "data.masking")),
        "optimizer": "AdamW",
        "peak learning rate": settings.learning_rate,
        "weights": _told_weights(settings, result),
        "seed": config.seed,
    }
    if settings.optimizer == "muon":
        training["optimizer"] = "Muon for the matrices of the blocks, AdamW for the rest"
        training["peak learning rate"] = f"{settings.learning_rate} (AdamW), {settings.muon_learning_rate} (Muon)"
    if config.data.reads is not None:
        training["bases seen"] += ", with the padding of short reads"
    if config.data.sampling != "length":
        weights = "" if config.data.weights is None else f" {', '.join(str(each) for each in config.data.weights)}"
        training["genomes drawn by"] = f"{config.data.sampling}{weights}"
    card = model_card(
        encoder,
        name=config.name,
        data=data,
        ancestors=ancestors,
        validation=_told_validation(config, leak),
        training=training,
        metrics=metrics,
        baselines=baselines,
        sites=held_out.num_sites if held_out is not None else 0,
    )
    encoder.save_pretrained(run_dir / "model", card=card)
    if table is not None:
        rows = table.rows()
        validated = [row for row in rows if row["val_bits_per_base"]]
        plot_loss_curve(
            run_dir / CURVE_FILE,
            [int(row["step"]) for row in rows],
            [float(row["loss"]) for row in rows],
            [*(int(row["step"]) for row in validated), *([steps] if metrics else [])],
            [*(float(row["val_bits_per_base"]) for row in validated), *([metrics["bits_per_base"]] if metrics else [])],
            {name: baselines[name] for name in ("best_kmer", "interpolated") if name in baselines},
        )
    with atomic_output(run_dir / METRICS_FILE) as file:
        leaked = None if leak is None else {"kmer": KMER, **leak._asdict()}
        contents = {
            "step": steps,
            "bases": 0 if result is None else result.bases,
            "model": metrics,
            "baselines_bits_per_base": baselines,
            "leak": leaked,
        }
        file.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    (run_dir / CHECKPOINT).unlink(missing_ok=True)


def _told_context(settings: TrainerSettings, context: int, result: TrainingResult | None) -> str:
    reached = context if result is None else result.context
    stages = [f"{bases:,} bases for {fraction:.3g} of the run" for bases, fraction in settings.context_warmup or ()]
    return f"{reached:,} bases" + (f"; from {', '.join(stages)} up to {context:,}" if stages else "")


def _told_masking(masking: MaskingSettings) -> str:
    each = "bases" if masking.span == 1 else f"bases, in {masking.span_lengths} spans of {masking.span:g} on average"
    return (
        f"{masking.rate:g} of the {each}; {masking.mask_share:g} of those shown as MASK, {masking.random_share:g} as a "
        "random base"
    )


def _told_weights(settings: TrainerSettings, result: TrainingResult | None) -> str:
    step = 0 if result is None else result.kept_step
    kind = "" if settings.ema is None else f", moving average of decay {settings.ema:g}"
    lowest = "" if settings.patience is None else ", of the lowest validation loss"
    return f"of step {step:,}{lowest}{kind}"


def _report(
    run_dir: Path,
    settings: TrainerSettings,
    result: TrainingResult,
    metrics: dict[str, float],
    baselines: dict[str, float],
    held_out: HeldOut,
) -> None:
    lines = [f"{run_dir / 'model'}: the model; {run_dir / CURVE_FILE}: its loss curve"]
    if result.lost_patience:
        lines.append(f"ended at step {result.step}, after {settings.patience} validations without a lower loss")
    if settings.patience is not None or settings.ema is not None:
        lines.append(f"weights: {_told_weights(settings, result)}")
    if metrics:
        rows = (
            ("this encoder, one strand", metrics["bits_per_base"]),
            ("this encoder, both strands", metrics["bits_per_base_both_strands"]),
            ("best single k-mer table", baselines["best_kmer"]),
            ("interpolated k-mers", baselines["interpolated"]),
        )
        lines.append(f"bits per base at {held_out.num_sites:,} held-out sites (accuracy {metrics['accuracy']:.4f}):")
        lines += [f"  {name:<28}{value:.4f}" for name, value in rows if math.isfinite(value)]
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
