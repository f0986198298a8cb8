"""``genosparse evaluate``: how well a model predicts masked bases, by kinds of sequence and beside k-mer baselines."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig

import genosparse
from genosparse.baselines import MAX_FLANK, kmer_probabilities
from genosparse.encoder import Encoder
from genosparse.errors import ConfigError, FileFormatError, GenosparseWarning, ModelFormatError, OutputError
from genosparse.evaluation import (
    TABLE_FORMATS,
    BaselineSequences,
    Grouping,
    Predictions,
    Row,
    SitePlaces,
    TestedSequences,
    annotation_groups,
    genome_blocks,
    repeat_groups,
    soft_mask_groups,
    summarize,
    write_table,
)
from genosparse.inputs import display_name
from genosparse.intervals import Interval
from genosparse.loggers import LOGGERS, open_logger
from genosparse.outputs import atomic_output, check_writable, fingerprint, holds_run, open_run
from genosparse.pipelines import app
from genosparse.plotting import plot_bits_by_context, plot_bits_by_group
from genosparse.pretraining.evaluation import HeldOut, site_log_probs
from genosparse.progress import ProgressBar, progress
from genosparse.readers import Genome, read_intervals

__all__ = ["main"]

RESULTS_FILE = "results.json"
GROUPS_FILE = "groups.png"
CONTEXTS_FILE = "contexts.png"
_PARTS = "parts"
_OWNED = (RESULTS_FILE, GROUPS_FILE, CONTEXTS_FILE, _PARTS, "wandb", "wandb-id")
_PATHS = (
    "model", "genome", "aliases", "alignments", "reference", "intervals", "annotation", "repeats", "baseline_genome",
    "output", "run_dir",
)  # fmt: skip
_BATCHES_PER_PART = 16
_MOST_SHORT = 0.1  # of the sites, in stretches shorter than a window, before that is told
ONE_STRAND, BOTH_STRANDS = "encoder_one_strand", "encoder_both_strands"
BEST_KMER, INTERPOLATED = "best_kmer", "interpolated"


@app.pipeline("evaluate", paths=_PATHS)
def main(config: DictConfig) -> None:
    """Evaluate a model at the task that ``task`` names."""
    _TASKS[app.choice(config, "task", tuple(_TASKS))](config)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What of the settings is checked before any file is read."""

    output: Path
    run_dir: Path
    overwrite: bool
    both_strands: bool
    site_spacing: int
    max_sites: int | None
    block_bases: int
    bootstraps: int
    batch_bases: int

    @classmethod
    def of(cls, config: DictConfig) -> _Settings:
        output = Path(app.path(config, "output"))
        if output.suffix not in TABLE_FORMATS:
            raise ConfigError(f"output={output}: expected a name that ends in one of {', '.join(TABLE_FORMATS)}")
        check_writable(output)
        app.choice(config, "logger", LOGGERS)
        return cls(
            output=output,
            run_dir=Path(app.path(config, "run_dir")),
            overwrite=app.flag(config, "overwrite"),
            both_strands=app.flag(config, "both_strands"),
            site_spacing=app.integer(config, "site_spacing", minimum=2 * MAX_FLANK),
            max_sites=None if config.max_sites is None else app.integer(config, "max_sites", minimum=1),
            block_bases=app.integer(config, "block_bases", minimum=1),
            bootstraps=app.integer(config, "bootstraps", minimum=0, maximum=1_000_000),
            batch_bases=app.integer(config, "batch_bases", minimum=1),
        )


