"""``genosparse bundle``: make an encoder that comes with the package, from its genomes to its folder and card.

It is a pipeline, and no part of ``genosparse.bundled``, which encoders look names up in and which is below them: this
starts ``genosparse pretrain``, and measures what came out.
"""

import csv
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, ListConfig

import genosparse
from genosparse.benchmarking.machine import describe_machine
from genosparse.benchmarking.tables import markdown_table
from genosparse.commands import run_genosparse, told
from genosparse.encoder import Encoder
from genosparse.encoder.checkpoints import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from genosparse.errors import ConfigError, GenosparseError, InputFileNotFoundError, OutputError
from genosparse.intervals import Interval
from genosparse.outputs import atomic_output, fingerprint, holds_run, open_run
from genosparse.pipelines import app
from genosparse.pipelines.pretrain import TABLE_FILE
from genosparse.pretraining import Corpus, HeldOut, evaluate
from genosparse.pretraining.card import bundled_card
from genosparse.pretraining.leakage import leakage
from genosparse.readers import Genome, default_token_cache, read_tokens

__all__ = ["RECIPES", "HeldOutSequence", "Recipe", "main"]

RESULTS_FILE = "bundle.json"
_MOST_BYTES = 8_000_000
_BATCH_BASES = 65_536  # of evaluation


