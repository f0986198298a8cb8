"""``genosparse benchmark``: speed on this machine, suite by suite."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

import genosparse
from genosparse import example_data
from genosparse.attention import SparsePattern
from genosparse.benchmarking.attention import AttentionSuite
from genosparse.benchmarking.encoder import EncoderSuite
from genosparse.benchmarking.encoder_rivals import ENCODERS
from genosparse.benchmarking.kernels import KernelSuite
from genosparse.benchmarking.machine import describe_machine
from genosparse.benchmarking.pretraining import CLOCKS, PretrainingSuite
from genosparse.benchmarking.readers import LENGTHS as READER_LENGTHS
from genosparse.benchmarking.readers import ReaderSuite
from genosparse.benchmarking.recipes import TABLE_FILE, VARIANTS, RecipeSuite
from genosparse.benchmarking.results import Journal, Row, read_results, write_results
from genosparse.benchmarking.suites import Suite
from genosparse.benchmarking.trainable import TRAINABLE, TrainableShape
from genosparse.benchmarking.training import TrainingSuite
from genosparse.benchmarking.tuning import TuningSuite
from genosparse.benchmarking.variant_effect import VariantEffectSuite
from genosparse.errors import ConfigError
from genosparse.loggers import LOGGERS, open_logger
from genosparse.outputs import holds_run, open_run
from genosparse.pipelines import app
from genosparse.progress import progress

__all__ = ["main"]

RESULTS = "results.json"
JOURNAL = "finished.jsonl"
_RUNS = "runs"  # pretrainings of a suite
_PICTURES = (
    "attention.png", "encoder.png", "encoder-memory.png", "readers.png", "training.png", "training-memory.png",
    "variant-effect.png",
)  # fmt: skip
_OWNED = (RESULTS, JOURNAL, *_PICTURES, "configurations.json", "kernels.md", TABLE_FILE, _RUNS, "wandb", "wandb-id")
_MAX_LENGTH = 1 << 24


@app.pipeline("benchmark", paths=("run_dir", "genome", "model", "variants", "alignments", "reference"))
def main(config: DictConfig) -> None:
    """Measure a suite unit by unit into ``run_dir``, then write and print its tables."""
    name = app.choice(config, "suite", _SUITES)
    make, keys = _SUITES[name]
    _refuse_other_settings(name, keys)
    app.choice(config, "logger", LOGGERS)
    overwrite = app.flag(config, "overwrite")
    runtime = app.setup(config, prefer_cuda=True)
    suite = make(config, runtime)
    run_dir = Path(app.path(config, "run_dir"))

    machine = describe_machine(runtime.device)
    settings = suite.settings
    identity = {
        "pipeline": "benchmark",
        "version": genosparse.__version__,
        "suite": name,
        "seed": runtime.seed,
        "machine": machine,
        "settings": settings,
    }
    if not overwrite and holds_run(run_dir, identity) and (run_dir / RESULTS).exists():
        (run_dir / JOURNAL).unlink(missing_ok=True)  # of a run killed after its last output
        print(suite.table(read_results(run_dir / RESULTS)))  # noqa: T201
        print(f"\n{run_dir / RESULTS} is there already, made by these settings; overwrite=true measures anew")  # noqa: T201
        return
    with open_run(run_dir, identity, owns=_OWNED, overwrite=overwrite):
        rows = _measure(suite, run_dir)
        written = suite.write(run_dir, rows)
        write_results(run_dir / RESULTS, name, machine, settings, rows)
        with open_logger(config.logger, run_dir=run_dir, name=config.name, config=app.as_dict(config)) as logger:
            for step, row in enumerate(rows):
                logger.log(step, {key: value for key, value in row.items() if value is not None})
            logger.summarize({"rows": len(rows), "machine": machine})
        (run_dir / JOURNAL).unlink()
    print("\n".join([_describe(machine), "", suite.table(rows), "", *map(str, [run_dir / RESULTS, *written])]))  # noqa: T201


def _measure(suite: Suite, run_dir: Path) -> list[Row]:
    """Do the units that are not in the run's journal yet; return the rows of all."""
    journal = Journal(run_dir / JOURNAL)
    units = suite.units()
    done = sum(unit.weight for unit in units if unit.name in journal.units)
    rows: list[Row] = []
    try:
        with progress("measuring", sum(unit.weight for unit in units), initial=round(done)) as bar:
            for unit in units:
                if unit.name not in journal.units:
                    bar.advance(0, at=unit.name)
                    journal.add(unit.name, suite.measure(unit, rows))
                    bar.advance(unit.weight)
                rows += journal.units[unit.name]
    except KeyboardInterrupt:
        raise app.Interrupted(signal.SIGINT, _STOPPED) from None
    except app.Interrupted as stop:
        raise app.Interrupted(stop.signal_number, _STOPPED) from None
    return rows


