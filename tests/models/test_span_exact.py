"""EndsModule and spans, chained, give bit for bit the logits of the whole model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import BLOCKS, FAMILIES, VOCAB
from shoal.types import Span

from .conftest import Whole

Local = Callable[[str], LocalModel]
PROMPT = torch.randint(3, VOCAB, (20,), generator=torch.Generator().manual_seed(1)).tolist()
# Those that the issue names; the others run with the marker.
NAMED = ("llama", "qwen3", "gpt2", "gemma3", "mixtral", "deepseek_v3")
REFUSED = ("recurrent_gemma", "gemma3n", "zamba2")
CHUNKED = (*NAMED, "mistral", "qwen3_next", "llama4", "bloom")
FAMILY = [
    pytest.param(family, marks=() if family in NAMED else pytest.mark.models)
    for family in FAMILIES
    if family not in REFUSED
]


def chained(model: LocalModel, cuts: Sequence[int], pieces: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits after each piece, through spans cut at ``cuts``."""
    ends = load_ends_module(model)
    spans = [load_span_module(model, Span(a, b)) for a, b in pairwise([0, *cuts, model.shape.n_blocks])]
    caches = [span.new_cache() for span in spans]
    position, found = 0, []
    for piece in pieces:
        hidden = ends.embed(piece, position)
        for span, cache in zip(spans, caches, strict=True):
            hidden = span.forward(hidden, cache, position)
        found.append(ends.head(hidden))
        position += len(piece)
    return found


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"step {step} differs by {float((a - b).abs().max()):.1e}"


@pytest.mark.parametrize("family", FAMILY)
def test_prefill_and_decode_equal_the_whole_model(
    family: str, folder_of: Callable[[str], Path], local: Local
) -> None:
    """Two spans, the first of one block: a prompt, then tokens one by one, past every sliding window.

    Some families in three spans, with a prompt in chunks, the first within the window.
    """
    if family in CHUNKED:
        cuts, pieces = [1, 4], [PROMPT[:7], PROMPT[7:8], PROMPT[8:], [5], [6]]
    else:
        cuts, pieces = [1], [PROMPT[:11], PROMPT[11:12], [5], [6]]
    assert_same(chained(local(family), cuts, pieces), Whole(folder_of(family)).logits(pieces))


@pytest.mark.parametrize(
    "family",
    [
        "mamba",
        *(
            pytest.param(f, marks=pytest.mark.models)
            for f in ("jamba", "mamba2", "bamba", "lfm2", "qwen3_next")
        ),
    ],
)
def test_a_recurrent_state_goes_on_with_a_piece_as_with_single_tokens(
    family: str, folder_of: Callable[[str], Path], local: Local
) -> None:
    """Transformers' Mamba and Jamba take a second piece for a beginning, and give something else."""
    (expected,) = Whole(folder_of(family)).logits([PROMPT])
    found = torch.cat(chained(local(family), [3], [PROMPT[:9], PROMPT[9:10], PROMPT[10:]]), 1)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.models
@pytest.mark.parametrize("family", ["gemma3", "qwen3_next", "gpt2_by_index"])
def test_wherever_it_is_cut(family: str, folder_of: Callable[[str], Path], local: Local) -> None:
    """Nowhere, and behind every block."""
    pieces = [PROMPT[:11], [7], [8]]
    expected = Whole(folder_of(family)).logits(pieces)
    for cuts in ([], [1, 2, 3, 4, 5]):
        assert_same(chained(local(family), cuts, pieces), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2_by_index", "jamba", "qwen3_moe", "deepseek_v3"])
def test_a_part_of_a_span_is_that_span(family: str, local: Local) -> None:
    """A node may be asked for some of its blocks: on the same weights, the same bits."""
    model = local(family)
    whole = load_span_module(model, Span(1, 6))
    hidden = torch.randn(1, 14, 64, generator=torch.Generator().manual_seed(3))
    for span in (Span(2, 5), Span(5, 6)):
        part, alone = whole.part(span), load_span_module(model, span)
        assert {p.data_ptr() for p in part.model.parameters()} <= {
            p.data_ptr() for p in whole.model.parameters()
        }
        caches = part.new_cache(), alone.new_cache()
        for at, n in ((0, 10), (10, 1), (11, 3)):
            rows = hidden[:, at : at + n]
            assert torch.equal(part.forward(rows, caches[0], at), alone.forward(rows, caches[1], at))
        assert part.kv_bytes(9) == alone.kv_bytes(9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_too(dtype: str, folder_of: Callable[[str], Path], local: Local) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder_of("llama"), dtype=getattr(torch, dtype))
    with torch.inference_mode():
        expected = whole(torch.tensor([PROMPT])).logits
    ends, span = (
        load_ends_module(local("llama"), dtype),
        load_span_module(local("llama"), Span(0, BLOCKS), dtype),
    )
    found = ends.head(span.forward(ends.embed(PROMPT, 0), span.new_cache(), 0))
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, expected)


def test_the_head_of_one_row_is_what_generate_computes(
    folder_of: Callable[[str], Path], local: Local
) -> None:
    whole = Whole(folder_of("llama")).model
    ends, span = load_ends_module(local("llama")), load_span_module(local("llama"), Span(0, BLOCKS))
    hidden = span.forward(ends.embed(PROMPT, 0), span.new_cache(), 0)
    with torch.inference_mode():
        expected = whole(torch.tensor([PROMPT]), logits_to_keep=1).logits
    assert torch.equal(ends.head(hidden[:, -1:]), expected)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_span_holds_its_own_tensors_and_no_others(family: str, local: Local) -> None:
    model = local(family)
    span = load_span_module(model, Span(2, 4))
    assert span.tensor_bytes == sum(block_bytes(model, "fp32")[2:4])
    assert sum(block_bytes(model, "bf16")[2:4]) * 2 == span.tensor_bytes
    assert all(name.startswith("model.layers.") for name in span.model.state_dict())


def test_tied_ends_hold_the_matrix_once(local: Local) -> None:
    assert load_ends_module(local("llama")).tensor_bytes == (VOCAB + 1) * 64 * 4
    assert load_ends_module(local("llama_untied")).tensor_bytes == (2 * VOCAB + 1) * 64 * 4