@dataclass(frozen=True, slots=True)
class HeldOutSequence:
    """Sequence that was not trained on.

    Attributes:
        file: Its genome.
        told: What it is, for the card.
        contigs: Those that count; none for all.
    """

    file: str
    told: str
    contigs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a bundled encoder is trained and tested on; ``conf/experiment/`` has how.

    Attributes:
        training: Genomes, relative to the folder of data.
        tests: What it is tested on, each by itself.
        held_out: Contigs of the training genomes that are not trained on.
        sources: Where the genomes come from, for the card.
        about: What it is for, and why it is tested as it is, for the card.
        limits: For the card.
    """

    training: tuple[str, ...]
    tests: tuple[HeldOutSequence, ...]
    sources: tuple[str, ...]
    about: tuple[str, ...]
    limits: tuple[str, ...]
    held_out: tuple[str, ...] = ()


_SMALL = (
    "About a million weights and some hours of two processor cores: it has learned the composition of the genomes, "
    "codon usage and short motifs. For embeddings and scores to be relied on, pretrain a larger one on your genomes."
)
# A genus is held out whole, as strains of one species would share most of their sequence with the training. Vibrio is
# of the same class as Escherichia and Salmonella and of another order: what the encoder knows of bacteria, and not of a
# strain, should carry over. Helicobacter is alone of its phylum here; its test would ask six genomes about another.
RECIPES: Mapping[str, Recipe] = {
    "bacteria-mini": Recipe(
        training=(
            "ecoli_k12/GCF_000005845.2_ASM584v2_genomic.fna.gz",
            "bacteria/Escherichia_coli_536_NC_008253.fna.gz",
            "bacteria/Escherichia_coli_O157H7_Sakai_NC_002695.fna.gz",
            "bacteria/Salmonella_enterica_Typhi_CT18_NC_003198.fna.gz",
            "bacteria/Staphylococcus_aureus_N315_NC_002745.fna.gz",
            "bacteria/Helicobacter_pylori_G27_NC_011333.fna.gz",
            "bacteria/Mycoplasma_mycoides_GCF_000023685.1.gbff.gz",
        ),
        tests=(
            HeldOutSequence(
                "bacteria/Vibrio_cholerae_N16961_AE003852.fna.gz", "Vibrio cholerae N16961, a genus that was held out"
            ),
        ),
        sources=(
            "complete genomes of NCBI RefSeq and INSDC, whose databases put no restriction on the use of sequence "
            "records: NC_000913.3, NC_008253.1, NC_002695.1, NC_003198.1 with its plasmids NC_003384.1 and "
            "NC_003385.1, NC_002745.2, NC_011333.1, GCF_000023685.1; tested on AE003852.1 and AE003853.1",
        ),
        about=(
            "For bacterial genomes: to try genosparse without a training of your own, and to begin one from "
            "(`init=bacteria-mini`).",
            "",
            "Tested on a genus that it has not seen. Vibrio is of the same class as Escherichia and Salmonella, which "
            "most of the training is of, and of another order.",
        ),
        limits=(
            _SMALL,
            "Bacteria that are further from these than Vibrio is were not tested. Mycoplasma reads TGA as a codon, the "
            "others as a stop.",
        ),
    ),
    "yeast-mini": Recipe(
        training=("yeast/S_cerevisiae.fasta.gz",),
        held_out=("chrXI",),
        tests=(
            HeldOutSequence("yeast/S_cerevisiae.fasta.gz", "chromosome XI of S288C, which was held out", ("chrXI",)),
            HeldOutSequence("yeast/SK1.genome.fa.gz", "chromosome XI of the strain SK1", ("chrXI",)),
            HeldOutSequence("yeast/SK1.genome.fa.gz", "chromosome I of SK1, as S288C has it too", ("chrI",)),
        ),
        sources=(
            "S. cerevisiae S288C, R64-2-1 of the Saccharomyces Genome Database; tested on the assembly of SK1 by Yue "
            "et al. 2017 (Nature Genetics 49:913-924)",
        ),
        about=(
            "For Saccharomyces cerevisiae.",
            "",
            "A strain of the same species shares most of its sequence with the training, so that chromosome XI was not "
            "trained on. The figure on SK1's chromosome I, whose like was trained on, tells what memory adds.",
        ),
        limits=(_SMALL, "Other yeasts were not tested."),
    ),
    "human-chr20-mini": Recipe(
        training=("human_chr20_b37/20.fa.gz",),
        tests=(
            HeldOutSequence(
                "human_1mb/Homo_sapiens_assembly19_chr1_1M.fasta", "first megabase of chromosome 1, GRCh37"
            ),
            HeldOutSequence("human_1mb/human_g1k_v37.chr17_1Mb.fasta", "first megabase of chromosome 17, GRCh37"),
        ),
        sources=("chromosome 20 of GRCh37 (Genome Reference Consortium); tested on chromosomes 1 and 17 of the same",),
        about=(
            "For human sequence over contexts of up to 32,768 bases: to try long contexts without a training of your "
            "own.",
            "",
            "Tested on other chromosomes. Ends of chromosomes are full of repeats and segmental duplications, some of "
            "which chromosome 20 has too.",
        ),
        limits=(
            _SMALL,
            "One chromosome is a fiftieth of the genome: it knows the commonest repeats and little of the rest. It is "
            "not for the interpretation of variants.",
        ),
    ),
}


@app.pipeline("bundle", paths=("data", "output", "run_dir"))
def main(config: DictConfig) -> None:
    """Pretrain as the recipe says, test before and after rounding, and write the model folder."""
    name = app.choice(config, "recipe", RECIPES)
    recipe, folder = RECIPES[name], Path(app.path(config, "data"))
    minutes = app.number(config, "minutes", minimum=0)
    output, run_dir = Path(app.path(config, "output")), Path(app.path(config, "run_dir"))
    settings, overwrite = _settings(config), app.flag(config, "overwrite")
    runtime = app.setup(config)
    files = dict.fromkeys([*recipe.training, *(test.file for test in recipe.tests)])
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputFileNotFoundError(f"data={folder} lacks {', '.join(missing)}, which {name} is made of")
    checksums = {file: fingerprint(folder / file) for file in files}
    identity = {
        "pipeline": "bundle",
        "version": genosparse.__version__,
        "torch": torch.__version__,
        "recipe": name,
        "seed": runtime.seed,
        "precision": str(config.precision),
        "settings": settings,
        "genomes": checksums,
    }
    is_ours = holds_run(run_dir, identity)
    if (output / CONFIG_FILE).exists() and not overwrite:
        if not is_ours or _weights_made(run_dir) != Encoder.from_pretrained(output.absolute()).fingerprint():
            raise OutputError(f"output={output} exists, and not from this run; pass overwrite=true or another output=")
        print(f"{output} is there already, made by these settings; overwrite=true makes it anew")  # noqa: T201
        return
    inputs = [folder / file for file in files]
    with open_run(
        run_dir, identity, owns=("pretrain", "rounded", name, RESULTS_FILE), overwrite=overwrite, inputs=inputs
    ):
        command = _pretrain_command(name, recipe, folder, run_dir / "pretrain", minutes, settings, config)
        print(f"$ {told(*command)}", flush=True)  # noqa: T201
        if status := run_genosparse(*command):
            raise SystemExit(status)
        encoder = Encoder.from_pretrained((run_dir / "pretrain" / "model").absolute())
        encoder.save_pretrained(run_dir / "rounded", dtype=torch.bfloat16)
        rounded = Encoder.from_pretrained((run_dir / "rounded").absolute())
        size = (run_dir / "rounded" / WEIGHTS_FILE).stat().st_size
        if size > _MOST_BYTES:
            raise ConfigError(
                f"{name} takes {size:,} bytes, more than the {_MOST_BYTES:,} of a bundled encoder; make the model "
                "smaller by settings="
            )
        models = {"float32": encoder.to(runtime.device), "bfloat16": rounded.to(runtime.device)}
        results = {
            "recipe": name,
            "weights": rounded.fingerprint(),
            "bytes": size,
            "minutes": _minutes(run_dir / "pretrain" / TABLE_FILE),
            "machine": describe_machine(runtime.device),
            "genomes": checksums,
            "tests": _measure(recipe, folder, checksums, models, runtime.seed),
        }
        with atomic_output(run_dir / RESULTS_FILE) as file:
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        card = (run_dir / "pretrain" / "model" / CARD_FILE).read_text(encoding="utf-8")
        (output / CONFIG_FILE).unlink(missing_ok=True)  # of an earlier one: it is no model until all of it is there
        rounded.save_pretrained(output, card=_card(card, name, recipe, results), dtype=torch.bfloat16)
        shutil.rmtree(run_dir / "rounded")
    made = f"{output}: the model, {size:,} bytes; {run_dir / RESULTS_FILE}: its tests"
    print("\n".join(["", _table(results["tests"]), "", made]))  # noqa: T201


def _settings(config: DictConfig) -> list[str]:
    """Further settings of pretrain."""
    value = config.settings
    if not isinstance(value, ListConfig) or not all(isinstance(each, str) and "=" in each for each in value):
        raise ConfigError(f'settings={value}: expected settings of pretrain, as ["trainer.max_steps=20"]')
    return list(value)


def _pretrain_command(
    name: str,
    recipe: Recipe,
    folder: Path,
    run_dir: Path,
    minutes: float,
    settings: Sequence[str],
    config: DictConfig,
) -> list[str]:
    # What is watched while it trains; no step is chosen by it.
    watched = f"data.validation=[{','.join(recipe.held_out)}]"
    if not recipe.held_out:
        watched = f"data.validation_genomes={_path_list(folder, [test.file for test in recipe.tests])}"
    shared = [f"{key}={config[key]}" for key in ("seed", "device", "precision", "logger")]
    shared += [] if config.threads is None else [f"threads={config.threads}"]
    return [
        "pretrain",
        f"+experiment={name}",
        f"data.genome={_path_list(folder, recipe.training)}",
        watched,
        f"trainer.max_minutes={minutes:g}",
        f"run_dir={run_dir}",
        *shared,
        *settings,
    ]


def _path_list(folder: Path, files: Sequence[str]) -> str:
    """Paths as one setting, each quoted for Hydra."""
    return f"[{','.join(QuotedString(str(folder / file), Quote.single).with_quotes() for file in files)}]"


def _weights_made(run_dir: Path) -> str | None:
    """Fingerprint of the weights that a run has made; None where it has not come so far."""
    try:
        return str(json.loads((run_dir / RESULTS_FILE).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _minutes(table: Path) -> float:
    """Minutes of training, over all starts, up to the last row of a run's table."""
    with table.open(encoding="utf-8", newline="") as file:
        return max((float(row["seconds"]) for row in csv.DictReader(file)), default=0.0) / 60


