"""Model folders: a round trip, and every way in which one can be wrong."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError, GenosparseError, InputFileNotFoundError, ModelFormatError, OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    pattern = SparsePattern(window=4, stride=8, num_global=1)
    config = EncoderConfig(
        d_model=16, num_layers=1, num_heads=2, patterns=(pattern,), max_length=100, trained_context=64
    )
    Encoder(config).save_pretrained(tmp_path / "model", card="# a card\n")
    return tmp_path / "model"


def test_round_trip(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder)
    assert not encoder.training
    assert encoder.config.trained_context == 64
    assert (folder / "README.md").read_text() == "# a card\n"
    tokens = torch.tensor([[1, 2, 4, 8, 16]])
    encoder.save_pretrained(folder.parent / "again")
    again = Encoder.from_pretrained(folder.parent / "again")
    assert torch.equal(encoder.base_logits(tokens), again.base_logits(tokens))
    assert again.fingerprint() == encoder.fingerprint()
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (folder.parent / "again" / name).read_bytes()


def edit_config(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        contents = json.loads((folder / "config.json").read_text())
        change(contents)
        (folder / "config.json").write_text(json.dumps(contents))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, "damaged or truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no genosparse model"),
        (edit_config(lambda contents: contents.update(format_version=2)), "format version 2"),
        (edit_config(lambda contents: contents.update(vocabulary="kmers")), "unknown key vocabulary"),
        (edit_config(lambda contents: contents["encoder"].update(dropout=0.1)), "unknown key dropout"),
        (edit_config(lambda contents: contents["encoder"].pop("d_model")), "missing key d_model"),
        (edit_config(lambda contents: contents["encoder"].update(d_model="16")), "d_model='16'"),
        (edit_config(lambda contents: contents["encoder"].update(patterns=[{"windw": 4}])), "no windw"),
        (edit_config(lambda contents: contents["encoder"].update(d_model=32)), "asks for"),
        (edit_tensors(lambda tensors: tensors.pop("head.linear.bias")), "lacks the tensor head.linear.bias"),
        (edit_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))), "tensor extra"),
        (edit_tensors(lambda tensors: tensors.update({"head.linear.bias": torch.zeros(5)})), "head.linear.bias is"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(GenosparseError, match=message) as error:
        Encoder.from_pretrained(folder)
    assert isinstance(error.value, ModelFormatError | InputFileNotFoundError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"num_layers": 10**9}, "num_layers=1000000000"),
        ({"d_model": 2**40, "num_heads": 2**34}, "d_model=1099511627776"),
        ({"mlp_hidden": 2**50}, "mlp_hidden=1125899906842624"),
        ({"convolution": 10**30 + 1}, "convolution=1000000000000000000000000000001"),
        ({"patterns": [{"num_global": 10**12}]}, "num_global=1000000000000"),
        # Each within what is there, and together more than there is memory.
        ({"d_model": 2048, "num_heads": 32, "mlp_hidden": 2048, "convolution": 2047}, "tensor convolution.motifs"),
    ],
)
def test_sizes_that_no_memory_holds_are_refused_before_anything_is_made(
    folder: Path, changes: dict[str, object], told: str
) -> None:
    edit_config(lambda contents: contents["encoder"].update(changes))(folder)
    made: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.init, "normal_", lambda tensor, **_: made.append(tensor.numel() * (not tensor.is_meta)))
        with pytest.raises(ModelFormatError) as error:
            Encoder.from_pretrained(folder)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert sum(made) == 0


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match="no model folder"):
        Encoder.from_pretrained(tmp_path / "nowhere")


def test_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    with pytest.raises(OutputError, match="cannot make the model folder"):
        Encoder.from_pretrained(folder).save_pretrained(folder / "config.json" / "inside")


def test_others_may_read_what_the_umask_lets_them(folder: Path) -> None:
    other = folder / "other"
    other.touch()
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (folder / name).stat().st_mode == other.stat().st_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(OutputError, match="No space left on device; free some space first"):
            Encoder.from_pretrained(folder).save_pretrained(disk / "model")
        assert not [path for path in disk.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_bfloat16_takes_half_and_computes_in_float32(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder)
    encoder.save_pretrained(folder.parent / "rounded", dtype=torch.bfloat16)
    saved = load_file(folder.parent / "rounded" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    rounded = Encoder.from_pretrained(folder.parent / "rounded")
    for (name, kept), exact in zip(rounded.named_parameters(), encoder.parameters(), strict=True):
        assert kept.dtype == torch.float32
        assert torch.equal(kept, exact.to(torch.bfloat16).float()), name
    tokens = torch.tensor([[1, 2, 4, 8, 16, 1, 2]])
    logits = rounded.base_logits(tokens)
    assert logits.dtype == torch.float32
    assert 0 < (logits - encoder.base_logits(tokens)).abs().max() < 0.1
    rounded.save_pretrained(folder.parent / "again", dtype=torch.bfloat16)  # nothing is left to round
    assert Encoder.from_pretrained(folder.parent / "again").fingerprint() == rounded.fingerprint()


def test_other_dtypes_are_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dtype=torch\.float16: weights are saved in torch\.float32 or torch\.bfloat16"
    ):
        Encoder.from_pretrained(folder).save_pretrained(folder.parent / "half", dtype=torch.float16)
    assert not (folder.parent / "half").exists()
