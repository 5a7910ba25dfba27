"""What the kernels make of a result at a client is what its ends make of it: a token, and its step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shoal.client.sampling import likeliest
from shoal.errors import BadWeights
from shoal.executor.arrays import narrow
from shoal.executor.codecs import decode, encode
from shoal.executor.ends import EndsWeights, FusedEmbedding, FusedEnds
from shoal.executor.kernels.c_kernels import ThreadTeam, aligned, library, pack
from shoal.executor.kernels.decode_steps import AwaitedResult, DecodeSteps
from shoal.executor.load import load_ends_runner
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Codec, Format, SessionId
from shoal.wire.framing import Assembler, Outgoing
from shoal.wire.messages import HopTime, Step
from shoal.wire.payload import hidden_states

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels are not built")
WIDTH, CONTEXT, CHANNEL = 48, 4096, 5
FORMATS: tuple[Format, ...] = ("int8", "bf16", "fp32")


def ends(format: Format, vocab: int, *, narrowed: bool, factor: float, logits: float) -> FusedEnds:
    """The ends of a model of random weights."""
    random = np.random.default_rng(vocab)
    table = random.standard_normal((vocab, WIDTH), np.float32)
    weights = EndsWeights(
        FusedEmbedding(narrow(table) if narrowed else aligned(table), factor, CONTEXT),
        aligned(1 + random.standard_normal(WIDTH, np.float32) / 8),
        pack(random.standard_normal((vocab, WIDTH), np.float32), format),
    )
    return FusedEnds(cast(Any, SimpleNamespace(epsilon=1e-5, logits=logits)), weights, ThreadTeam(1))


def result(session: SessionId, number: int, position: int, codec: Codec, **changes: Any) -> Step:
    times = (HopTime(0, 300, 7), HopTime(1, 70000, 0))
    fields: dict[str, Any] = {"tensors": hidden_states(codec, 1, WIDTH), "times": times} | changes
    return Step(session, number, position, 1, 1, **fields)


def awaited(step: Step, message: int, limit: int = CONTEXT) -> AwaitedResult:
    return AwaitedResult(step.number, step.position, limit, CHANNEL, step.hidden.codec, message)


def answer(steps: DecodeSteps, came: list[tuple[Step, bytes]], channel: int = CHANNEL) -> Any:
    record = b"".join(Outgoing(n, *each).whole() or b"" for n, each in enumerate(came))
    return steps.run(channel, record, 0.0)


rows = st.lists(st.integers(0, 1 << 30), min_size=1, max_size=16, unique=True)


@settings(max_examples=40)
@given(
    st.sampled_from(FORMATS),
    st.sampled_from([1, 15, 16, 17, 300]),
    st.booleans(),
    st.sampled_from([1.0, 7.5]),
    st.sampled_from([1.0, 0.3, 8.0]),
    st.sampled_from(get_args(Codec)),
    rows,
)
def test_results_are_answered_as_the_ends_would_answer_each(
    format, vocab, narrowed, factor, logits, codec, seeds
):
    here = ends(format, vocab, narrowed=narrowed, factor=factor, logits=logits)
    if format != "int8":
        seeds = seeds[:8]  # of more, products with float weights add up in another order
    steps = here.decode_steps()
    came = list[tuple[Step, bytes]]()
    for number, seed in enumerate(seeds):
        row = np.random.default_rng(seed).standard_normal((1, WIDTH), np.float32)
        step = result(SessionId(seed.to_bytes(16, "big")), 1 + seed, seed % 4000, codec)
        came.append((step, encode(row, codec)))
        steps.prepare_result(steps.take_seat(step.session), awaited(step, number))
    ran, _ = answer(steps, came)
    hidden = [decode(payload, codec, 1, WIDTH) for _, payload in came]
    for number, ((step, _), row, found) in enumerate(zip(came, here.heads(hidden), ran, strict=True)):
        token = likeliest(row[0])
        following = Step(step.session, step.number + 1, step.position + 1, 1, 1, step.tensors)
        payload = encode(here.embed([token], step.position + 1), codec)
        assert (found.session, found.token) == (step.session, token)
        assert found.message == Outgoing(number, following, payload).whole()
        assert list(Assembler().feed(found.message)) == [(following, payload)]
    assert answer(steps, came) is None  # a second time nobody waits for them


def test_of_several_largest_logits_the_first_is_taken():
    here = ends("fp32", 40, narrowed=False, factor=1.0, logits=1.0)
    here._weights.head.weights[:] = 0  # pyright: ignore[reportPrivateUsage]
    here._weights.head.weights[[9, 23, 39]] = 1  # pyright: ignore[reportPrivateUsage]
    steps, step = here.decode_steps(), result(SessionId(bytes(16)), 3, 4, "float32")
    steps.prepare_result(steps.take_seat(step.session), awaited(step, 0))
    [ran], _ = answer(steps, [(step, encode(np.ones((1, WIDTH), np.float32), "float32"))])
    assert ran.token == 9


SESSION = SessionId(b"m" * 16)
OTHERS = {
    "another number": result(SESSION, 8, 4, "float32"),
    "another position": result(SESSION, 7, 5, "float32"),
    "another codec": result(SESSION, 7, 4, "bfloat16"),
    "another session": result(SessionId(b"n" * 16), 7, 4, "float32"),
    "a cache that is filled": result(SESSION, 7, 4, "float32", hops_left=1),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_not_the_result_that_is_waited_for_is_left_alone(other):
    steps = ends("int8", 40, narrowed=True, factor=1.0, logits=1.0).decode_steps()
    seat, right = steps.take_seat(SESSION), result(SESSION, 7, 4, "float32")
    row = np.ones((1, WIDTH), np.float32)
    steps.prepare_result(seat, awaited(right, 0))
    assert answer(steps, [(other, encode(row, other.hidden.codec))]) is None
    assert answer(steps, [(right, encode(row, "float32"))], channel=CHANNEL + 1) is None
    assert answer(steps, [(right, encode(row, "float32"))] * 2) is None
    broken = encode(row, "float32")[:-4] + np.float32(math.nan).tobytes()
    assert answer(steps, [(right, broken)]) is None
    steps.hold(seat)
    assert answer(steps, [(right, encode(row, "float32"))]) is None
    steps.prepare_result(seat, awaited(right, 0, limit=4))
    assert answer(steps, [(right, encode(row, "float32"))]) is None
    steps.prepare_result(seat, awaited(right, 0, limit=5))
    assert answer(steps, [(right, encode(row, "float32"))]) is not None


def test_logits_that_are_no_numbers_are_left_to_who_says_so():
    here = ends("fp32", 40, narrowed=False, factor=1.0, logits=1.0)
    here._weights.head.weights[39, 0] = math.nan  # pyright: ignore[reportPrivateUsage]
    steps, step = here.decode_steps(), result(SESSION, 7, 4, "float32")
    steps.prepare_result(steps.take_seat(SESSION), awaited(step, 0))
    assert answer(steps, [(step, encode(np.ones((1, WIDTH), np.float32), "float32"))]) is None


@pytest.mark.parametrize("table", [np.ones((40, WIDTH), np.float16), np.ones((41, WIDTH), np.float32)])
def test_an_embedding_that_the_kernels_cannot_read_is_left_to_the_ends(table):
    here = ends("int8", 40, narrowed=True, factor=1.0, logits=1.0)
    weights = EndsWeights(FusedEmbedding(table, 1.0, CONTEXT), here._weights.norm, here._weights.head)  # pyright: ignore[reportPrivateUsage]
    assert FusedEnds(here._shape, weights, here._team).decode_steps() is None  # pyright: ignore[reportPrivateUsage]


def test_an_embedding_of_another_width_than_the_head_is_not_read_by_the_kernels() -> None:
    whole = ends("fp32", 16, narrowed=False, factor=1.0, logits=1.0)
    assert whole.decode_steps() is not None
    weights = whole._weights  # pyright: ignore[reportPrivateUsage]
    narrow_one = FusedEmbedding(aligned(np.zeros((16, 1), np.float32)), 1.0, CONTEXT)
    shape = cast(Any, SimpleNamespace(epsilon=1e-5, logits=1.0))
    assert FusedEnds(shape, replace(weights, embedding=narrow_one), ThreadTeam(1)).decode_steps() is None


def test_a_checkpoint_with_an_embedding_of_another_width_is_refused(tmp_path: Path) -> None:
    """One whose rows are shorter than the model's would have the kernels read behind it."""
    folder = write_checkpoint(tmp_path / "narrow", "llama", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name][:, :1].contiguous()}, folder / "model.safetensors")
    model = ModelStore(tmp_path / "store").resolve(str(folder))
    with pytest.raises(BadWeights, match="embed_tokens"):
        load_ends_runner(model, "int8", threads=1, cache=tmp_path)