def _evaluate_masked(config: DictConfig) -> None:
    """Measure log-probabilities at masked sites part by part into ``run_dir``, then make rows and pictures of them."""
    runtime = app.setup(config)
    settings = _Settings.of(config)
    encoder = Encoder.from_pretrained(app.path(config, "model"), device=runtime.device)
    context, contexts = _contexts(config, encoder)
    options = app.genome_options(config)
    alignments = None if config.alignments is None else app.path(config, "alignments")
    reads = app.alignments_inputs(config, [] if alignments is None else [alignments])
    files = {
        key: app.path(config, key) for key in ("genome", "annotation", "repeats", "aliases") if config[key] is not None
    }
    checksums = {key: fingerprint(path) for key, path in files.items()}
    baseline_paths = [] if config.baseline_genome is None else app.paths(config, "baseline_genome")
    with ExitStack() as opened:
        genome = opened.enter_context(Genome(files["genome"], **options))
        channels = opened.enter_context(app.open_channels(config, encoder, genome, alignments))
        intervals = _read_intervals(app.path(config, "intervals"), genome)
        tested = TestedSequences(genome, intervals, context=contexts[-1], channels=channels)
        wanted = contexts[-1]
        context, contexts = min(context, tested.context), sorted({min(each, tested.context) for each in contexts})
        held_out = HeldOut(tested, runtime.seed, spacing=settings.site_spacing, max_sites=settings.max_sites)
        if not held_out.num_sites:
            raise ConfigError(
                f"intervals={config.intervals} of {genome.path} hold {held_out.num_bases:,} bases and no site to "
                "measure at: they are too few, or all N; give others"
            )
        places = SitePlaces(held_out, genome)
        groupings = _groupings(files, tested, held_out, places)
        baseline_genomes = [opened.enter_context(Genome(path)) for path in baseline_paths]
        baselines = _baseline_sequences(genome, tested, baseline_genomes)
        identity = {
            "pipeline": "evaluate",
            "task": config.task,
            "version": genosparse.__version__,
            "torch": torch.__version__,
            "model": encoder.fingerprint(),
            **{key: checksums.get(key) for key in ("genome", "annotation", "repeats", "aliases")},
            "circular": sorted(genome.circular),
            "alignments": app.alignments_identity(config, [alignments]),
            "intervals": None if intervals is None else app.fingerprint_intervals(intervals),
            "baseline_genome": [fingerprint(path) for path in baseline_paths],
            "context": context,
            "contexts": contexts,
            **{
                key: getattr(settings, key)
                for key in ("both_strands", "site_spacing", "max_sites", "block_bases", "bootstraps", "batch_bases")
            },
            "seed": runtime.seed,
            "precision": runtime.precision,
        }
        if settings.output.exists() and not settings.overwrite:
            _refuse_other_output(settings, identity)
            print(f"{settings.output} is there already, made by the same command; overwrite=true makes it anew")  # noqa: T201
            return
        inputs = [app.path(config, "model"), *files.values(), *reads, *baseline_paths]
        if intervals is not None:
            inputs.append(app.path(config, "intervals"))
        with open_run(settings.run_dir, identity, owns=_OWNED, overwrite=settings.overwrite, inputs=inputs):
            results = settings.run_dir / RESULTS_FILE
            if not results.exists():
                _tell_of_contexts(encoder, held_out, wanted)
                _tell_what_was_trained_on(Path(app.path(config, "model")), checksums["genome"])
                parts = settings.run_dir / _PARTS
                parts.mkdir(exist_ok=True)
                predictions = _encoder_predictions(encoder, held_out, contexts, settings, runtime, parts)
                if baselines is not None:
                    predictions += _baseline_predictions(baselines, held_out, parts)
                blocks = genome_blocks(places, settings.block_bases)
                rows = summarize(predictions, groupings, blocks, replicates=settings.bootstraps, seed=runtime.seed)
                facts = {
                    "model": identity["model"],
                    "genome": identity["genome"],
                    "seed": runtime.seed,
                    "sites": held_out.num_sites,
                    "bases": held_out.num_bases,
                    "blocks": int(blocks.max()) + 1,
                    "context": context,
                    "baseline_bases": 0 if baselines is None else baselines.num_bases,
                }
                _draw(settings.run_dir, rows, context)
                with open_logger(
                    config.logger, run_dir=settings.run_dir, name=config.name, config=app.as_dict(config)
                ) as logger:
                    logger.summarize({_label(row): row.bits_per_base for row in rows})
                with atomic_output(results) as partial:
                    write_table(partial, rows, _described(facts))
            rows, facts = _read_results(results)
            with atomic_output(settings.output) as partial:
                write_table(partial, rows, _described(facts))
            shutil.rmtree(settings.run_dir / _PARTS, ignore_errors=True)
    _report(settings, rows, facts)


