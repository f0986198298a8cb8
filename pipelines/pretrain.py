"""``genosparse pretrain``: a masked-base encoder from genomes."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

import genosparse
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.intervals import Interval, read_bed
from genosparse.loggers import LOGGERS, CsvTable, Logger, open_logger
from genosparse.outputs import atomic_output, claim_run, fingerprint
from genosparse.pipelines import app
from genosparse.plotting import plot_loss_curve
from genosparse.pretraining import (
    Corpus,
    HeldOut,
    MaskingSettings,
    TrainerSettings,
    TrainingResult,
    evaluate,
    model_card,
    train,
)
from genosparse.pretraining.loop import CHECKPOINT, COLUMNS
from genosparse.pretraining.masking import MaskedWindows
from genosparse.progress import progress
from genosparse.readers import Genome

__all__ = ["main"]

_DEFAULT_MINUTES = 40
METRICS_FILE = "metrics.json"
TABLE_FILE = "metrics.csv"
CURVE_FILE = "loss_curve.png"


@app.pipeline("pretrain", paths=("data.genome", "data.regions", "data.exclude", "init", "run_dir"))
def main(config: DictConfig) -> None:
    """Train, or go on training, and end with a model folder, a card and a curve."""
    runtime = app.setup(config)
    precision = _training_precision(config, runtime)
    if config.trainer.max_minutes == "auto":
        config.trainer.max_minutes = None if config.trainer.max_steps is not None else _DEFAULT_MINUTES
    settings = _settings(TrainerSettings, config.trainer, "trainer")
    masking = _settings(MaskingSettings, config.data.masking, "data.masking")
    app.choice(config, "logger", LOGGERS)
    overwrite = app.flag(config, "overwrite")
    context = app.integer(config, "data.context", minimum=1)
    genome_paths = app.paths(config, "data.genome")
    run_dir = Path(app.path(config, "run_dir"))

    torch.manual_seed(runtime.seed)
    encoder = _make_encoder(config)
    if context > encoder.config.max_length:
        raise ConfigError(
            f"data.context={context} is longer than the model's max_length={encoder.config.max_length}; lower it, or "
            "raise model.max_length"
        )
    with ExitStack() as stack:
        genomes = [stack.enter_context(Genome(path)) for path in genome_paths]
        corpus = None
        if settings.max_steps != 0:
            corpus = Corpus(
                genomes,
                validation=_validation(config),
                context=context,
                regions=_bed(config, "data.regions"),
                exclude=_bed(config, "data.exclude") or (),
                max_n=app.number(config, "data.max_n", minimum=0, maximum=1),
            )
        checksums = [fingerprint(genome.path) for genome in genomes]
        sizes = [sum(genome.contigs.values()) for genome in genomes]
    data = [
        f"{Path(path).name}: {size:,} bases (SHA-256 of the file {checksum[:16]})"
        for path, size, checksum in zip(genome_paths, sizes, checksums, strict=True)
    ]
    identity = {
        "pipeline": "pretrain",
        "version": genosparse.__version__,
        "torch": torch.__version__,
        "seed": runtime.seed,
        "precision": precision,
        "start": encoder.fingerprint(),
        "genome": checksums,
        "data": _contents(config.data, aside=("genome", "regions", "exclude")),
        "regions": [fingerprint(app.path(config, key)) if OmegaConf.select(config, key) else None for key in _BED_KEYS],
        "trainer": _contents(config.trainer, aside=("max_minutes", "workers", "activation_checkpointing")),
    }
    inputs = [*genome_paths, *([config.init] if config.init else [])]
    resumes = claim_run(run_dir, identity, overwrite=overwrite, inputs=inputs)
    if resumes and (run_dir / METRICS_FILE).exists():
        print(f"{run_dir / 'model'} is there already, made by the same command; overwrite=true makes it anew")  # noqa: T201
        return

    encoder.to(runtime.device)
    if corpus is None:
        _finish(run_dir, encoder, config, data, settings, None, None, {}, {}, None)
        print(f"{run_dir / 'model'}: an untrained model of {encoder.num_parameters:,} parameters")  # noqa: T201
        return

    held_out = HeldOut(corpus, runtime.seed) if corpus.held_out else None
    baselines = held_out.baselines() if held_out is not None and held_out.num_sites else {}
    if not baselines:
        held_out = None
    with ExitStack() as stack:

        def open_log(last_step: int) -> Logger:
            table = CsvTable(run_dir / TABLE_FILE, COLUMNS, last_step=last_step)
            logger = stack.enter_context(
                open_logger(
                    config.logger, run_dir=run_dir, name=config.name, config=_contents(config, aside=()), table=table
                )
            )
            loggers.append(logger)
            return logger

        loggers: list[Logger] = []
        total = None if settings.max_steps is None else settings.max_steps * settings.batch_bases * settings.accumulate
        bar = stack.enter_context(progress("pretraining", total, "bases"))
        result = train(
            encoder,
            MaskedWindows(corpus, masking, runtime.seed),
            settings,
            run_dir=run_dir,
            context=context,
            precision=precision,
            held_out=held_out,
            open_log=open_log,
            bar=bar,
        )
        if result.stopped_by is not None:
            raise app.Interrupted(
                result.stopped_by, f"stopped after step {result.step} and saved; the same command goes on from there"
            )
        metrics = _final_metrics(encoder, held_out, max(1, settings.batch_bases // context), precision)
        loggers[0].summarize({**metrics, **{f"baseline_{name}": value for name, value in baselines.items()}})
    table = CsvTable(run_dir / TABLE_FILE, COLUMNS, last_step=result.step)
    _finish(run_dir, encoder, config, data, settings, result, held_out, metrics, baselines, table)
    _report(run_dir, metrics, baselines, held_out)


_BED_KEYS = ("data.regions", "data.exclude")


def _training_precision(config: DictConfig, runtime: app.Runtime) -> str:
    """``auto`` trains in bfloat16 where the processor multiplies it natively."""
    if config.precision == "auto" and runtime.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return runtime.precision


def _settings(kind: type[Any], node: DictConfig, prefix: str) -> Any:
    try:
        return kind(**_contents(node, aside=()))
    except TypeError as error:
        raise ConfigError(f"{prefix}: {error}") from error


def _contents(node: Any, *, aside: Sequence[str]) -> dict[str, Any]:
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in aside}


def _make_encoder(config: DictConfig) -> Encoder:
    """A new encoder as ``model`` describes it, or the one in the folder that ``init`` names."""
    if config.init is not None:
        return Encoder.from_pretrained(app.path(config, "init"))
    return Encoder(EncoderConfig.from_dict(_contents(config.model, aside=("name", "context"))))


def _validation(config: DictConfig) -> float | list[str]:
    value = config.data.validation
    if isinstance(value, ListConfig):
        return [str(name) for name in value]
    if isinstance(value, str):
        return [value]
    if value is None:
        return 0.0
    return app.number(config, "data.validation")


def _bed(config: DictConfig, key: str) -> list[Interval] | None:
    return None if OmegaConf.select(config, key) is None else list(read_bed(app.path(config, key)))


def _final_metrics(encoder: Encoder, held_out: HeldOut | None, batch_windows: int, precision: str) -> dict[str, float]:
    if held_out is None:
        return {}

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
    settings: TrainerSettings,
    result: TrainingResult | None,
    held_out: HeldOut | None,
    metrics: dict[str, float],
    baselines: dict[str, float],
    table: CsvTable | None,
) -> None:
    """Write the model folder, the curve and, last, the metrics, whose presence says that the run is finished."""
    steps = result.step if result is not None else 0
    if steps:
        trained = max(config.data.context, encoder.config.trained_context or 0)
        encoder.config = dataclasses.replace(encoder.config, trained_context=trained)
    training = {
        "steps": f"{steps:,}",
        "bases seen": f"{result.bases if result is not None else 0:,}",
        "context": f"{config.data.context:,} bases",
        "bases per step": f"{settings.batch_bases * settings.accumulate:,}",
        "peak learning rate": settings.learning_rate,
        "seed": config.seed,
    }
    validation = config.data.validation
    if isinstance(validation, ListConfig):
        validation = "contigs " + ", ".join(str(name) for name in validation)
    elif isinstance(validation, float):
        validation = f"the last {validation:.3g} of each contig"
    card = model_card(
        encoder,
        name=config.name,
        data=data,
        validation=str(validation),
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
        contents = {"step": steps, "model": metrics, "baselines_bits_per_base": baselines}
        file.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    (run_dir / CHECKPOINT).unlink(missing_ok=True)


def _report(run_dir: Path, metrics: dict[str, float], baselines: dict[str, float], held_out: HeldOut | None) -> None:
    lines = [f"{run_dir / 'model'}: the model; {run_dir / CURVE_FILE}: its loss curve"]
    if held_out is not None:
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
