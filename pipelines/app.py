"""What every pipeline shares: a Hydra app whose mistakes end in one line, and the settings that all of them have."""

import contextlib
import dataclasses
import difflib
import errno
import functools
import hashlib
import json
import math
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import genosparse
from genosparse import bundled
from genosparse.errors import ConfigError, GenosparseError, GenosparseWarning
from genosparse.intervals import Interval

if TYPE_CHECKING:
    import torch

    from genosparse.encoder import Encoder
    from genosparse.readers import Genome, GenomeChannels, ReadFilters

__all__ = [
    "Interrupted",
    "Runtime",
    "alignments_identity",
    "alignments_inputs",
    "as_dict",
    "choice",
    "fingerprint_intervals",
    "flag",
    "genome_options",
    "integer",
    "is_given",
    "model_folder",
    "number",
    "open_channels",
    "path",
    "paths",
    "pipeline",
    "read_filters",
    "setup",
]

_CONFIG_MODULE = "genosparse.conf"
# What the operating system refuses for reasons that the user can mend.
_USER_ERRNO = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC,
    errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG,
}  # fmt: skip


class Interrupted(BaseException):
    """The run was stopped by a signal; ``message`` is the line to end with, once what had to be saved is saved."""

    def __init__(self, signal_number: int = signal.SIGINT, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signal_number = signal_number


class _JobError(BaseException):
    """Carries an exception past Hydra, which prints lines of its own about those that it sees."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def pipeline(name: str, *, paths: Collection[str] = ()) -> Callable[[Callable[[DictConfig], None]], "Main"]:
    """Make a function of a config into the Hydra app of the subcommand ``name``.

    The primary config is ``conf/<name>.yaml`` (hyphens as underscores). The function is called once per job, with a
    config in which no mandatory value is missing. The returned ``main(arguments=None)`` takes the command line and
    returns the exit status: 0; 2 after a mistake of the user's, told in one line on standard error; 1 with a traceback
    for a bug; 128 + n after signal n. ``HYDRA_FULL_ERROR=1`` shows the traceback of mistakes too.

    Args:
        name: The subcommand.
        paths: Dotted keys whose values are paths. They are taken literally, whatever characters they have, unless they
            begin with ``[`` (a Hydra list) or are ``null``. With ``--multirun`` ``${key}`` is looked up in them and
            ``choice(a,b)`` sweeps over them.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Main:
        @functools.wraps(task)
        def main(arguments: Sequence[str] | None = None) -> int:
            return _run(name, task, paths, sys.argv[1:] if arguments is None else arguments)

        return main

    return decorate


Main = Callable[..., int]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Where and how the arithmetic is done.

    Attributes:
        device: The device that models run on.
        threads: CPU threads of torch.
        precision: "float32" or "bfloat16".
        seed: The run's seed; torch's own generator is seeded with it.
    """

    device: "torch.device"
    threads: int
    precision: str
    seed: int

    def autocast(self) -> "torch.autocast":
        """Return a context manager that runs matrix products in ``precision``."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def setup(config: DictConfig, *, prefer_cuda: bool = False) -> Runtime:
    """Apply ``device``, ``threads``, ``precision`` and ``seed`` of a config to torch.

    ``precision=auto`` is float32; ``pretrain`` has its own rule.

    Args:
        config: The settings.
        prefer_cuda: Whether ``device=auto`` is CUDA where there is one; else it is the CPU. The kernels have not been
            run on a GPU yet, so that pipelines whose results people keep ask to be told.

    Raises:
        ConfigError: A value cannot be used, or the device that was asked for is not there.
    """
    import torch

    seed = integer(config, "seed", minimum=0, maximum=2**63 - 1)
    precision = choice(config, "precision", ("auto", "float32", "bfloat16"))
    device = _device(str(config.device), prefer_cuda)
    if config.threads is not None:
        torch.set_num_threads(integer(config, "threads", minimum=1, maximum=4096))
    torch.manual_seed(seed)
    return Runtime(device, torch.get_num_threads(), "float32" if precision == "auto" else precision, seed)


def _device(name: str, prefer_cuda: bool) -> "torch.device":
    import torch

    if name == "cpu" or (name == "auto" and not (prefer_cuda and torch.cuda.is_available())):
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"device={name} is unknown; choose one of auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        seen = f"CUDA devices 0 to {count - 1}" if count else "no CUDA device"
        raise ConfigError(f"device={name}: torch sees {seen} on this machine; pass device=cpu, or one that is there")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)  # kernels are launched on the current one
    return device


def integer(config: DictConfig, key: str, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return a setting that must be a whole number within bounds, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key}={value} is not a whole number")
    _check_bounds(key, value, minimum, maximum)
    return value


def number(config: DictConfig, key: str, *, minimum: float | None = None, maximum: float | None = None) -> float:
    """Return a setting that must be a finite number within bounds, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a number")
    _check_bounds(key, value, minimum, maximum)
    return float(value)


def _check_bounds(key: str, value: float, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and value < minimum:
        raise ConfigError(f"{key}={value} is too small; it must be at least {minimum}")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{key}={value} is too large; it must be at most {maximum}")


def flag(config: DictConfig, key: str) -> bool:
    """Return a setting that must be true or false, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, bool):
        raise ConfigError(f"{key}={value} is neither true nor false")
    return value


