"""What clients may train at a node, and what is refused before anything is computed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio

from shoal.errors import (
    Busy,
    DeadlineExceeded,
    DigestMismatch,
    NotAllowed,
    PromptTooLong,
    RemoteProtocolError,
    ShoalError,
)
from shoal.executor.engine import Engine
from shoal.node.adapters import training
from shoal.node.adapters.training import MOST_OF_PEER, TrainingDesk, TrainingService, check_train
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Digest, Span
from shoal.wire.messages import decode, encode
from shoal.wire.training import NotTrained, Train, TunedLayer

LAYERS = (TunedLayer("self_attn.q_proj", 64, 64),)
FITTING = Train(1, "sha256:model", 2, 4, False, 64, (5, 3), "model.layers", 2, 2.0, LAYERS)
ENGINE = cast(Engine, SimpleNamespace(width=64))
SERVICE = TrainingService(Digest("sha256:model"), Span(2, 8), ENGINE, 100)


def test_a_question_says_how_many_bytes_it_and_its_answer_have() -> None:
    factors = 2 * 2 * (64 + 64)
    assert FITTING.size == 4 * (8 * 64 + factors)
    assert FITTING.answer_size == 4 * 8 * 64
    backward = msgspec.structs.replace(FITTING, backward=True)
    assert (backward.size, backward.answer_size) == (4 * (16 * 64 + factors), 4 * (8 * 64 + factors))
    assert decode(encode(FITTING), FITTING.size) == FITTING
    with pytest.raises(RemoteProtocolError, match="where it declares"):
        decode(encode(FITTING), FITTING.size - 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"end": 2},
        {"lengths": ()},
        {"lengths": (0,)},
        {"lengths": (1 << 20,)},
        {"lengths": (1,) * 300},
        {"rank": 65},
        {"rank": 0},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"layers": ()},
        {"layers": LAYERS * 65},
        {"layers": (TunedLayer("q", 1 << 21, 1),)},
        {"width": 0},
    ],
)
def test_what_no_question_can_be_is_refused_as_it_is_read(changes: dict[str, Any]) -> None:
    message = msgspec.structs.replace(FITTING, **changes)
    with pytest.raises(RemoteProtocolError):
        decode(encode(message), max(0, message.size))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"digest": "sha256:other"}, DigestMismatch, "not sha256:other"),
        ({"start": 1}, NotAllowed, "1:4 is not inside"),
        ({"end": 9}, NotAllowed, "2:9 is not inside"),
        ({"width": 32}, NotAllowed, "32 wide, not 64"),
        ({"lengths": (5, 101)}, PromptTooLong, "101 tokens, and this node trains up to 100"),
    ],
)
def test_what_does_not_fit_is_refused_and_told_why(
    changes: dict[str, Any], error: type[ShoalError], says: str
) -> None:
    check_train(FITTING, SERVICE)
    with pytest.raises(error, match=says):
        check_train(msgspec.structs.replace(FITTING, **changes), SERVICE)


def test_a_node_that_does_not_train_says_why() -> None:
    with pytest.raises(NotAllowed, match="does not train: its weights are packed"):
        check_train(
            FITTING, TrainingService(SERVICE.digest, SERVICE.span, ENGINE, 100, "its weights are packed")
        )


async def test_one_client_has_few_questions_at_a_time() -> None:
    refused: list[NotTrained] = []
    channel = cast(Any, SimpleNamespace(peer="one", reply=refused.append))
    other = cast(Any, SimpleNamespace(peer="other", reply=refused.append))
    waiting: list[Any] = []
    desk = TrainingDesk(lambda: SERVICE, waiting.append)
    for _ in range(MOST_OF_PEER + 1):
        await desk._take(channel, FITTING, b"")  # pyright: ignore[reportPrivateUsage]
    assert [answer.code for answer in refused] == [Busy.code]
    for _ in range(MOST_OF_PEER + 1):
        await desk._take(other, FITTING, b"")  # pyright: ignore[reportPrivateUsage]
    assert len(waiting) == 2 * MOST_OF_PEER
    assert [answer.code for answer in refused] == [Busy.code] * 2


async def test_a_node_answers_what_fits_and_refuses_the_rest_by_name(tmp_path, monkeypatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "llama", "llama")
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], train="on") as swarm:
        shape, rings = swarm.model.shape, swarm.client.rings
        await swarm.client.rings.finder.among_training().served_numerics(shape, Span(0, 6))

        async def ask(numbers: float = 0.01, **changes: Any) -> bytes:
            message = msgspec.structs.replace(
                FITTING, number=rings.training.number(), digest=shape.digest, **changes
            )
            payload = np.full(message.size // 4, numbers, np.float32).tobytes()
            channel = await rings.reach(swarm.networks[0].address, 5.0)
            return await rings.training.ask(channel, message, payload, 30.0)

        with trio.fail_after(60):
            assert len(await ask()) == 4 * 8 * 64
            backward = np.frombuffer(await ask(backward=True), np.float32)
            assert len(backward) == 8 * 64 + 2 * 2 * 128
            assert np.isfinite(backward).all()
            assert np.abs(backward[8 * 64 :]).sum() > 0
            with pytest.raises(DigestMismatch, match=r"model\.layers\.2\.lm_head, which is no linear layer"):
                await ask(layers=(TunedLayer("lm_head", 64, 64),))
            with pytest.raises(DigestMismatch, match="is of another size"):
                await ask(layers=(TunedLayer("self_attn.k_proj", 64, 64),))
            with pytest.raises(RemoteProtocolError, match="NaN or infinite"):
                await ask(float("nan"))
            for within_s, error in ((0.0, DeadlineExceeded), (60.0, None)):
                monkeypatch.setattr(training, "STEP_S", within_s)
                with pytest.raises(error) if error else nullcontext():
                    assert len(await ask(backward=True)) == len(backward) * 4