_STOPPED = "stopped; the same command goes on from what is finished"


def _attention(config: DictConfig, runtime: app.Runtime) -> Suite:
    suite = AttentionSuite(
        pattern=SparsePattern.from_dict(app.as_dict(config.pattern)),
        lengths=_integers(config, "lengths", maximum=_MAX_LENGTH),
        dtypes=_names(config, "dtypes") or ("float32", "bfloat16"),
        modes=_names(config, "modes"),
        batch=app.integer(config, "batch", minimum=1, maximum=1 << 16),
        heads=app.integer(config, "heads", minimum=1, maximum=1 << 16),
        kv_heads=app.integer(config, "kv_heads", minimum=1, maximum=1 << 16),
        head_dim=app.integer(config, "head_dim", minimum=1),
        rivals=_names(config, "rivals"),
        repeats=app.integer(config, "repeats", minimum=1, maximum=10_000),
        max_seconds=app.number(config, "max_seconds", minimum=0),
        device=runtime.device,
    )
    if not app.flag(config, "tune"):
        return suite
    if not (app.is_given("name") or app.is_given("run_dir")):
        config.name = f"{config.name}-tuning"
    return TuningSuite(suite)


def _kernels(config: DictConfig, runtime: app.Runtime) -> Suite:
    return KernelSuite(
        archs=_integers(config, "archs"),
        head_dims=_integers(config, "head_dims"),
        dtypes=_names(config, "dtypes") or ("bfloat16",),
    )


def _encoder(config: DictConfig, runtime: app.Runtime) -> Suite:
    _only_on_cpu(runtime)
    rivals = _names(config, "rivals") if app.is_given("rivals") else tuple(ENCODERS)[1:]
    return EncoderSuite(
        pattern=SparsePattern.from_dict(app.as_dict(config.pattern)),
        lengths=_integers(config, "lengths", maximum=_MAX_LENGTH),
        layers=_integers(config, "layers", maximum=1 << 10) if app.is_given("layers") else (1, 4),
        width=app.integer(config, "width", minimum=1),
        heads=app.integer(config, "heads", minimum=1, maximum=1 << 16),
        rivals=rivals,
        dtypes=_names(config, "dtypes") or ("float32", "bfloat16"),
        repeats=app.integer(config, "repeats", minimum=1, maximum=10_000),
        max_seconds=app.number(config, "max_seconds", minimum=0),
        memory_limit=_memory_limit(config),
    )


def _training(config: DictConfig, runtime: app.Runtime) -> Suite:
    _only_on_cpu(runtime)
    return TrainingSuite(
        pattern=SparsePattern.from_dict(app.as_dict(config.pattern)),
        lengths=_integers(config, "lengths", maximum=_MAX_LENGTH),
        layers=app.integer(config, "layers", minimum=1, maximum=1 << 10),
        width=app.integer(config, "width", minimum=1),
        heads=app.integer(config, "heads", minimum=1, maximum=1 << 16),
        kv_heads=app.integer(config, "kv_heads", minimum=1, maximum=1 << 16),
        dtypes=_names(config, "dtypes") or ("float32", "bfloat16"),
        repeats=app.integer(config, "repeats", minimum=1, maximum=10_000),
        max_seconds=app.number(config, "max_seconds", minimum=0),
        memory_limit=_memory_limit(config),
    )


