"""The model card that goes with the weights. It holds no date and no path: equal runs give equal cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import genosparse
from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig

__all__ = ["bundled_card", "lineage", "model_card"]

_CARD_FILE = "README.md"
_BEGAN_FROM, _DATA, _SCORES, _LIMITS = "## Began from", "## Data", "## Scores", "## Limits"
_ANY_FOLDER = '"path/to/this/folder"'
# Of an ancestor's card, which may be anything, no more than this is taken over.
_MOST_LINES, _MOST_LETTERS = 40, 300


def model_card(
    encoder: Encoder,
    *,
    name: str,
    data: Sequence[str],
    ancestors: Sequence[str] = (),
    validation: str,
    training: Mapping[str, object],
    metrics: Mapping[str, float],
    baselines: Mapping[str, float],
    sites: int,
) -> str:
    """Write the card as Markdown.

    Args:
        encoder: The trained model.
        name: The run's name.
        data: One line per genome or other input: its file name, size and checksum.
        ancestors: What ``lineage`` says of the model that training began from; none for a new one.
        validation: What was held out.
        training: Settings and length of the training, in the order to show.
        metrics: Held-out metrics by name; empty when nothing was held out or trained.
        baselines: Bits per base of the k-mer models at the same sites.
        sites: Number of those sites.
    """
    config = encoder.config
    defaults = SparsePattern().to_dict()
    patterns = "; then ".join(
        ", ".join(f"{key}={value}" for key, value in pattern.to_dict().items() if value != defaults[key])
        for pattern in config.patterns
    )
    lines = [
        f"# {name}",
        "",
        f"A genosparse encoder of DNA at single-base resolution: {encoder.num_parameters:,} parameters, "
        f"{config.num_layers} layers, width {config.d_model}, {config.num_heads} heads ({config.kv_heads} for keys and "
        f"values), attention {patterns}.",
        "",
        *_about_options(config),
        "```python",
        "import genosparse as gs",
        f"encoder = gs.Encoder.from_pretrained({_ANY_FOLDER})",
        "```",
        "",
        *_about_channels(config.channels),
        *([_BEGAN_FROM, "", *(f"- {line}" for line in ancestors), ""] if ancestors else []),
        _DATA,
        "",
        *(f"- {line}" for line in data),
        f"- held out: {validation}",
        "",
        "## Training",
        "",
        f"Masked bases, with genosparse {genosparse.__version__}.",
        "",
        *(f"- {key}: {value}" for key, value in training.items()),
        "",
        "## Held-out metrics",
        "",
    ]
    if metrics:
        lines += [
            f"At {sites:,} sparse sites of the held-out sequence, shown as MASK; the k-mer models (two-sided, counted "
            "on both strands of the training sequence) are measured at the same sites. Lower is better; 2 is chance.",
            "",
            "| model | bits per base |",
            "|---|---|",
            f"| this encoder, one strand | {metrics['bits_per_base']:.4f} |",
            f"| this encoder, mean of both strands | {metrics['bits_per_base_both_strands']:.4f} |",
            f"| best single k-mer table | {baselines['best_kmer']:.4f} |",
            f"| interpolated k-mers (0 to 8 bases each side) | {baselines['interpolated']:.4f} |",
            "",
            f"Loss {metrics['loss']:.4f} nats, accuracy {metrics['accuracy']:.4f} (one strand).",
        ]
    elif config.trained_context is None:
        lines += ["None: these weights are untrained, as initialized. Their outputs mean nothing yet."]
    else:
        lines += ["None: nothing was held out."]
    context = f"{config.trained_context:,} bases" if config.trained_context else "no context yet"
    lines += [
        "",
        _SCORES,
        "",
        "`llr` is log P(alt) - log P(ref) in nats at the masked site, mean over both strands: negative means that the "
        "model finds ALT less likely than REF.",
        "",
        _LIMITS,
        "",
        f"- Trained on {context}; sequences up to {config.max_length:,} bases are accepted, and longer than trained is "
        "extrapolation.",
        "- It knows what is named above and nothing else; what it says of another species is untested.",
        "- Research use: it was not validated for clinical decisions.",
        "",
    ]
    return "\n".join(lines)


def _about_options(config: EncoderConfig) -> list[str]:
    lines = []
    if config.convolution:
        lines.append(f"- Gated motifs of {config.convolution} bases are added to the embedding.")
    if config.strands == "shared":
        lines.append(
            "- One set of weights reads both strands: the hidden states of the reverse complement are these mirrored, "
            "with their two halves exchanged, and its logits are the complement's. The mean of both strands says what "
            "one of them does; the mean of the halves of an embedding is the same for either strand."
        )
    if config.head == "tied":
        lines.append("- Logits are products with the token embedding's vectors of the bases.")
    return [*lines, ""] if lines else []


def _about_channels(channels: Sequence[str]) -> list[str]:
    if not channels:
        return []
    return [
        f"Beside the tokens it takes channels of alignments: {', '.join(channels)} (`alignments=` of `gs.embed`, "
        "`gs.score_variants`, `genosparse embed` and `genosparse variant-effect`). Without alignments they count as 0. "
        "They are hidden wherever a base is masked or was to be predicted, so that the reads there do not tell it.",
        "",
    ]


def lineage(encoder: Encoder, folder: Path) -> list[str]:
    """What a model is and came from, in a line for each model of its line, the oldest first.

    Args:
        encoder: The model as it was loaded.
        folder: Its folder; what its card says of its name, its data and what it began from itself is taken over.
    """
    try:
        lines = (folder / _CARD_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # a card is no part of a model
        lines = []
    title = next((line[2:] for line in lines if line.startswith("# ")), "a model without a card")
    context = encoder.config.trained_context
    trained = f"trained on {context:,} bases" if context else "untrained"
    data = "; ".join(_bullets(lines, _DATA))
    own = f"{title} (SHA-256 of the weights {encoder.fingerprint()[:16]}), {trained}" + (f": {data}" if data else "")
    return [_plain(line) for line in [*_bullets(lines, _BEGAN_FROM), own]]


def _bullets(lines: Sequence[str], heading: str) -> list[str]:
    """The list that follows a heading of a card."""
    if heading not in lines:
        return []
    start = lines.index(heading) + 1
    end = next((at for at in range(start, len(lines)) if lines[at].startswith("#")), len(lines))
    return [line[2:] for line in lines[start:end] if line.startswith("- ")][:_MOST_LINES]


def _plain(text: str) -> str:
    """One line without the letters that Markdown or HTML would take for more than text; dots tell where it is cut."""
    plain = re.sub(r"[<>\[\]`|\x00-\x1f]", " ", text)
    return plain if len(plain) <= _MOST_LETTERS else f"{plain[: _MOST_LETTERS - 4]} ..."


def bundled_card(card: str, *, name: str, sections: Mapping[str, Sequence[str]], limits: Sequence[str]) -> str:
    """Make a run's card into that of a bundled encoder.

    Args:
        card: From ``model_card``.
        name: What the encoder is bundled as.
        sections: Lines of further sections by their headings, put in front of what the card says of scores.
        limits: More limits, a line each.
    """
    lines = card.splitlines()
    lines[0] = f"# {name}"
    added = [line for heading, body in sections.items() for line in (f"## {heading}", "", *body, "")]
    at = lines.index(_SCORES)
    lines[at:at] = added
    at = lines.index(_LIMITS) + 2
    lines[at:at] = [f"- {limit}" for limit in limits]
    return "\n".join(lines).replace(_ANY_FOLDER, f'"{name}"') + "\n"