def choice(config: DictConfig, key: str, options: Collection[str]) -> str:
    """Return a setting that must be one of ``options``, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if value not in options:
        raise ConfigError(f"{key}={value} is unknown; choose one of {', '.join(options)}")
    return value


def path(config: DictConfig, key: str) -> str:
    """Return a setting that must be one path, with ``~`` expanded, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if isinstance(value, ListConfig | DictConfig) or value is None or not str(value):
        raise ConfigError(f"{key}={value} is not a path")
    return os.path.expanduser(value) if str(value).startswith("~/") else str(value)


def model_folder(config: DictConfig, key: str = "model") -> str:
    """Return the folder of a setting that is a model folder or the name of a bundled encoder.

    Raises:
        ConfigError: It is neither a path nor a name.
        InputFileNotFoundError: There is no such folder, nor a bundled encoder of that name.
    """
    return str(bundled.find(path(config, key)))


def paths(config: DictConfig, key: str) -> list[str]:
    """Return a setting that must be a path or a list of paths, or raise ``ConfigError``."""
    value = OmegaConf.select(config, key)
    if not isinstance(value, ListConfig):
        return [path(config, key)]
    if not value:
        raise ConfigError(f"{key}=[] names no file")
    return [path(config, f"{key}[{index}]") for index in range(len(value))]


def genome_options(config: DictConfig, group: str = "") -> dict[str, Any]:
    """Return the settings ``circular`` and ``aliases`` of a config as arguments of ``Genome``.

    Args:
        config: The settings.
        group: What the keys begin with, as ``data.``.

    Raises:
        ConfigError: ``circular`` is neither true nor names of contigs, or ``aliases`` is no path.
    """
    circular = OmegaConf.select(config, f"{group}circular")
    if isinstance(circular, ListConfig):
        circular = [str(name) for name in circular]
    elif circular is None or isinstance(circular, DictConfig):
        raise ConfigError(f"{group}circular={circular}: expected names of contigs, as [chrM], or true or false")
    elif not isinstance(circular, bool):
        circular = [str(circular)]
    aliases = OmegaConf.select(config, f"{group}aliases")
    return {"circular": circular, "aliases": None if aliases is None else path(config, f"{group}aliases")}


# The bits of FLAG from 0x1 on, as samtools flags names them.
_FLAG_NAMES = (
    "PAIRED", "PROPER_PAIR", "UNMAP", "MUNMAP", "REVERSE", "MREVERSE", "READ1", "READ2", "SECONDARY", "QCFAIL", "DUP",
    "SUPPLEMENTARY",
)  # fmt: skip


def read_filters(config: DictConfig, key: str) -> "ReadFilters":
    """Return a group of settings that says which reads count.

    Args:
        config: The settings.
        key: The group, as ``filters``.

    Raises:
        ConfigError: A flag is unknown, or a value cannot be.
    """
    from genosparse.readers import ReadFilters

    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{key}={node}: expected settings, as {key}.min_mapping_quality=20")
    values = as_dict(node)
    for name in ("exclude_flags", "require_flags"):
        values[name] = _flags(f"{key}.{name}", values[name])
    flag(config, f"{key}.count_overlaps")
    try:
        return ReadFilters(**values)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def alignments_inputs(config: DictConfig, alignments: Sequence[str], group: str = "") -> list[str]:
    """Return the files that reading alignments takes: themselves, and ``reference`` where it is given.

    Args:
        config: The settings.
        alignments: Paths of the alignments; none where there are none.
        group: What the keys begin with, as ``data.``.

    Raises:
        ConfigError: ``reference`` or ``filters`` are given without alignments.
    """
    for key in (f"{group}reference", f"{group}filters"):
        if is_given(key) and not alignments:
            raise ConfigError(f"{key} says how alignments are read, and none are given; leave it out, or give them")
    if OmegaConf.select(config, f"{group}reference") is None:
        return list(alignments)
    return [*alignments, path(config, f"{group}reference")]


