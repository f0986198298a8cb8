"""``genosparse bundle``: from genomes to the folder that comes with the package."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genosparse.encoder import Encoder
from genosparse.pipelines import bundle, pretrain
from genosparse.pipelines.bundle import RECIPES
from genosparse.pretraining import Corpus, HeldOut, evaluate
from genosparse.readers import Genome

SMALL = [
    "recipe=yeast-mini", "data=some (data)", "minutes=5", "threads=1", "precision=float32", "run_dir=out",
    'settings=["trainer.max_steps=6","data.context=128","model.num_layers=1","model.d_model=32","trainer.batch_bases=512"]',
]  # fmt: skip


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two strains: the second is the first but for its chromosome XI, of which half is its own."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    first, second, new = ("".join(random.choice(list("ACGT"), size)) for size in (6000, 3000, 1500))
    folder = tmp_path / "some (data)" / "yeast"
    folder.mkdir(parents=True)
    for name, of_xi in (("S_cerevisiae.fasta.gz", second), ("SK1.genome.fa.gz", second[:1500] + new)):
        (folder / name).write_text(f">chrI\n{first}\n>chrXI\n{of_xi}\n")  # plain, whatever it is called
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


@pytest.mark.slow
def test_folder_card_and_figures(capfd: pytest.CaptureFixture[str]) -> None:
    assert bundle.main(SMALL) == 0, capfd.readouterr().err
    output = Path("out/yeast-mini")
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.bfloat16}
    results = json.loads(Path("out/bundle.json").read_text())
    own, other, known = results["tests"]
    assert [test["bases"] for test in results["tests"]] == [3000, 3000, 6000]
    # Of the other strain, chromosome I is what was trained on; its XI is not, though it is half the first one's.
    assert (own["seen_32mers"], other["seen_32mers"]) == (0, 0)
    assert known["seen_32mers"] == 1

    rounded, exact = Encoder.from_pretrained(output), Encoder.from_pretrained("out/pretrain/model")
    assert rounded.config == exact.config
    assert rounded.config.trained_context == 128
    with Genome("some (data)/yeast/S_cerevisiae.fasta.gz") as genome:
        held_out = HeldOut(Corpus([genome], validation=["chrXI"], context=128), 0)
    for dtype, encoder in (("float32", exact), ("bfloat16", rounded)):
        bits = evaluate(encoder, held_out, batch_windows=8)["bits_per_base"]
        assert own[dtype]["bits_per_base"] == pytest.approx(bits, abs=1e-6)
    assert own["float32"] != own["bfloat16"]
    metrics = json.loads(Path("out/pretrain/metrics.json").read_text())
    assert own["float32"]["bits_per_base"] == pytest.approx(metrics["model"]["bits_per_base"], abs=1e-6)
    assert own["baselines"] == metrics["baselines_bits_per_base"]

    card = (output / "README.md").read_text()
    for told in (
        "# yeast-mini\n", 'from_pretrained("yeast-mini")', "contigs chrXI", "## Tests", "chromosome I of SK1",
        f"{own['bfloat16']['bits_per_base_both_strands']:.4f}", f"{own['baselines']['interpolated']:.4f}",
        results["genomes"]["yeast/SK1.genome.fa.gz"], "minutes of training on 1 threads of", "negative means",
        "Other yeasts were not tested", "Muon for",
    ):  # fmt: skip
        assert told in card, told
    assert os.getcwd() not in card

    assert bundle.main(SMALL) == 0
    assert "is there already" in capfd.readouterr().out


@pytest.mark.slow
def test_goes_on_from_what_is_finished(capfd: pytest.CaptureFixture[str]) -> None:
    """As after a kill between training and the end; what is of another run stays."""
    output = Path("out/yeast-mini")
    assert bundle.main(SMALL) == 0
    made = (output / "model.safetensors").read_bytes()
    for name in ("README.md", "config.json", "model.safetensors"):
        (output / name).unlink()
    assert bundle.main(SMALL) == 0
    assert "out/pretrain/model is there already" in capfd.readouterr().out
    assert (output / "model.safetensors").read_bytes() == made
    assert bundle.main([*SMALL, "run_dir=again", f"output={output}"]) == 2
    assert "exists, and not from this run; pass overwrite=true" in capfd.readouterr().err
    assert (output / "model.safetensors").read_bytes() == made
    assert not Path("again").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["recipe=fungi"], "recipe=fungi is unknown; choose one of bacteria-mini, yeast-mini"),
        (["recipe=bacteria-mini"], "lacks ecoli_k12/GCF_000005845.2_ASM584v2_genomic.fna.gz, "),
        (["data=nowhere"], "data=nowhere lacks yeast/S_cerevisiae.fasta.gz, yeast/SK1.genome.fa.gz, which yeast-mini"),
        (["settings=[muon]"], "expected settings of pretrain"),
        (["minutes=-1"], "minutes=-1"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bundle.main([*SMALL, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("out").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_presets_make_encoders_that_fit(recipe: str) -> None:
    given = ["data.genome=some (data)/yeast/SK1.genome.fa.gz", "trainer.max_steps=0", "threads=1", "run_dir=out"]
    assert pretrain.main([f"+experiment={recipe}", *given]) == 0
    assert Path("out/model/model.safetensors").stat().st_size / 2 < 8_000_000  # float32 there
    assert Path("out/model/README.md").read_text().startswith(f"# {recipe}\n")


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:.*bgzip copy is made")
def test_the_data_of_every_recipe_are_there(test_data: Path) -> None:
    for recipe in RECIPES.values():
        for file in [*recipe.training, *(test.file for test in recipe.tests)]:
            assert (test_data / file).is_file()
            with Genome(test_data / file) as genome:
                contigs = set(genome.contigs)
            wanted = {name for test in recipe.tests if test.file == file for name in test.contigs}
            assert wanted <= contigs
            assert file not in recipe.training or set(recipe.held_out) <= contigs
