"""Adapters where rows of many sessions run in one forward: each row has its session's, and its own bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from shoal.errors import DigestMismatch, UnsupportedModel, UsageError
from shoal.executor.kernels import c_kernels
from shoal.executor.load import load_runner
from shoal.executor.modules import load_modules
from shoal.executor.runner import SessionRows
from shoal.models.adapters.read import read_adapter
from shoal.models.store.store import ModelStore
from shoal.testing.adapters import write_adapter
from shoal.testing.checkpoints import BLOCKS
from shoal.testing.encoders import write_encoder
from shoal.types import Span

needs_c = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MERGED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
WHOLE = Span(0, BLOCKS)


def rows(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 64), np.float32)


@pytest.fixture(scope="module")
def adapted(families, tmp_path_factory):
    """A family's model, and two adapters of it."""

    @cache
    def make(family):
        model, folder = families(family), tmp_path_factory.mktemp(family)
        layers = MERGED if family == "phi3" else LAYERS
        some = ["down_proj"] if family == "phi3" else ["k_proj", "up_proj"]
        first = write_adapter(folder / "first", model.path, layers, seed=1, rank=5)
        second = write_adapter(folder / "second", model.path, some, seed=2, rank=64, size=0.05)
        return model, [read_adapter(first), read_adapter(second)]

    return make


@pytest.fixture(scope="module")
def by_modules(adapted):
    """What a family's modules make of 30 rows with each of its adapters."""

    @cache
    def make(family):
        model, adapters = adapted(family)
        modules = load_modules(model, WHOLE, "fp32", kv="auto", threads=1)
        modules.load_adapters(adapters)
        pool = modules.make_pool(1024)
        states = [modules.open(WHOLE, pool.promise(64), adapter.digest) for adapter in adapters]
        return [run(modules, state, rows(30), (10, 1, 1, 18)) for state in states]

    return make


def loaded(model, adapters, tmp_path, format, kernels, span=WHOLE):
    runner = load_runner(model, span, format, kv="auto", threads=2, cache=tmp_path, kernels=kernels)
    runner.load_adapters(adapters)
    pool = runner.make_pool(1024)
    return runner, lambda adapter=None, span=span: runner.open(
        span, pool.promise(64), adapter and adapter.digest
    )


def run(runner, state, hidden, pieces):
    outs = []
    for piece in np.split(hidden.copy(), np.cumsum(pieces)[:-1]):
        (out,) = runner.forward([SessionRows(state, state.length, piece)])
        assert isinstance(out, np.ndarray), out
        outs.append(out)
    return np.concatenate(outs)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3", "granite"])
@pytest.mark.parametrize(
    ("kernels", "format", "bound"),
    [
        pytest.param("auto", "bf16", 0.03, marks=needs_c),
        pytest.param("auto", "int8", 0.08, marks=needs_c),
        ("torch", "fp32", 1e-5),
        ("torch", "bf16", 0.03),
    ],
)
def test_each_family_gives_what_its_modules_give_with_the_adapter(
    adapted, by_modules, tmp_path, family, kernels, format, bound
):
    model, adapters = adapted(family)
    hidden, pieces = rows(30), (10, 1, 1, 18)
    runner, opened = loaded(model, adapters, tmp_path, format, kernels)
    plain = run(runner, opened(), hidden, pieces)
    for adapter, expected in zip(adapters, by_modules(family), strict=True):
        found = run(runner, opened(adapter), hidden, pieces)
        scale = np.linalg.norm(expected - hidden)
        assert np.linalg.norm(found - expected) / scale < bound
        assert np.linalg.norm(plain - expected) / scale > 0.3


@needs_c
@pytest.mark.parametrize("format", ["int8", "int4", "w8a8"])
def test_a_row_has_the_same_bits_in_any_company(adapted, tmp_path, format):
    model, adapters = adapted("llama")
    runner, opened = loaded(model, adapters, tmp_path, format, "auto")
    kinds = [adapters[0], None, adapters[1], adapters[0], None]
    inputs = [rows(n, seed) for seed, n in enumerate((1, 7, 3, 12, 1))]
    alone = [
        run(runner, opened(kind), hidden, (len(hidden),)) for kind, hidden in zip(kinds, inputs, strict=True)
    ]
    states = [opened(kind) for kind in kinds]
    together = runner.forward(
        [SessionRows(state, 0, hidden.copy()) for state, hidden in zip(states, inputs, strict=True)]
    )
    for out, expected in zip(together, alone, strict=True):
        assert np.array_equal(out, expected)
    (part,) = runner.forward([SessionRows(opened(adapters[0]), 0, inputs[3][:5].copy())])
    assert np.array_equal(part, alone[3][:5])


