"""The known corners against transformers' own attention: Longformer, BigBird, Mistral.

Both sides compute from the same input by the same projections, and the library's result is taken before its output
projection. Its models are made from configurations, with random weights: nothing is downloaded.
"""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genosparse.attention import SparsePattern, sparse_attention

pytest.importorskip("transformers", reason="compares with transformers; pip install 'genosparse[benchmark]'")

from transformers import BigBirdConfig, LongformerConfig, MistralConfig, MistralModel
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

BACKENDS = ["cpu"] if torch.cuda.is_available() else ["cpu", "triton"]  # the kernels, in the interpreter

HEADS, HEAD_DIM, BLOCK = 4, 8, 64
HIDDEN = HEADS * HEAD_DIM

Attention = Callable[[Tensor], Tensor]  # hidden states [B, N, HIDDEN] to as many heads' results side by side


def hidden_states(length: int, num_hidden: int) -> tuple[Tensor, Tensor]:
    """Input [2, N, HIDDEN], and a mask [2, N] that hides the last positions of the second sequence."""
    torch.manual_seed(length)
    visible = torch.ones(2, length, dtype=torch.bool)
    visible[1, length - num_hidden :] = False
    return torch.randn(2, length, HIDDEN, requires_grad=True), visible


def from_projections(
    projections: list[nn.Module], pattern: SparsePattern, backend: str, **masks: Tensor | None
) -> Attention:
    """Our attention, by a module's projections to q, k and v."""

    def attend(hidden: Tensor) -> Tensor:
        q, k, v = (projection(hidden).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for projection in projections)
        return sparse_attention(q, k, v, pattern, **masks, backend=backend).transpose(1, 2).flatten(2)

    return attend


def assert_same_attention(
    theirs: Attention, ours: Attention, hidden: Tensor, visible: Tensor, projections: list[nn.Module]
) -> None:
    """Results and gradients of the input agree; what the library gives to padded queries is left out."""
    for projection in projections:
        for weight in projection.parameters():
            nn.init.normal_(weight, std=0.25)  # scores of about 2, so that every key counts differently
    grad = torch.randn(hidden.shape) * visible[..., None]
    expected, got = ((out[visible], *torch.autograd.grad(out, hidden, grad)) for out in (theirs(hidden), ours(hidden)))
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], expected[1], atol=1e-5 * float(expected[1].abs().max()), rtol=0)


# In the interpreter ten seconds each.
@pytest.mark.parametrize(
    "backend", [pytest.param(backend, marks=[pytest.mark.slow] * (backend == "triton")) for backend in BACKENDS]
)
@pytest.mark.parametrize("num_hidden", [0, 45])
@pytest.mark.parametrize("num_global", [0, 1, 3])
@pytest.mark.parametrize("attention_window", [4, 32])
def test_longformer(attention_window: int, num_global: int, num_hidden: int, backend: str) -> None:
    attention = LongformerSelfAttention(
        LongformerConfig(
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=1,
            attention_window=[attention_window],
            attention_probs_dropout_prob=0.0,
        ),
        layer_id=0,
    )
    # Longformer projects for its global positions apart; here by the same weights, so that q, k and v are the same.
    for name in ("query", "key", "value"):
        setattr(attention, f"{name}_global", getattr(attention, name))
    hidden, visible = hidden_states(192, num_hidden)
    is_global = (torch.arange(192) < num_global).expand(2, -1)
    kind = torch.zeros(2, 192).masked_fill(~visible, -10_000.0).masked_fill(is_global, 10_000.0)

    def theirs(hidden: Tensor) -> Tensor:
        return attention(
            hidden,
            attention_mask=kind,
            is_index_masked=kind < 0,
            is_index_global_attn=kind > 0,
            is_global_attn=num_global > 0,
        )[0]

    projections = [attention.query, attention.key, attention.value]
    pattern = SparsePattern.longformer(attention_window, num_global=num_global)
    ours = from_projections(projections, pattern, backend, key_mask=visible)
    assert_same_attention(theirs, ours, hidden, visible, projections)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_hidden", [0, 45])
@pytest.mark.parametrize("sliding_window", [1, 32, 500])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_mistral(implementation: str, sliding_window: int, num_hidden: int, backend: str) -> None:
    model = MistralModel(
        MistralConfig(
            vocab_size=4,
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            head_dim=HEAD_DIM,
            sliding_window=sliding_window,
            attn_implementation=implementation,
        )
    )
    attention = model.layers[0].self_attn
    attention.o_proj = nn.Identity()
    hidden, visible = hidden_states(200, num_hidden)
    results = []

    # The model makes its mask itself; its attention is fed our input, unrotated.
    def feed(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], dict]:
        unrotated = torch.ones(2, 200, HEAD_DIM), torch.zeros(2, 200, HEAD_DIM)
        return args, {**kwargs, "hidden_states": hidden, "position_embeddings": unrotated}

    attention.register_forward_pre_hook(feed, with_kwargs=True)
    attention.register_forward_hook(lambda _, args, output: results.append(output[0]))

    def theirs(hidden: Tensor) -> Tensor:
        model(inputs_embeds=hidden, attention_mask=visible.long())
        return results.pop()

    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    ours = from_projections(projections, SparsePattern.mistral(sliding_window), backend, key_mask=visible)
    assert_same_attention(theirs, ours, hidden, visible, projections)