def _variant_effect(config: DictConfig, runtime: app.Runtime) -> Suite:
    _only_on_cpu(runtime)
    shape = {
        key: app.integer(config, key, minimum=1, maximum=1 << 16)
        for key in ("layers", "width", "heads", "kv_heads")
        if app.is_given(key)
    }
    if config.model is not None and (given := [key for key in (*shape, "pattern") if app.is_given(key)]):
        raise ConfigError(f"model= brings its own shape; leave out {', '.join(f'{key}=' for key in given)}")
    return VariantEffectSuite(
        genome=_given_path(config, "genome") or str(example_data.path("ecoli536.fa.gz")),
        model=None if config.model is None else app.model_folder(config),
        pattern=SparsePattern.from_dict(app.as_dict(config.pattern)),
        lengths=_integers(config, "lengths", maximum=_MAX_LENGTH) if app.is_given("lengths") else (512, 2048, 8192),
        sites=app.integer(config, "sites", minimum=1, maximum=1 << 20),
        repeats=app.integer(config, "repeats", minimum=1, maximum=10_000),
        max_seconds=app.number(config, "max_seconds", minimum=0),
        seed=runtime.seed,
        **shape,
    )


def _memory_limit(config: DictConfig) -> float | None:
    return None if config.memory_limit is None else app.number(config, "memory_limit", minimum=0.5)


def _only_on_cpu(runtime: app.Runtime) -> None:
    if runtime.device.type != "cpu":
        raise ConfigError(f"device={runtime.device}: the suite is measured on a CPU; give device=cpu")


def _given_path(config: DictConfig, key: str) -> str | None:
    return None if OmegaConf.select(config, key) is None else app.path(config, key)


def _readers(config: DictConfig, runtime: app.Runtime) -> Suite:
    lengths = _integers(config, "lengths", maximum=_MAX_LENGTH) if app.is_given("lengths") else READER_LENGTHS
    return ReaderSuite(
        genome=_given_path(config, "genome") or str(example_data.path("ecoli536.fa.gz")),
        variants=_given_path(config, "variants") or str(example_data.path("ecoli536.variants.vcf.gz")),
        alignments=_given_path(config, "alignments"),
        reference=_given_path(config, "reference"),
        lengths=lengths,
        repeats=app.integer(config, "repeats", minimum=1, maximum=10_000),
        max_seconds=app.number(config, "max_seconds", minimum=0),
        seed=runtime.seed,
    )


def _pretraining(config: DictConfig, runtime: app.Runtime) -> Suite:
    _only_on_cpu(runtime)
    shape = {
        key: app.integer(config, key, minimum=1, maximum=1 << 16) if app.is_given(key) else value
        for key, value in (("layers", 4), ("width", 128), ("heads", 4), ("kv_heads", 2))
    }
    pattern = SparsePattern(window=64, stride=128, num_global=1)
    return PretrainingSuite(
        genome=_given_path(config, "genome") or str(example_data.path("ecoli536.fa.gz")),
        folder=Path(app.path(config, "run_dir")) / _RUNS,
        shape=TrainableShape(
            pattern=SparsePattern.from_dict(app.as_dict(config.pattern)) if app.is_given("pattern") else pattern,
            context=app.integer(config, "context", minimum=1, maximum=_MAX_LENGTH),
            convolution=None if config.convolution is None else app.integer(config, "convolution", minimum=0),
            **shape,
        ),
        rivals=_names(config, "rivals") if app.is_given("rivals") else tuple(TRAINABLE)[1:],
        rates=_numbers(config, "rates"),
        sweep_minutes=app.number(config, "sweep_minutes", minimum=0),
        minutes=app.number(config, "minutes", minimum=0),
        seeds=_seeds(config),
        batch_bases=app.integer(config, "batch_bases", minimum=1),
        clock=app.choice(config, "clock", CLOCKS),
    )