def test_rows_of_one_forward_have_each_their_sessions_adapter_on_a_device(adapted, tmp_path):
    model, adapters = adapted("llama")
    runner, opened = loaded(model, adapters, tmp_path, "fp32", "torch")
    kinds = [adapters[0], None, adapters[1], adapters[0]]
    inputs = [rows(n, seed) for seed, n in enumerate((1, 7, 3, 1))]
    alone = [
        run(runner, opened(kind), hidden, (len(hidden),)) for kind, hidden in zip(kinds, inputs, strict=True)
    ]
    together = runner.forward(
        [SessionRows(opened(kind), 0, hidden.copy()) for kind, hidden in zip(kinds, inputs, strict=True)]
    )
    for out, expected in zip(together, alone, strict=True):
        assert np.allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kernels", "format"), [pytest.param("auto", "int8", marks=needs_c), ("auto", "fp32")]
)
def test_parts_of_a_span_have_their_blocks_of_the_adapter(adapted, tmp_path, kernels, format):
    model, adapters = adapted("llama")
    runner, opened = loaded(model, adapters, tmp_path, format, kernels)
    hidden = rows(9)
    whole = run(runner, opened(adapters[0]), hidden, (9,))
    first, second = (opened(adapters[0], span) for span in (Span(0, 2), Span(2, BLOCKS)))
    assert np.array_equal(run(runner, second, run(runner, first, hidden, (9,)), (9,)), whole)
    later, opened = loaded(model, adapters, tmp_path, format, kernels, Span(2, BLOCKS))
    assert np.array_equal(
        run(later, opened(adapters[0]), run(runner, opened_first(runner, adapters), hidden, (9,)), (9,)),
        whole,
    )


def opened_first(runner, adapters):
    return runner.open(Span(0, 2), runner.make_pool(64).promise(64), adapters[0].digest)


def test_gpt2_in_int8_adds_it_to_packed_layers(families, tmp_path):
    model = families("gpt2")
    layers = ["c_attn", "c_proj", "c_fc"]
    adapter = read_adapter(write_adapter(tmp_path / "a", model.path, layers, turned=True))
    hidden, outs = rows(12), {}
    for format in ("fp32", "int8"):
        runner = load_modules(model, WHOLE, format, kv="auto", threads=1)
        runner.load_adapters([adapter])
        pool = runner.make_pool(64)
        outs[format] = run(runner, runner.open(WHOLE, pool.promise(32), adapter.digest), hidden, (12,))
    assert np.linalg.norm(outs["int8"] - outs["fp32"]) / np.linalg.norm(outs["fp32"] - hidden) < 0.04


@pytest.mark.parametrize(
    ("kernels", "format"), [pytest.param("auto", "int8", marks=needs_c), ("auto", "fp32")]
)
def test_an_adapter_of_another_model_is_refused_by_name(adapted, families, tmp_path, kernels, format):
    model, _ = adapted("llama")
    gpt2 = write_adapter(tmp_path / "gpt", families("gpt2").path, ["c_attn"], turned=True)
    wide = write_adapter(tmp_path / "wide", model.path, ["q_proj"], turned=True)  # of other sizes than
    narrow = write_adapter(tmp_path / "narrow", model.path, ["gate_proj"], turned=True)
    with pytest.raises(DigestMismatch, match=r"transformer\.h\.0\.attn\.c_attn, which is no linear layer"):
        loaded(model, [read_adapter(gpt2)], tmp_path, format, kernels)
    with pytest.raises(DigestMismatch, match=r"gate_proj, which is 128×64 and not 64×128"):
        loaded(model, [read_adapter(narrow)], tmp_path, format, kernels)
    loaded(model, [read_adapter(wide)], tmp_path, format, kernels)  # q_proj is square


def test_a_session_cannot_have_an_adapter_that_is_not_loaded(adapted, tmp_path):
    model, adapters = adapted("llama")
    _, opened = loaded(model, adapters[:1], tmp_path, "fp32", "torch")
    with pytest.raises(UsageError, match="is not loaded here"):
        opened(adapters[1])


def test_encoders_take_none(tmp_path):
    model = ModelStore(tmp_path / "models").resolve(str(write_encoder(tmp_path / "bert", "bert")))
    runner = load_modules(model, Span(0, 1), "fp32", kv="auto", threads=1)
    adapter = read_adapter(write_adapter(tmp_path / "a", model.path, ["query"]))
    with pytest.raises(UnsupportedModel, match="adapters are for decoders"):
        runner.load_adapters([adapter])
