"""Encoders that are pretrained side by side: as many weights, and what each sees."""

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.benchmarking.trainable import TRAINABLE, DilatedConvolutions, ModernBert, TrainableShape, make_trainable
from genosparse.errors import ConfigError
from genosparse.pretraining.optimizers import make_optimizers
from genosparse.pretraining.settings import TrainerSettings

PATTERN = SparsePattern(window=8, stride=32, num_global=1)
SHAPE = TrainableShape(width=64, layers=3, heads=2, kv_heads=1, pattern=PATTERN, context=256)
BASES = torch.tensor([1, 2, 4, 8])


def tokens_of(length: int) -> torch.Tensor:
    return BASES[torch.randint(4, (1, length), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    "shape", [SHAPE, TrainableShape(width=128, layers=4, heads=4, kv_heads=2, pattern=PATTERN, context=128)]
)
def test_as_many_weights_within_a_tenth(shape: TrainableShape) -> None:
    ours, *others = (make_trainable(name, shape, 0).num_parameters for name in TRAINABLE)
    assert len(others) == 2
    for number in others:
        assert number == pytest.approx(ours, rel=0.1)


@pytest.mark.parametrize("name", TRAINABLE)
def test_weights_by_seed_and_logits_near_uniform(name: str) -> None:
    one, again, other = (make_trainable(name, SHAPE, seed) for seed in (1, 1, 2))
    weights = [torch.cat([weight.flatten() for weight in model.parameters()]) for model in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with torch.no_grad():
        logits = one.head(one(tokens_of(64)))
    assert logits.shape == (1, 64, 4)
    assert logits.dtype == torch.float32
    assert 0 < logits.std() < 0.5


@pytest.mark.parametrize("name", TRAINABLE)
def test_matrices_of_the_blocks_decay_and_no_weight_is_left_out(name: str) -> None:
    model = make_trainable(name, SHAPE, 0)
    (optimizer,) = make_optimizers(model, TrainerSettings(max_steps=1))
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert sum(weight.numel() for weight in [*matrices, *others]) == model.num_parameters
    assert sum(weight.numel() for weight in matrices) > 0.8 * model.num_parameters
    assert all(weight.ndim >= 2 for weight in matrices)


def test_dilated_convolutions_see_504_bases_each_side() -> None:
    torch.manual_seed(0)
    model = DilatedConvolutions(16, layers=12).double()
    model.one_hot = model.one_hot.double()
    tokens = tokens_of(1200)
    with torch.no_grad():
        before = model(tokens)[0, 600]
        for distance, is_seen in ((504, True), (505, False), (-504, True), (-505, False)):
            changed = tokens.clone()
            changed[0, 600 + distance] = 1 if tokens[0, 600 + distance] != 1 else 2
            assert bool((model(changed)[0, 600] != before).any()) == is_seen
        # N and PAD have no base to show.
        ends = [tokens.clone(), tokens.clone()]
        ends[0][0, 601], ends[1][0, 601] = 0, 15
        assert torch.equal(model(ends[0]), model(ends[1]))
        assert not torch.equal(model(ends[0])[0, 600], before)


def test_modernbert_attends_locally_and_never_to_padding() -> None:
    torch.manual_seed(0)
    model = ModernBert(SHAPE, 64).eval()
    assert [layer.attention_type for layer in model.blocks] == [
        "full_attention", "sliding_attention", "sliding_attention",
    ]  # fmt: skip
    assert len(dict(model.named_parameters())) == len(list(model.parameters()))
    tokens = tokens_of(100)
    padded = torch.cat([tokens, torch.zeros(1, 28, dtype=tokens.dtype)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded)[:, :100], model(tokens), atol=1e-5, rtol=0)


def test_modernbert_without_a_window_is_refused() -> None:
    shape = TrainableShape(width=64, layers=1, heads=2, kv_heads=1, pattern=SparsePattern(stride=8), context=64)
    with pytest.raises(ConfigError, match=r"modernbert has local attention; give pattern\.window="):
        ModernBert(shape, 64)
