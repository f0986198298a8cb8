"""Work that is counted, and no seconds: twice the length is twice the work, so that nothing quadratic slips in."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from genosparse.attention import SparsePattern
from genosparse.attention.cpu import native
from genosparse.encoder import Encoder, EncoderConfig

LENGTHS = (4_096, 8_192, 16_384)
COLUMNS = 64  # so many strided keys at any length


def counted(length: int, *, training: bool, options: dict[str, Any]) -> tuple[int, int]:
    """FLOPs, and bytes allocated in all, of one pass over a sequence."""
    torch.manual_seed(0)
    pattern = SparsePattern(window=64, stride=length // COLUMNS, num_global=1, num_random_blocks=1)
    config = EncoderConfig(
        d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, patterns=(pattern,), max_length=length, **options
    )
    encoder = Encoder(config)
    tokens = torch.tensor([1, 2, 4, 8])[torch.randint(4, (1, length))]

    def run() -> None:
        with torch.set_grad_enabled(training):
            logits = encoder.base_logits(tokens)
        if training:
            logits.square().mean().backward()

    with FlopCounterMode(display=False) as flops:
        run()
    native._kept_by_thread.buffers.clear()  # what is kept from call to call is not allocated
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
        run()
    assert memory.profiler is not None
    events = memory.profiler.kineto_results.events()
    allocated = sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)
    return flops.get_total_flops(), allocated


@pytest.mark.parametrize(
    "options", [{}, {"convolution": 9, "strands": "shared", "head": "tied"}], ids=["plain", "options"]
)
@pytest.mark.parametrize("training", [False, True])
def test_work_grows_with_the_length(training: bool, options: dict[str, Any]) -> None:
    counts = [counted(length, training=training, options=options) for length in LENGTHS]
    for shorter, longer in pairwise(counts):
        for before, after in zip(shorter, longer, strict=True):
            assert before > 0
            assert after < 2.1 * before, counts


def test_dense_attention_does_not_pass() -> None:
    """What the counts above are held against."""
    encoder = Encoder(
        EncoderConfig(d_model=32, num_layers=1, num_heads=2, patterns=(SparsePattern.dense(),), max_length=4096)
    )
    counts = []
    for length in (1024, 2048, 4096):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            encoder.base_logits(torch.ones(1, length, dtype=torch.int64))
        counts.append(flops.get_total_flops())
    assert counts[2] - counts[1] > 2.5 * (counts[1] - counts[0])
