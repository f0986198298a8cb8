"""Models on disk: a folder with ``config.json``, ``model.safetensors`` and a card. Nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import genosparse
from genosparse.encoder.config import EncoderConfig
from genosparse.errors import ConfigError, InputFileNotFoundError, ModelFormatError, OutputError, PatternError
from genosparse.outputs import atomic_output

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "check_sizes",
    "check_tensors",
    "load_model",
    "save_model",
]

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"


# What weights may be kept in; they are float32 again once loaded.
_DTYPES = (torch.float32, torch.bfloat16)


def save_model(
    path: str | os.PathLike[str],
    config: EncoderConfig,
    tensors: dict[str, Tensor],
    *,
    card: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model folder; each file appears whole or not at all, and the configuration last."""
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype}: weights are saved in {' or '.join(map(str, _DTYPES))}")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the model folder {folder}: {error.strerror}; choose another path") from error
    with atomic_output(folder / WEIGHTS_FILE) as file:
        file.touch()  # with the permissions of a file that anybody makes
        mode = file.stat().st_mode & 0o777
        try:
            save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, file)
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        file.chmod(mode)  # safetensors keeps files to their owner
    if card is not None:
        with atomic_output(folder / CARD_FILE) as file:
            file.write_text(card, encoding="utf-8")
    contents = {
        "format_version": FORMAT_VERSION,
        "genosparse_version": genosparse.__version__,
        "encoder": config.to_dict(),
    }
    with atomic_output(folder / CONFIG_FILE) as file:
        file.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def load_model(path: str | os.PathLike[str]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Read a model folder: its configuration, and its tensors as float32."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputFileNotFoundError(
            f"no model folder {folder}; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    config = _load_config(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise InputFileNotFoundError(f"no {WEIGHTS_FILE} in the model folder {folder}; copy the whole folder")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFormatError(
            f"{file} is damaged or truncated ({' '.join(str(error).split())}); copy the model folder again"
        ) from error
    return config, {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _load_config(file: Path) -> EncoderConfig:
    if not file.is_file():
        raise InputFileNotFoundError(f"no {file.name} in the model folder {file.parent}; is it a genosparse model?")
    try:
        contents: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelFormatError(f"{file} is not readable JSON ({error}); copy the model folder again") from error
    version = contents.get("format_version") if isinstance(contents, dict) else None
    if not isinstance(version, int) or not isinstance(contents.get("encoder"), dict):
        raise ModelFormatError(f"{file} is no genosparse model configuration: expected format_version and encoder")
    if version > FORMAT_VERSION:
        raise ModelFormatError(
            f"{file} has format version {version}, and genosparse {genosparse.__version__} knows versions up to "
            f"{FORMAT_VERSION}; upgrade genosparse"
        )
    if unknown := sorted(set(contents) - {"format_version", "genosparse_version", "encoder"}):
        raise ModelFormatError(f"{file} has the unknown key {', '.join(unknown)}; remove it, or upgrade genosparse")
    try:
        return EncoderConfig.from_dict(contents["encoder"])
    except (ConfigError, PatternError) as error:
        raise ModelFormatError(f"{file}: {error}") from error


def check_sizes(path: str | os.PathLike[str], config: EncoderConfig, found: dict[str, Tensor]) -> None:
    """Refuse a configuration of more layers than there are tensors, or of a size beyond the number of all weights."""
    num_weights = sum(tensor.numel() for tensor in found.values())
    for name, size, most in (
        ("num_layers", config.num_layers, len(found)),
        ("d_model", config.d_model, num_weights),
        ("mlp_hidden", config.mlp_hidden or 0, num_weights),
        ("num_global", config.num_global, num_weights),
        ("convolution", config.convolution or 0, num_weights),
    ):
        if size > most:
            raise ModelFormatError(
                f"{Path(path) / CONFIG_FILE} says {name}={size}, and {WEIGHTS_FILE} beside it has {len(found)} tensors "
                f"of {num_weights:,} weights in all; copy the whole model folder again"
            )


def check_tensors(path: str | os.PathLike[str], found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors that are missing, unknown or of another shape, by name."""
    file = Path(path) / WEIGHTS_FILE
    if missing := sorted(set(expected) - set(found)):
        raise ModelFormatError(f"{file} lacks the tensor {_some(missing)} that {CONFIG_FILE} asks for")
    if unknown := sorted(set(found) - set(expected)):
        raise ModelFormatError(f"{file} has the tensor {_some(unknown)} that {CONFIG_FILE} does not know")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ModelFormatError(
                f"{file}: tensor {name} is {tuple(found[name].shape)}, and {CONFIG_FILE} asks for {tuple(tensor.shape)}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