@pytest.fixture
def numpy_state() -> Iterator[None]:
    """BigBird seeds numpy's global generator."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def bigbird(num_random_blocks: int, seed: int) -> BigBirdBlockSparseAttention:
    config = BigBirdConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, block_size=BLOCK, num_random_blocks=num_random_blocks
    )
    return BigBirdBlockSparseAttention(config, seed=seed).train()  # without training it draws nothing


def run_bigbird(attention: BigBirdBlockSparseAttention, visible: Tensor) -> Attention:
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(visible.float(), BLOCK)

    def theirs(hidden: Tensor) -> Tensor:
        return attention(
            hidden,
            band_mask=band,
            from_mask=from_mask,
            to_mask=to_mask,
            from_blocked_mask=blocked,
            to_blocked_mask=blocked,
        )[0]

    return theirs


def bigbird_blocks(num_blocks: int, drawn: Tensor | None = None) -> Tensor:
    """``extra_blocks``: the last block sees and is seen by all, others see blocks drawn [heads, blocks - 2, most]."""
    table = torch.full((1 if drawn is None else HEADS, num_blocks, num_blocks), -1, dtype=torch.int32)
    table[:, :, 0] = num_blocks - 1
    table[:, -1] = torch.arange(num_blocks)
    if drawn is not None:  # the global blocks, first and last, draw none
        table[:, 1:-1, 1 : 1 + drawn.shape[2]] = drawn
    return table


@pytest.mark.usefixtures("numpy_state")
@pytest.mark.parametrize(
    "num_hidden, backend",
    [
        *((0, backend) for backend in BACKENDS),
        # Triton's interpreter takes twenty seconds.
        *(pytest.param(100, backend, marks=[pytest.mark.slow] * (backend == "triton")) for backend in BACKENDS),
    ],
)
def test_bigbird_by_its_own_draw(num_hidden: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_blocks = 12  # with 3 random blocks, the least that BigBird's model computes sparsely
    attention = bigbird(num_random_blocks=3, seed=1)
    hidden, visible = hidden_states(num_blocks * BLOCK, num_hidden)
    draw, drawn = attention._bigbird_block_rand_mask_with_head, []

    def recorded(**plan: object) -> list[np.ndarray]:
        drawn.extend(draw(**plan))
        return drawn

    monkeypatch.setattr(attention, "_bigbird_block_rand_mask_with_head", recorded)
    projections = [attention.query, attention.key, attention.value]

    def ours(hidden: Tensor) -> Tensor:
        blocks = torch.from_numpy(np.stack(drawn))
        assert len({tuple(blocks[head].flatten().tolist()) for head in range(HEADS)}) == HEADS  # each head its own
        pattern = SparsePattern.bigbird(BLOCK, num_random_blocks=0)
        masks = {"key_mask": visible, "extra_blocks": bigbird_blocks(num_blocks, blocks)}
        return from_projections(projections, pattern, backend, **masks)(hidden)

    assert_same_attention(run_bigbird(attention, visible), ours, hidden, visible, projections)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("numpy_state")
def test_bigbird_by_our_draw(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_blocks = 8
    # BigBird adds up what two rules name twice, and its own draw keeps off what its other rules name; so must this.
    pattern = next(
        pattern
        for pattern in (SparsePattern.bigbird(BLOCK, 1, seed=seed) for seed in count())
        if all(
            block not in (0, num_blocks - 1, row - 1, row, row + 1)
            for row, (block,) in enumerate(pattern.random_blocks(num_blocks * BLOCK).tolist())
            if 0 < row < num_blocks - 1
        )
    )
    attention = bigbird(num_random_blocks=1, seed=0)
    hidden, visible = hidden_states(num_blocks * BLOCK, 0)
    blocks = pattern.random_blocks(num_blocks * BLOCK)[1:-1].numpy()
    monkeypatch.setattr(attention, "_bigbird_block_rand_mask_with_head", lambda **plan: [blocks] * HEADS)
    projections = [attention.query, attention.key, attention.value]
    ours = from_projections(projections, pattern, backend, extra_blocks=bigbird_blocks(num_blocks))
    assert_same_attention(run_bigbird(attention, visible), ours, hidden, visible, projections)
