"""What a model costs by its config alone is what its parts hold once they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from shoal.errors import UnsupportedModel
from shoal.executor.kernels import c_kernels
from shoal.executor.load import load_ends_runner, load_runner
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.planning.costs import model_cost
from shoal.testing.checkpoints import FAMILIES
from shoal.types import Format, Span

WHOLE = Span(0, 6)
Local = Callable[[str], LocalModel]


@pytest.fixture(scope="module")
def local(families: Local) -> Local:
    return families


@pytest.mark.skipif(c_kernels.library() is None, reason="the kernels are not built")
@pytest.mark.parametrize(
    ("family", "format"),
    [
        *product(["llama"], ["fp32", "bf16", "int8", "int4"]),
        *product(["gemma3", "mixtral"], ["fp32", "int8"]),
        *product(["gpt2", "qwen3_next"], ["bf16", "int4"]),
        ("llama", "w8a8"),  # of which columns come in multiples of 64: the others' are too few for that
    ],
)
def test_weights_and_kv_are_those_of_the_loaded_span(
    family: str, format: Format, local: Local, tmp_path: Path
) -> None:
    model = local(family)
    cost = model_cost(read_model_config(open_checkpoint(model.path)), format)
    runner = load_runner(model, WHOLE, format, kv="auto", threads=1, cache=tmp_path)
    assert sum(block.bytes for block in cost.blocks) == pytest.approx(runner.tensor_bytes, rel=0.02)
    assert cost.kv_held(1024) == pytest.approx(1024 * runner.kv_bytes, rel=0.02)


@pytest.mark.skipif(c_kernels.library() is None, reason="the kernels are not built")
@pytest.mark.parametrize(
    ("family", "format"),
    [*product(["llama", "gpt2"], ["fp32", "int4"]), *product(["llama", "llama_untied"], ["bf16"])],
)
def test_the_head_is_that_of_the_loaded_ends(
    family: str, format: Format, local: Local, tmp_path: Path
) -> None:
    model = local(family)
    cost = model_cost(read_model_config(open_checkpoint(model.path)), format)
    assert cost.head is not None
    ends = load_ends_runner(model, format, threads=1, cache=tmp_path)
    # Norms and tables of positions are small beside a real vocabulary, and left out.
    assert cost.head.bytes == pytest.approx(ends.tensor_bytes, abs=4 * 64 * (256 + 16))


@pytest.mark.skipif(c_kernels.library() is None, reason="the kernels are not built")
def test_int8_kv_is_that_of_the_pages(local: Local, tmp_path: Path) -> None:
    model = local("llama")
    cost = model_cost(read_model_config(open_checkpoint(model.path)), "int8", "int8")
    runner = load_runner(model, WHOLE, "int8", kv="int8", threads=1, cache=tmp_path)
    assert cost.kv_bytes == runner.kv_bytes


def test_a_sparse_block_computes_with_the_experts_that_a_token_takes() -> None:
    block = model_cost(FAMILIES["mixtral"](), "fp32").blocks[0]
    assert (block.experts, block.active) == (4, 2)
    assert block.expert_weights == 3 * 64 * 128  # gate, up and down
    assert block.linear_ops(1) == 2 * (block.weights + 2 * 3 * 64 * 128)


def test_attention_computes_scores_and_sums_for_every_head() -> None:
    block = model_cost(FAMILIES["qwen3"](), "fp32").blocks[0]
    assert block.attention == 4 * 4 * 16  # four operations, heads, elements of a head


def test_windows_and_states_are_seen_block_by_block() -> None:
    gemma = model_cost(FAMILIES["gemma3"](), "bf16").blocks
    assert [block.window for block in gemma[:3]] == [8, 8, 0]
    hybrid = model_cost(FAMILIES["qwen3_next"](), "bf16").blocks
    assert [block.kv_bytes > 0 for block in hybrid[:3]] == [False, False, True]
    assert [block.state > 0 for block in hybrid[:3]] == [True, True, False]


def test_a_config_that_makes_no_model_is_refused() -> None:
    config = FAMILIES["llama"]()
    config.num_attention_heads = 0
    with pytest.raises(UnsupportedModel, match="cannot be built from this config"):
        model_cost(config, "bf16")