def alignments_identity(config: DictConfig, alignments: Sequence[str | None], group: str = "") -> dict[str, Any] | None:
    """Return what of alignments decides a run's results; None where there are none."""
    from genosparse.outputs import fingerprint

    if not any(alignments):
        return None
    reference = OmegaConf.select(config, f"{group}reference")
    return {
        "files": [None if name is None else fingerprint(name) for name in alignments],
        "reference": None if reference is None else fingerprint(path(config, f"{group}reference")),
        "filters": dataclasses.asdict(read_filters(config, f"{group}filters")),
    }


@contextlib.contextmanager
def open_channels(
    config: DictConfig, encoder: "Encoder", genome: "Genome", alignments: str | None, group: str = "", **options: Any
) -> Iterator["GenomeChannels | None"]:
    """Open alignments as what an encoder is given beside a genome's tokens; None where it is given nothing.

    Args:
        config: The settings, with ``reference`` and ``filters``.
        encoder: The encoder.
        genome: The genome; CRAM's reference, unless the settings name one.
        alignments: A path, or None.
        group: What the keys begin with, as ``data.``.
        options: Further arguments of ``encoder_channels``.

    Raises:
        ConfigError: The encoder takes no channels, or a setting cannot be used.
    """
    from genosparse.encoder.channels import check_takes_channels, encoder_channels
    from genosparse.readers import Alignments

    if alignments is None:
        yield encoder_channels(encoder, genome, None)
        return
    check_takes_channels(encoder)
    reference = OmegaConf.select(config, f"{group}reference")
    source = genome if reference is None else path(config, f"{group}reference")
    with Alignments(alignments, source, filters=read_filters(config, f"{group}filters")) as opened:
        yield encoder_channels(encoder, genome, opened, **options)


def _flags(key: str, value: Any) -> int:
    """Bits of FLAG from a number, a name or names."""
    if isinstance(value, int):
        return value
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(name in _FLAG_NAMES for name in names):
        raise ConfigError(f"{key}={value}: expected a number, or some of {', '.join(_FLAG_NAMES)}")
    return sum(1 << _FLAG_NAMES.index(name) for name in set(names))