_TASKS: dict[str, Callable[[DictConfig], None]] = {"masked": _evaluate_masked}


def _contexts(config: DictConfig, encoder: Encoder) -> tuple[int, list[int]]:
    """The context of the rows by group, and all contexts, ascending."""
    most, trained = encoder.config.max_length, encoder.config.trained_context
    if config.contexts is not None and not isinstance(config.contexts, ListConfig):
        raise ConfigError(f"contexts={config.contexts} is no list; expected one, as [512,4096]")
    count = 0 if config.contexts is None else len(config.contexts)
    others = [app.integer(config, f"contexts[{index}]", minimum=1, maximum=most) for index in range(count)]
    if config.context is not None:
        context = app.integer(config, "context", minimum=1, maximum=most)
    elif trained is not None:
        context = min(trained, most)
    elif others:
        context = max(others)
    else:
        raise ConfigError("the model was trained with no context yet; give the bases of a window, as context=4096")
    return context, sorted({context, *others})


def _tell_of_contexts(encoder: Encoder, held_out: HeldOut, wanted: int) -> None:
    """Warn where windows are shorter than they were asked for, or longer than the model knows."""
    longest, trained = held_out.context, encoder.config.trained_context
    short = sum(len(sites) for span, sites in held_out.stretches if span.length < longest) / held_out.num_sites
    notices = []
    if longest < wanted:
        notices.append(f"windows have {longest:,} bases, as no stretch has context={wanted}")
    if short >= _MOST_SHORT:
        notices.append(f"{short:.0%} of the sites are in stretches shorter than the context of {longest:,} bases")
    if trained is not None and longest > trained:
        notices.append(f"a context of {longest:,} bases goes to a model trained on {trained:,}; figures may be poor")
    for notice in notices:
        warnings.warn(notice, GenosparseWarning, stacklevel=2)


def _read_intervals(source: str, genome: Genome) -> list[Interval] | None:
    """The intervals; None for the whole genome."""
    if source == "all":
        return None
    intervals = list(read_intervals(source, lengths=genome.contigs))
    if not intervals:
        raise FileFormatError(
            f"{display_name(source)} has no intervals; expected BED, GFF3, GTF, GenBank or EMBL with some"
        )
    return intervals


def _groupings(
    files: Mapping[str, str], tested: TestedSequences, held_out: HeldOut, places: SitePlaces
) -> list[Grouping]:
    groupings = []
    soft_mask = soft_mask_groups(tested, held_out)
    if soft_mask.numbers.any():  # else the genome is not soft-masked
        groupings.append(soft_mask)
    if "repeats" in files:
        groupings.append(repeat_groups(files["repeats"], places))
    if "annotation" in files:
        groupings += annotation_groups(files["annotation"], places)
    return groupings


def _baseline_sequences(
    genome: Genome, tested: TestedSequences, baseline_genomes: Sequence[Genome]
) -> BaselineSequences | None:
    """What baselines are counted on; None where nothing is left of the one genome."""
    if not baseline_genomes:
        rest = tested.training_sequences()
        return rest if rest.num_bases else None
    sequences = BaselineSequences(baseline_genomes, genome, tested.held_out)
    if not sequences.num_bases:
        raise ConfigError(
            f"baseline_genome={', '.join(str(each.path) for each in baseline_genomes)} has the tested sequence alone, "
            "which baselines must not be counted on; give what the model was trained on, or intervals= of a part"
        )
    return sequences


