"""``genosparse quickstart``: the three main pipelines on the bundled genome, as a user would run them."""

import sys
from pathlib import Path

import numpy as np
import pysam
from numpy.typing import NDArray
from omegaconf import DictConfig

from genosparse import example_data
from genosparse.commands import run_genosparse, told
from genosparse.errors import OutputError
from genosparse.pipelines import app
from genosparse.plotting import plot_score_histogram

__all__ = ["auroc", "main"]


_CONTEXT = 2048  # bases, of training windows and of variants alike


@app.pipeline("quickstart", paths=("output", "run_dir"))
def main(config: DictConfig) -> None:
    """Run pretrain, variant-effect and embed, and say how well the scores tell two classes of variants apart."""
    folder, runs = Path(app.path(config, "output")), Path(app.path(config, "run_dir"))
    minutes = app.number(config, "minutes", minimum=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder output={folder}: {error.strerror}; pass another output=") from error
    shared = [f"{key}={config[key]}" for key in ("seed", "device", "precision")]
    shared += [] if config.threads is None else [f"threads={config.threads}"]
    genome = example_data.path("ecoli536.fa.gz")
    model = runs / "pretrain" / "model"
    scored, embeddings = folder / "variants.scored.vcf.gz", folder / "embeddings.parquet"
    _genosparse(
        "pretrain",
        f"data.genome={genome}",
        "data.validation=0.1",
        f"data.context={_CONTEXT}",
        f"model={config.model}",
        "trainer=cpu",
        f"trainer.max_minutes={minutes:g}",
        f"run_dir={runs / 'pretrain'}",
        f"overwrite={str(app.flag(config, 'overwrite')).lower()}",
        *shared,
    )
    # More minutes of pretraining make another model, and what an earlier one gave is of no more use.
    _genosparse(
        "variant-effect",
        f"model={model}",
        f"genome={genome}",
        f"variants={example_data.path('ecoli536.variants.vcf.gz')}",
        f"output={scored}",
        f"context={_CONTEXT}",
        f"run_dir={runs / 'variant-effect'}",
        "overwrite=true",
        *shared,
    )
    _genosparse(
        "embed",
        f"model={model}",
        f"genome={genome}",
        f"intervals={example_data.path('ecoli536.intervals.bed')}",
        f"output={embeddings}",
        f"run_dir={runs / 'embed'}",
        "overwrite=true",
        *shared,
    )

    is_stop, held_out, llr = _read_scores(scored)
    area = auroc(llr[is_stop], llr[~is_stop])
    unseen = auroc(llr[is_stop & held_out], llr[~is_stop & held_out])
    picture = folder / "variant_scores.png"
    plot_score_histogram(
        picture,
        {"stop gained": llr[is_stop], "synonymous": llr[~is_stop]},
        f"E. coli 536, stop gained against synonymous: AUROC {area:.3f}",
        "llr (nats; negative: the model finds ALT less likely)",
    )
    print(  # noqa: T201
        f"\nStop-gained against synonymous by llr: AUROC {area:.3f} ({len(llr)} variants; {unseen:.3f} for the "
        f"{held_out.sum()} of them in sequence that was not trained on)\n"
    )
    made = {
        "model": model,
        "scored variants": scored,
        "embeddings": embeddings,
        **{f"picture ({path.stem.replace('_', ' ')})": path for path in sorted((runs / "pretrain").rglob("*.png"))},
        "picture (variant scores)": picture,
    }
    width = max(map(len, made))
    print("\n".join(f"{what:<{width}}  {path}" for what, path in made.items()))  # noqa: T201


def auroc(lower: NDArray[np.float64], higher: NDArray[np.float64]) -> float:
    """Return the probability that a score of ``higher`` exceeds one of ``lower``; ties count half (Mann-Whitney)."""
    ordered = np.sort(lower)
    below, not_above = (np.searchsorted(ordered, higher, side).sum() for side in ("left", "right"))
    return float((below + not_above) / 2 / max(1, len(lower) * len(higher)))


def _read_scores(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Read which variants gain a stop, which are held out, and their llr."""
    verbosity = pysam.set_verbosity(0)  # htslib would complain of an index that nobody needs
    with pysam.VariantFile(str(path)) as file:
        rows = [
            (record.info["CLASS"] == "stop_gained", "HELD_OUT" in record.info, record.info["GS_LLR"][0])
            for record in file
        ]
    pysam.set_verbosity(verbosity)
    is_stop, held_out, llr = map(np.array, zip(*rows, strict=True))
    return is_stop, held_out, llr


def _genosparse(*arguments: str) -> None:
    """Show and run one command; end as it ends when it fails."""
    print(f"\n$ {told(*arguments)}", flush=True)  # noqa: T201
    if status := run_genosparse(*arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    sys.exit(main())