def as_dict(node: DictConfig) -> dict[str, Any]:
    """Return a group of settings, resolved, as plain values."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def is_given(key: str) -> bool:
    """Whether the command line sets a key, or a group of that name or a key within it."""
    given = [override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task]
    return any(name == key or name.startswith(f"{key}.") for name in given)


def fingerprint_intervals(intervals: Iterable[Interval]) -> str:
    """Return the SHA-256 of intervals in hex, whatever file or pipe they came from."""
    digest = hashlib.sha256()
    for interval in intervals:
        row = (interval.contig, interval.start, interval.end, interval.strand, interval.name)
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _run(name: str, task: Callable[[DictConfig], None], paths: Collection[str], arguments: Sequence[str]) -> int:
    program = f"genosparse {name}"
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def fail(message: object, status: int) -> int:
        if show_all:
            traceback.print_exc()
        line = " ".join(str(message).split("\n")).strip()
        print(f"{program}: {line}", file=sys.stderr, flush=True)  # noqa: T201
        return status

    with _warnings_in_one_line(program), _signals_as_exceptions():
        try:
            try:
                _launch(name, task, paths, arguments)
                sys.stdout.flush()
            except _JobError as carrier:
                raise carrier.error from None
        except SystemExit as stop:  # from --help and the like
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except (HydraException, OmegaConfBaseException) as error:
            return fail(f"error: {_explain(name, error)}", 2)
        except GenosparseError as error:
            return fail(f"error: {error}", 2)
        except KeyboardInterrupt:
            return fail("interrupted", 128 + signal.SIGINT)
        except Interrupted as stop:
            return fail(stop, 128 + stop.signal_number)
        except BrokenPipeError:  # whoever read our output has had enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except OSError as error:
            if error.errno in _USER_ERRNO:
                where = f": {error.filename}" if error.filename else ""
                return fail(f"error: {error.strerror}{where}", 2)
            traceback.print_exc()
            return 1
        except Exception as error:
            if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
                return fail("error: out of memory; lower the bases per batch or the context", 2)
            traceback.print_exc()
            return 1
    return 0


def _launch(name: str, task: Callable[[DictConfig], None], paths: Collection[str], arguments: Sequence[str]) -> None:
    """Hand the command line to Hydra."""
    if "--version" in arguments:
        print(f"genosparse {genosparse.__version__}")  # noqa: T201
        return
    # argparse takes no positionals after an option that follows positionals.
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    options = _Parser(parents=[get_args_parser()], add_help=False).parse_args(arguments)
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun would load a pickle, which can run any code; give the settings instead")
    arguments = [_quote_path(argument, paths, options.multirun) for argument in arguments]
    overrides = [_quote_path(argument, paths, options.multirun) for argument in options.overrides]
    swept = [
        item.key_or_group for item in OverridesParser.create().parse_overrides(overrides) if item.is_sweep_override()
    ]
    if swept and not options.multirun:
        raise ConfigError(f"{swept[0]} has several values; quote it, or pass --multirun to run each")

    full_error = os.environ.get("HYDRA_FULL_ERROR")

    def job(config: DictConfig) -> None:
        try:
            _check(name, config)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _name_job(config, swept)
            with _environment(HYDRA_FULL_ERROR=full_error):  # what the task starts is not to inherit ours
                task(config)
        except Exception as error:
            raise _JobError(error) from error

    with contextlib.ExitStack() as stack:
        config_path = stack.enter_context(_config_path(name))
        app = hydra.main(version_base="1.3", config_path=config_path, config_name=name.replace("-", "_"))(job)
        if options.multirun and not any(override.startswith("hydra.sweep.dir=") for override in overrides):
            # Hydra writes a multirun.yaml that nothing here needs.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="genosparse-"))
            arguments.append(f"hydra.sweep.dir={QuotedString(folder, Quote.single).with_quotes()}")
        stack.enter_context(_environment(HYDRA_FULL_ERROR="1"))  # without it, Hydra ends the process by itself
        stack.enter_context(_arguments([f"genosparse {name}", *arguments]))
        try:
            app()
        except (TypeError, ValueError) as error:  # of Hydra's, over a command line; a job's come as _JobError
            if isinstance(error, GenosparseError | HydraException | OmegaConfBaseException):
                raise
            raise ConfigError(f"{' '.join(str(error).split())}, in {' '.join(overrides)}") from error


@contextlib.contextmanager
def _config_path(name: str) -> Iterator[str | None]:
    """Give Hydra a pipeline's configs: all of ``conf/`` where it draws from groups, else its own and those it includes.

    To Hydra every folder on its search path is a group, whoever uses it: ``model=DIR`` would not reach a setting
    ``model`` of a pipeline without groups while there is a folder ``model``.
    """
    configs: dict[str, Any] = {}
    wanted = [name.replace("-", "_")]
    while wanted:
        config_name = wanted.pop()
        with resources.files(_CONFIG_MODULE).joinpath(f"{config_name}.yaml").open(encoding="utf-8") as file:
            configs[config_name] = OmegaConf.load(file)
        defaults = OmegaConf.select(configs[config_name], "defaults", default=[])
        if not all(isinstance(entry, str) for entry in defaults):
            yield f"pkg://{_CONFIG_MODULE}"
            return
        wanted += [entry.partition("@")[0] for entry in defaults if entry != "_self_"]
    store = ConfigStore.instance()
    before = dict(store.repo)
    for config_name, config in configs.items():
        store.store(config_name, config)
    try:
        yield None
    finally:
        store.repo = before


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; settings are given as key=value")


def _quote_path(argument: str, keys: Collection[str], multirun: bool) -> str:
    """Quote the value of a path setting so that Hydra and OmegaConf take it as it is."""
    match = re.fullmatch(r"(\+{0,2})([^=\s]+?)=(.*)", argument, flags=re.DOTALL)
    if match is None or match[2] not in keys or match[3].startswith("[") or match[3] == "null":
        return argument
    value = match[3]
    if multirun:
        if value.startswith("choice("):
            return argument
    else:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{match[1]}{match[2]}={QuotedString(value, Quote.single).with_quotes()}"


def _check(name: str, config: DictConfig) -> None:
    """Raise when a mandatory value is missing, a setting was made up with ``+``, or an interpolation leads nowhere."""
    missing = sorted(_missing_keys(OmegaConf.to_container(config, resolve=False)))
    if missing:
        raise ConfigError(f"missing {', '.join(f'{key}=' for key in missing)} (genosparse {name} --help explains them)")
    groups = HydraConfig.get().runtime.choices
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+").partition("=")[0]
        if override.startswith("+") and key.partition("@")[0] not in groups:
            known = _known_keys(name)
            if key not in known:
                raise ConfigError(_unknown_key(name, key))
    OmegaConf.to_container(config, resolve=True)


def _missing_keys(node: Any, prefix: str = "") -> Iterator[str]:
    # OmegaConf.missing_keys follows interpolations, and raises on one that leads to a missing value.
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def _name_job(config: DictConfig, swept: Sequence[str]) -> None:
    """Give each job of a multirun a run folder of its own, named by the settings that are swept over."""
    values = []
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.partition("=")
        if key in swept and key not in ("name", "run_dir"):
            values.append(f"{key}={value}".replace("/", "_"))
    label = ",".join(values)
    print(f"genosparse: job {HydraConfig.get().job.num}: {label}", file=sys.stderr)  # noqa: T201
    given = {override.partition("=")[0] for override in HydraConfig.get().overrides.task}
    if not label or "run_dir" in swept:
        return
    if "run_dir" in given:
        config.run_dir = str(Path(config.run_dir) / label)
    elif "name" not in swept:
        config.name = f"{config.name},{label}"


def _explain(name: str, error: Exception) -> str:
    """Say in one line what Hydra says in several."""
    if isinstance(error, OverrideParseException):
        reason = error.message.partition("\n")[0]
        if "=" not in error.override:
            return f"{error.override!r} is not a setting; settings are given as key=value"
        return f"cannot read {error.override!r}: {reason}; put the value in quotes: \"key='value'\""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} is unknown; choose one of {', '.join(sorted(error.options))}"
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match:
        return _unknown_key(name, match[1])
    cause = error.__cause__
    text = str(cause if isinstance(cause, OmegaConfBaseException) else error) or type(error).__name__
    return text.partition("\n")[0]


def _unknown_key(name: str, key: str) -> str:
    if key == "experiment":
        return f"experiment= is written with a plus: +{key}= (genosparse {name} --help)"
    known = _known_keys(name)
    last = key.rpartition(".")[2]
    close = [other for other in known if other.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    close = close or [
        other for other in known if difflib.get_close_matches(last, [other.rpartition(".")[2]], cutoff=0.7)
    ]
    hint = f"; did you mean {' or '.join(close[:3])}?" if close else ""
    return f"unknown setting {key}={hint} (genosparse {name} --help lists all)"


def _known_keys(name: str) -> list[str]:
    """List the dotted keys of a pipeline's settings, and its groups."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with contextlib.ExitStack() as stack:
        if stack.enter_context(_config_path(name)):
            stack.enter_context(hydra.initialize_config_module(_CONFIG_MODULE, version_base="1.3"))
        else:
            stack.enter_context(hydra.initialize(None, version_base="1.3"))
        config = hydra.compose(name.replace("-", "_"))
    found: list[str] = []

    def visit(node: DictConfig, prefix: str) -> None:
        for key in node:
            child = node._get_node(key)
            found.append(f"{prefix}{key!s}")
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                visit(child, f"{prefix}{key!s}.")

    visit(config, "")
    return found


def _model_name(model: str) -> str:
    """Return what a model folder is called: runs/ecoli/model is 'ecoli'."""
    folder = Path(str(model)).resolve()
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


OmegaConf.register_new_resolver("model_name", _model_name, replace=True)


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@contextlib.contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into ``Interrupted``, so that unfinished outputs are removed on the way out."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal_number, "terminated" if signal_number == signal.SIGTERM else "hung up")

    taken = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # only the main thread may
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _warnings_in_one_line(program: str) -> Iterator[None]:
    shown: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", GenosparseWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, GenosparseWarning):
                others(message, category, filename, lineno, file, line)
            elif str(message) not in shown:
                shown.add(str(message))
                print(f"{program}: warning: {message}", file=sys.stderr, flush=True)  # noqa: T201

        warnings.showwarning = show
        yield