def _measure(
    recipe: Recipe, folder: Path, checksums: Mapping[str, str], models: Mapping[str, Encoder], seed: int
) -> list[dict[str, Any]]:
    """Each test of both models, and of the k-mer models, at the same sites, in float32."""
    encoder = models["float32"]
    if encoder.config.trained_context is None:
        raise GenosparseError("nothing was trained; give minutes= above 0")
    rows = []
    with ExitStack() as opened:
        genomes = [opened.enter_context(Genome(folder / file)) for file in recipe.training]
        tokens = [
            read_tokens(genome, default_token_cache(), checksums[file])
            for genome, file in zip(genomes, recipe.training, strict=True)
        ]
        for test in recipe.tests:
            options: dict[str, Any] = {"validation": list(recipe.held_out) or None, "tokens": tokens}
            if test.file not in recipe.training:
                apart = opened.enter_context(Genome(folder / test.file))
                excluded = [
                    Interval(contig, 0, genome.contigs[contig])
                    for genome in genomes
                    for contig in recipe.held_out
                    if contig in genome.contigs
                ]
                options = {
                    "validation": None,
                    "exclude": excluded,
                    "validation_genomes": [apart],
                    "tokens": [*tokens, read_tokens(apart, default_token_cache(), checksums[test.file])],
                }
            corpus = Corpus(genomes, context=encoder.config.trained_context, **options)
            if test.contigs:
                corpus.held_out = [span for span in corpus.held_out if span.contig in test.contigs]
            rows.append({"told": test.told, "file": test.file, **_figures(corpus, models, seed)})
            print(_told_row(rows[-1]), flush=True)  # noqa: T201
    return rows


