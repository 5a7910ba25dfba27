"""What only a device can show: nothing is left on the CPU, nobody waits, and short memory is not the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trio
from torch._subclasses.fake_tensor import FakeTensorMode  # torch's own stand-in for tensors on any device

from shoal.errors import Busy, OutOfResources
from shoal.executor.arrays import Floats
from shoal.executor.codecs import encode
from shoal.executor.device import runner as runner_module
from shoal.executor.device.device import CPU
from shoal.executor.device.plan import plan_forward
from shoal.executor.device.products import Int8Matrix, Products, find_products, place_matrix
from shoal.executor.device.runner import DeviceRunner, load_device_runner
from shoal.executor.engine import Engine, StepOutput
from shoal.executor.kernels.c_kernels import pack
from shoal.executor.kernels.torch_kernels import widen
from shoal.executor.load import load_ends_runner, load_runner, span_shape
from shoal.executor.pages import PagePool
from shoal.executor.runner import KvState, SessionRows
from shoal.executor.thread import ComputeThread
from shoal.executor.weights.llama_blocks import read_layers
from shoal.executor.weights.weight_cache import WeightCache
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import BLOCKS, VOCAB, write_checkpoint
from shoal.types import Format, Kv, SessionId, Span

WIDTH = 64
WHOLE = Span(0, BLOCKS)


@pytest.fixture(scope="module")
def model(families: Callable[[str], LocalModel]) -> LocalModel:
    """Gemma 3: sliding windows, two ropes, norms everywhere."""
    return families("gemma3")


def rows(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, WIDTH), np.float32)


def loaded(model: LocalModel, cache: Path, format: Format = "int8") -> DeviceRunner:
    found = load_runner(model, WHOLE, format, kv="auto", threads=1, cache=cache, kernels="torch")
    assert isinstance(found, DeviceRunner)
    return found


# ---- which rows go where ----


def state(pool: PagePool, length: int, step: int) -> SessionRows:
    """A session of so many tokens that takes a step, with the pages for it."""
    pages = pool.promise(256)
    pages.resize(length + step)
    return SessionRows(KvState(WHOLE, pages, length), length, rows(step))


def test_sessions_with_as_many_rows_and_about_as_many_tokens_attend_together() -> None:
    pool = PagePool(64)
    batch = [state(pool, 40, 1), state(pool, 3, 5), state(pool, 47, 1), state(pool, 1, 1)]
    plan = plan_forward(batch, [0, 8])
    assert plan.order == [3, 0, 2, 1]
    assert [(group.start, group.sequences, group.rows) for group in plan.groups] == [
        (0, 1, 1),
        (1, 2, 1),
        (3, 1, 5),
    ]
    assert plan.positions.tolist() == [1, 40, 47, 3, 4, 5, 6, 7]
    assert plan.groups[1].views[0].table.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert plan.groups[1].views[8].first.tolist() == [32, 32]  # pages before the window are not looked at
    assert plan.groups[1].views[8].table.tolist() == [[2], [6]]


def test_what_another_session_left_in_a_page_is_cleared_and_what_is_ours_is_not() -> None:
    pool = PagePool(64)
    assert plan_forward([state(pool, 40, 1)], [0]).unused.tolist() == []
    assert plan_forward([state(pool, 48, 1)], [0]).unused.tolist() == list(range(6 * 16 + 1, 7 * 16))
    back = state(pool, 40, 1)
    back.state.length = 44  # it had come further
    assert len(plan_forward([back], [0]).unused) == 48 - 41


# ---- products ----


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "w8a8", "int4"])
@pytest.mark.parametrize("n", [1, 16, 17, 40])
@pytest.mark.parametrize("packed", [True, False])
def test_a_matrix_on_a_device_gives_what_its_weights_say(format: Format, n: int, packed: bool) -> None:
    device = torch.device(CPU)
    weights = np.random.default_rng(1).standard_normal((96, 256), np.float32)
    matrix = pack(weights, format, np.linspace(-1, 1, 96, dtype=np.float32))
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((n, 256), np.float32))
    placed = place_matrix(matrix, device, find_products(device) if packed else Products())
    expected = x @ widen(matrix, slice(None)).T + torch.linspace(-1, 1, 96)
    found = placed.multiply(x).float()
    bound = {"fp32": 1e-6, "w8a8": 0.02}.get(format, 0.006)
    assert (found - expected).norm() / expected.norm() < bound


def test_this_cpu_has_every_packed_product() -> None:
    found = find_products(torch.device(CPU))
    assert (found.int8_weights, found.integers, found.int4_weights is not None) == (True, True, True)


def test_a_product_that_is_wrong_or_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise NotImplementedError

    wrong: Callable[..., torch.Tensor] = lambda x, w, s: torch.zeros(len(x), len(w))  # noqa: E731
    monkeypatch.setattr(torch, "_weight_int8pack_mm", wrong)
    monkeypatch.setattr(torch, "_int_mm", missing)
    monkeypatch.setattr(torch, "_weight_int4pack_mm_for_cpu", missing)
    assert find_products.__wrapped__(torch.device(CPU)) == Products()


def test_many_rows_in_int8_are_exact_but_for_the_rounding_of_their_integers() -> None:
    """So a prefill loses nothing to bfloat16."""
    device = torch.device(CPU)
    matrix = pack(np.random.default_rng(1).standard_normal((96, 256), np.float32), "int8")
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((32, 256), np.float32))
    expected = x @ widen(matrix, slice(None)).T
    found = place_matrix(matrix, device, Products(integers=True)).multiply(x)
    assert (found - expected).norm() / expected.norm() < 1e-4


# ---- on a device ----


@pytest.mark.parametrize(
    ("format", "kv"),
    [("fp32", "auto"), ("bf16", "int8"), ("int8", "auto"), ("w8a8", "int8"), ("int4", "auto")],
)
def test_all_lies_on_the_device_and_nothing_waits_for_it_before_the_one_copy_out(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, kv: Kv
) -> None:
    """Torch's fake tensors know their device and no numbers: a look at one, or a tensor elsewhere, raises."""
    copies: list[torch.Tensor] = []

    def received(tensor: torch.Tensor) -> Floats:
        copies.append(tensor)
        return np.zeros(tensor.shape, np.float32)

    monkeypatch.setattr(runner_module, "received", received)
    monkeypatch.setattr(runner_module, "find_products", lambda _: Products(int8_weights=True, integers=True))
    checkpoint = open_checkpoint(model.path)
    span = Span(0, 3)  # a block of each kind
    shape = span_shape(checkpoint, span)
    assert shape is not None
    layers = list(read_layers(checkpoint, shape, span, format, WeightCache(tmp_path, model.digest, format)))
    device = torch.device("cuda:0")
    with FakeTensorMode(allow_non_fake_inputs=True):
        runner = load_device_runner(layers, shape, span, format, kv=kv, device=device)
        pool = runner.make_pool(512)
        states = [runner.open(span, pool.promise(64)) for _ in range(3)]
        runner.forward([SessionRows(s, 0, rows(20)) for s in states])
        outs = runner.forward([SessionRows(s, 20 - i, rows(1 + 4 * i)) for i, s in enumerate(states)])
    assert [np.shape(out) for out in outs] == [(1, WIDTH), (5, WIDTH), (9, WIDTH)]
    assert [(copy.device, copy.dtype) for copy in copies] == [(device, torch.float32)] * 2


