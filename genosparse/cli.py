"""The command ``genosparse``: one subcommand per pipeline."""

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence

import genosparse

__all__ = ["main"]

_COMMANDS = {
    "pretrain": "train an encoder on a genome by masked-base prediction",
    "variant-effect": "score the variants of a VCF",
    "embed": "write embeddings of the intervals of a BED",
    "evaluate": "measure bits per base by kinds of sequence, beside k-mer baselines",
    "quickstart": "all three on a bundled bacterial genome, in minutes",
    "info": "print versions, the processor, GPUs, and the attention backend of each dtype",
    "benchmark": "measure speed on this machine, beside what else there is",
    "bundle": "make an encoder that comes with the package, from its genomes",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; return 0, 2 after a mistake of the user's, 1 after a bug, or 128 + the number of a signal."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        width = max(map(len, _COMMANDS))
        commands = "\n".join(f"  {command:<{width}}  {does}" for command, does in _COMMANDS.items())
        return _print(
            f"usage: genosparse COMMAND [key=value ...]\n\n{commands}\n\ngenosparse COMMAND --help lists its settings"
        )
    if name == "--version":
        return _print(f"genosparse {genosparse.__version__}")
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name.replace("_", "-"), _COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_COMMANDS)}"
        print(f"genosparse: error: unknown command {name!r}; {hint}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        return importlib.import_module(f"genosparse.pipelines.{name.replace('-', '_')}").main(rest)
    except KeyboardInterrupt:
        print(f"genosparse {name}: interrupted", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT


def _print(text: str) -> int:
    print(text)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