def _tell_what_was_trained_on(model: Path, genome: str) -> None:
    """Warn where the model's card names the very genome that it is tested on."""
    try:
        card = (model / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if f"SHA-256 of the file {genome[:16]}" not in card:
        return
    held_out = next((line[2:] for line in card.splitlines() if line.startswith("- held out: ")), "held out: nothing")
    warnings.warn(
        f"the model was trained on this genome ({held_out}); figures tell of new sequence only where intervals= are "
        "within what was held out",
        GenosparseWarning,
        stacklevel=2,
    )


def _refuse_other_output(settings: _Settings, identity: Mapping[str, Any]) -> None:
    """Raise unless the output is that of the finished run in ``run_dir``."""
    results = settings.run_dir / RESULTS_FILE
    if holds_run(settings.run_dir, identity) and results.exists():
        rows, facts = _read_results(results)
        with tempfile.TemporaryDirectory() as folder:
            check = Path(folder) / settings.output.name
            write_table(check, rows, _described(facts))
            if check.read_bytes() == settings.output.read_bytes():
                return
    raise OutputError(
        f"output={settings.output} exists and was made from other inputs or settings; pass overwrite=true or another "
        "output="
    )


def _described(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": "genosparse-evaluation-1", "version": genosparse.__version__, "task": "masked", **facts}


def _read_results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return [Row(**row) for row in facts.pop("rows")], facts
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(f"{path} is damaged ({type(error).__name__}); pass overwrite=true to make it anew") from error


def _encoder_predictions(
    encoder: Encoder,
    held_out: HeldOut,
    contexts: Sequence[int],
    settings: _Settings,
    runtime: app.Runtime,
    parts: Path,
) -> list[Predictions]:
    """What the encoder says with each context, in parts that a later start of the run finds again."""
    strands = 2 if settings.both_strands else 1
    windows_at_once = {context: max(1, settings.batch_bases // context) for context in contexts}
    total = sum(held_out.num_windows(context) * context for context in contexts) * strands
    predictions = []
    truth = held_out.contexts[:, MAX_FLANK].astype(np.int64)
    with progress("evaluating", total, "bases") as bar:
        for context in contexts:
            step = windows_at_once[context] * _BATCHES_PER_PART
            found = []
            for first in range(0, held_out.num_windows(context), step):
                windows = slice(first, min(first + step, held_out.num_windows(context)))
                path = parts / f"{context}-{first:09}.npy"
                log_probs = _load(path, (strands, 4))
                if log_probs is None:
                    with runtime.autocast():
                        log_probs = _measure(encoder, held_out, context, windows, windows_at_once[context], strands)
                    _save(path, log_probs)
                found.append(log_probs)
                bar.advance((windows.stop - windows.start) * context * strands)
            log_probs = np.concatenate(found)
            names = (ONE_STRAND, BOTH_STRANDS)[:strands]
            predictions += [_predictions(name, context, log_probs[:, at], truth) for at, name in enumerate(names)]
    # The mean of both strands is the one to look at first.
    return sorted(predictions, key=lambda each: (each.predictor, each.context or 0))


def _measure(
    encoder: Encoder, held_out: HeldOut, context: int, windows: slice, windows_at_once: int, strands: int
) -> NDArray[np.float32]:
    """Log-probabilities at the sites of some windows, float32 ``[sites, strands, 4]``."""
    batches = site_log_probs(
        encoder,
        held_out,
        batch_windows=windows_at_once,
        context=context,
        windows=windows,
        both_strands=strands == 2,
    )
    found = []
    for batch in batches:
        both = [batch.one_strand] if batch.both_strands is None else [batch.one_strand, batch.both_strands]
        found.append(torch.stack(both, dim=1).float().cpu().numpy())
    log_probs = np.concatenate(found)
    if not np.isfinite(log_probs).all():
        raise ModelFormatError(
            "the model gives log-probabilities that are no finite numbers: its weights hold NaN or overflow; train it "
            "again, or use precision=float32"
        )
    return log_probs


def _baseline_predictions(sequences: BaselineSequences, held_out: HeldOut, parts: Path) -> list[Predictions]:
    """What the best single table and the interpolated k-mers say."""
    path = parts / "baselines.npy"
    log_probs = _load(path, (2, 4))
    truth = held_out.contexts[:, MAX_FLANK].astype(np.int64)
    if log_probs is None:
        best: Predictions | None = None
        chosen = found = np.empty(0)
        with progress("counting k-mers", sequences.num_bases * (MAX_FLANK + 1), "bases") as bar:
            sequences.on_bases = _advance(bar)
            for name, probabilities in kmer_probabilities(sequences, held_out.contexts):
                found = np.log(probabilities)
                single = _predictions(name, None, found, truth)
                if name != INTERPOLATED and (best is None or single.bits.mean() < best.bits.mean()):
                    best, chosen = single, found
        log_probs = np.stack([chosen, found], axis=1)
        _save(path, log_probs)
    return [_predictions(name, None, log_probs[:, at], truth) for at, name in enumerate((BEST_KMER, INTERPOLATED))]


def _advance(bar: ProgressBar) -> Callable[[int], None]:
    return lambda bases: bar.advance(bases)


def _predictions(
    name: str, context: int | None, log_probs: NDArray[np.floating], truth: NDArray[np.int64]
) -> Predictions:
    of_truth = log_probs[np.arange(len(truth)), truth].astype(np.float64)
    return Predictions(name, context, -of_truth / math.log(2), log_probs.argmax(axis=1) == truth)


def _save(path: Path, values: NDArray[Any]) -> None:
    with atomic_output(path) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _load(path: Path, shape: tuple[int, int]) -> NDArray[Any] | None:
    """A part of an earlier start; None where there is none or it is damaged."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return values if values.shape[1:] == shape else None


def _label(row: Row) -> str:
    context = "" if row.context is None else f"_{row.context}"
    return f"{row.grouping}/{row.group}/{row.predictor}{context}"


def _draw(run_dir: Path, rows: Sequence[Row], context: int) -> None:
    panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    baselines: dict[str, float] = {}
    for row in rows:
        bits, low, high = (math.nan if value is None else value for value in (row.bits_per_base, row.low, row.high))
        name = row.predictor.replace("_", " ")
        if row.context in (None, context):
            groups = panels.setdefault(row.grouping.replace("_", " "), {})
            group = f"{row.group.replace('_', ' ')} ({row.sites:,})"
            groups.setdefault(group, {})[name] = (bits, low, high)
        if row.grouping == "all" and row.context is None:
            baselines[name] = bits
        elif row.grouping == "all" and row.context is not None:
            curves.setdefault(name, []).append((row.context, bits, low, high))
    plot_bits_by_group(run_dir / GROUPS_FILE, panels)
    if any(len(points) > 1 for points in curves.values()):
        plot_bits_by_context(run_dir / CONTEXTS_FILE, curves, baselines)


def _report(settings: _Settings, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Print the table: a line for each group, a column for each predictor."""
    context = facts["context"]
    shown = [row for row in rows if row.context in (None, context)]
    predictors = list(dict.fromkeys(row.predictor for row in shown))
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in shown:
        groups.setdefault((row.grouping, row.group), {})[row.predictor] = row
    labels = {key: key[1] if key[0] == "all" else f"{key[0]} {key[1]}" for key in groups}
    width = max(map(len, labels.values()))
    print(  # noqa: T201
        f"{settings.output}: bits per base at {facts['sites']:,} sites of {facts['bases']:,} bases, context "
        f"{context:,}, with 95 % intervals over {facts['blocks']:,} blocks; {settings.run_dir / GROUPS_FILE}: the "
        "picture"
    )
    print(f"{'':<{width}}  {'sites':>9}  {'  '.join(f'{name:>22}' for name in predictors)}")  # noqa: T201
    for key, by_predictor in groups.items():
        sites = next(iter(by_predictor.values())).sites
        cells = "  ".join(f"{_cell(by_predictor[name]):>22}" for name in predictors)
        print(f"{labels[key]:<{width}}  {sites:>9,}  {cells}")  # noqa: T201
    by_context = [row for row in rows if row.grouping == "all" and row.context is not None]
    if len({row.context for row in by_context}) > 1:
        for row in by_context:
            print(f"{row.predictor} with {row.context:,} bases of context: {_cell(row)}")  # noqa: T201
    if not facts["baseline_bases"]:
        print("no k-mer baselines: all of the genome is tested; baseline_genome= names what to count them on")  # noqa: T201


def _cell(row: Row) -> str:
    interval = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.bits_per_base:.4f}{interval}"


if __name__ == "__main__":
    sys.exit(main())