# ---- short memory ----


def test_a_step_that_does_not_fit_is_refused_and_those_beside_it_run(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = loaded(model, tmp_path)
    pool = runner.make_pool(1024)
    large, *small = (runner.open(WHOLE, pool.promise(128)) for _ in range(4))
    alone = runner.open(WHOLE, pool.promise(128))
    (expected,) = runner.forward([SessionRows(alone, 0, rows(1))])
    run_layer = runner_module.run_layer

    def full(layer: object, shape: object, hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(hidden) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run_layer(layer, shape, hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner_module, "run_layer", full)
    batch = [SessionRows(large, 0, rows(40)), *(SessionRows(s, 0, rows(1)) for s in small)]
    refused, *ran = runner.forward(batch)
    assert isinstance(refused, Busy)
    assert "cpu has no memory left" in refused.message
    assert large.length == 0
    assert all(isinstance(out, np.ndarray) and np.allclose(out, expected, atol=0.1) for out in ran)
    monkeypatch.setattr(runner_module, "run_layer", run_layer)
    (again,) = runner.forward([SessionRows(large, 0, rows(40))])
    assert isinstance(again, np.ndarray)


def test_a_defect_is_not_taken_for_short_memory(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = loaded(model, tmp_path)
    opened = runner.open(WHOLE, runner.make_pool(64).promise(64))

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(runner_module, "run_layer", broken)
    with pytest.raises(RuntimeError, match="do not fit"):
        runner.forward([SessionRows(opened, 0, rows(1))])


def test_weights_or_pages_that_do_not_fit_say_so(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    runner = loaded(model, tmp_path)
    monkeypatch.setattr(runner_module, "DeviceKv", full)
    with pytest.raises(OutOfResources, match="no room for 512 tokens of KV"):
        runner.make_pool(512)
    monkeypatch.setattr(runner_module, "place_layer", full)
    with pytest.raises(OutOfResources, match="no room for blocks 0:6 in int8"):
        loaded(model, tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
async def test_a_full_device_is_busy_to_its_sessions_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """On the model's own modules as well: a step is refused, and runs once there is room."""
    model = ModelStore(tmp_path / "store").resolve(str(write_checkpoint(tmp_path / family, family)))
    runner = load_runner(model, WHOLE, "int8", kv="auto", threads=1, cache=tmp_path, kernels="torch")
    thread = ComputeThread()
    engine = Engine(runner, runner.make_pool(256), thread, format="int8")
    session = SessionId(b"s" * 16)
    await engine.open(session)
    engine.grow(session, 64)
    multiply = Int8Matrix.multiply

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    async def step() -> object:
        came, token = trio.Event(), trio.lowlevel.current_trio_token()
        found: list[object] = []

        def done(outcome: object) -> None:
            found.append(outcome)
            token.run_sync_soon(came.set)

        engine.submit(session, 0, encode(rows(5), "float32"), "float32", 5, 5, "float32", done)
        with trio.fail_after(30):
            await came.wait()
        return found[0]

    monkeypatch.setattr(Int8Matrix, "multiply", full)
    assert isinstance(await step(), Busy)
    monkeypatch.setattr(Int8Matrix, "multiply", multiply)
    assert isinstance(await step(), StepOutput)
    thread.close()


# ---- the ends ----


@pytest.mark.parametrize(
    ("format", "bound"), [("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.01), ("w8a8", 0.01), ("int4", 0.01)]
)
def test_the_head_on_a_device_gives_the_same_logits(
    model: LocalModel, tmp_path: Path, format: Format, bound: float
) -> None:
    """The head of int4 and w8a8 is int8; in fp32 the other way is the model's own modules."""
    here, there = (
        load_ends_runner(model, format, threads=1, cache=tmp_path, kernels=kernels)
        for kernels in ("auto", "torch")
    )
    hidden = [there.embed([1, 2, 3], 0), there.embed([4], 3)]
    assert np.allclose(hidden[0], here.embed([1, 2, 3], 0), rtol=1e-6)
    expected, found = (
        np.concatenate([np.asarray(out) for out in ends.heads(hidden)]) for ends in (here, there)
    )
    assert found.shape == (4, VOCAB)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < bound