def _figures(corpus: Corpus, models: Mapping[str, Encoder], seed: int) -> dict[str, Any]:
    held_out, leak = HeldOut(corpus, seed), leakage(corpus)
    figures: dict[str, Any] = {
        "bases": held_out.num_bases,
        "sites": held_out.num_sites,
        "seen_32mers": None if leak is None else leak.share,
        "baselines": held_out.baselines(),
    }
    batch_windows = max(1, _BATCH_BASES // corpus.context)
    for dtype, encoder in models.items():
        one = evaluate(encoder, held_out, batch_windows=batch_windows)
        both = evaluate(encoder, held_out, batch_windows=batch_windows, both_strands=True)
        figures[dtype] = {
            "bits_per_base": one["bits_per_base"],
            "bits_per_base_both_strands": both["bits_per_base"],
            "accuracy": one["accuracy"],
        }
    return figures


def _told_row(row: Mapping[str, Any]) -> str:
    both = {dtype: row[dtype]["bits_per_base_both_strands"] for dtype in ("float32", "bfloat16")}
    return (
        f"{row['told']}: {both['bfloat16']:.4f} bits per base at {row['sites']:,} sites, both strands "
        f"({both['float32']:.4f} before rounding), interpolated k-mers {row['baselines']['interpolated']:.4f}"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    titles = (
        "tested on", "sites", "32-mers seen", "one strand", "both strands", "both, before rounding", "accuracy",
        "interpolated k-mers", "best k-mer table",
    )  # fmt: skip
    cells = [
        [
            row["told"],
            f"{row['sites']:,}",
            "" if row["seen_32mers"] is None else f"{row['seen_32mers']:.2%}",
            f"{row['bfloat16']['bits_per_base']:.4f}",
            f"{row['bfloat16']['bits_per_base_both_strands']:.4f}",
            f"{row['float32']['bits_per_base_both_strands']:.4f}",
            f"{row['bfloat16']['accuracy']:.4f}",
            f"{row['baselines']['interpolated']:.4f}",
            f"{row['baselines']['best_kmer']:.4f}",
        ]
        for row in rows
    ]
    return markdown_table(titles, cells, left=("tested on",))


def _card(card: str, name: str, recipe: Recipe, results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['threads']} threads of {machine['processor'] or 'an unnamed processor'}"
    sections = {
        "What it is for": recipe.about,
        "Tests": [
            "Bits per base at sparse sites shown as MASK, in sequence that was not trained on; the k-mer models are "
            "two-sided, counted on both strands of the same training genomes, and measured at the same sites. Lower is "
            "better; 2 is chance. The weights are kept in bfloat16 and computed with in float32; the figures are of "
            "these, and one column of what they were rounded from. No step was chosen by them.",
            "",
            _table(results["tests"]),
        ],
        "How it was made": [
            f"By `genosparse bundle recipe={name}`: {results['minutes']:.1f} minutes of training on {where}, torch "
            f"{machine['torch']}.",
            "",
            *(f"- source: {source}" for source in recipe.sources),
            *(f"- {Path(file).name}: SHA-256 {checksum}" for file, checksum in results["genomes"].items()),
        ],
    }
    return bundled_card(card, name=name, sections=sections, limits=recipe.limits)


if __name__ == "__main__":
    sys.exit(main())