def _recipes(config: DictConfig, runtime: app.Runtime) -> Suite:
    genomes = [str(example_data.path("ecoli536.fa.gz"))] if config.genome is None else app.paths(config, "genome")
    return RecipeSuite(
        genomes=tuple(genomes),
        folder=Path(app.path(config, "run_dir")) / _RUNS,
        minutes=app.number(config, "minutes", minimum=0),
        seeds=_seeds(config),
        variants=_names(config, "recipes") or tuple(VARIANTS),
        settings_of_all=_names(config, "settings"),
        threads=None if config.threads is None else runtime.threads,
        device=str(runtime.device),
    )


def _seeds(config: DictConfig) -> tuple[int, ...]:
    value = config.seeds
    if not isinstance(value, ListConfig):
        return (app.integer(config, "seeds", minimum=0),)
    return tuple(app.integer(config, f"seeds[{index}]", minimum=0) for index in range(len(value)))


def _numbers(config: DictConfig, key: str) -> tuple[float, ...]:
    value = OmegaConf.select(config, key)
    if not isinstance(value, ListConfig):
        return (app.number(config, key, minimum=0),)
    return tuple(app.number(config, f"{key}[{index}]", minimum=0) for index in range(len(value)))


# By name: how to make a suite of a config, and the settings that it reads besides those of every pipeline.
_SUITES: dict[str, tuple[Callable[[DictConfig, app.Runtime], Suite], tuple[str, ...]]] = {
    "attention": (
        _attention,
        (
            "lengths", "dtypes", "modes", "batch", "heads", "kv_heads", "head_dim", "pattern", "rivals", "repeats",
            "max_seconds", "tune",
        ),
    ),
    "encoder": (
        _encoder,
        (
            "lengths", "layers", "width", "heads", "pattern", "rivals", "dtypes", "repeats", "max_seconds",
            "memory_limit",
        ),
    ),
    "training": (
        _training,
        (
            "lengths", "layers", "width", "heads", "kv_heads", "pattern", "dtypes", "repeats", "max_seconds",
            "memory_limit",
        ),
    ),
    "variant-effect": (
        _variant_effect,
        (
            "genome", "model", "lengths", "sites", "layers", "width", "heads", "kv_heads", "pattern", "repeats",
            "max_seconds",
        ),
    ),
    "readers": (
        _readers, ("genome", "variants", "alignments", "reference", "lengths", "repeats", "max_seconds"),
    ),
    "kernels": (_kernels, ("archs", "head_dims", "dtypes")),
    "pretraining": (
        _pretraining,
        (
            "genome", "minutes", "sweep_minutes", "rates", "seeds", "rivals", "context", "batch_bases", "clock",
            "layers", "width", "heads", "kv_heads", "convolution", "pattern",
        ),
    ),
    "recipes": (_recipes, ("genome", "minutes", "seeds", "recipes", "settings")),
}  # fmt: skip


def _refuse_other_settings(name: str, keys: tuple[str, ...]) -> None:
    """Raise when the command line gives a setting that the suite does not read."""
    if app.is_given("precision"):
        raise ConfigError("precision= is of models; give dtypes=, as dtypes=[float32,bfloat16]")
    for _, others in _SUITES.values():
        for key in others:
            if key not in keys and app.is_given(key):
                raise ConfigError(f"suite={name} does not use {key}=; it takes {', '.join(f'{key}=' for key in keys)}")


def _integers(config: DictConfig, key: str, *, maximum: int | None = None) -> tuple[int, ...]:
    value = OmegaConf.select(config, key)
    if not isinstance(value, ListConfig):
        return (app.integer(config, key, minimum=1, maximum=maximum),)
    return tuple(app.integer(config, f"{key}[{index}]", minimum=1, maximum=maximum) for index in range(len(value)))


def _names(config: DictConfig, key: str) -> tuple[str, ...]:
    value = OmegaConf.select(config, key)
    values = list(value) if isinstance(value, ListConfig) else [] if value is None else [value]
    return tuple(map(str, values))


def _describe(machine: dict[str, Any]) -> str:
    where = f"{machine['processor']}, {machine['threads']} threads"
    versions = f"torch {machine['torch']}, triton {machine['triton'] or 'absent'}"
    return f"{machine['gpu'] or where}; {versions}"


if __name__ == "__main__":
    sys.exit(main())
