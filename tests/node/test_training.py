"""What clients may train at a node, and what is refused before anything is computed."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
import trio

from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    DigestMismatch,
    NotAllowed,
    PromptTooLong,
    RemoteProtocolError,
    ShoalError,
)
from shoal.executor.engine import Engine
from shoal.executor.training import train
from shoal.node.adapters import training
from shoal.node.adapters.training import (
    MOST_OF_NETWORK,
    MOST_OF_PEER,
    TrainingDesk,
    TrainingService,
    check_train,
)
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Digest, PeerId, Span
from shoal.wire.messages import decode, encode
from shoal.wire.training import MAX_ROWS, NotTrained, Train, TunedLayer

LAYERS = (TunedLayer("self_attn.q_proj", 64, 64),)
FITTING = Train(1, "sha256:model", 2, 4, False, 64, (5, 3), "model.layers", 2, 2.0, LAYERS)
ENGINE = cast(Engine, SimpleNamespace(width=64))
SERVICE = TrainingService(Digest("sha256:model"), Span(2, 8), ENGINE, 100)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama")


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
        {"lengths": (MAX_ROWS, 1)},
        {"rank": 65},
        {"rank": 0},
        {"scale": 0.0},
        {"scale": float("nan")},
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


class Asked:
    """A channel of a client, and what it was told."""

    def __init__(self, peer: str, host: str = "") -> None:
        self.peer, self.host, self.closed = peer, host, False
        self.refused: list[NotTrained] = []
        self.answered: list[int] = []
        self.reply = self.refused.append

    async def send(self, message: Any, payload: bytes) -> None:
        self.answered.append(message.number)


def desk_of(waiting: list[Any], **engine: Any) -> TrainingDesk:
    served = cast(Engine, SimpleNamespace(width=64, **engine))
    service = TrainingService(SERVICE.digest, SERVICE.span, served, 100)
    return TrainingDesk(lambda: service, waiting.append)


async def take(desk: TrainingDesk, channel: Asked, message: Train = FITTING) -> None:
    await desk._take(cast(Any, channel), message, b"")  # pyright: ignore[reportPrivateUsage]


async def test_one_client_has_few_questions_at_a_time() -> None:
    one, other = Asked("one"), Asked("other")
    waiting: list[Any] = []
    desk = desk_of(waiting)
    for channel in (one, other):
        for _ in range(MOST_OF_PEER + 1):
            await take(desk, channel)
        assert [answer.code for answer in channel.refused] == [Busy.code]
    assert len(waiting) == 2 * MOST_OF_PEER
    assert "4 questions of tuning wait" in other.refused[0].message


async def test_clients_of_one_network_leave_room_for_others() -> None:
    near = [Asked(f"near {i}", f"203.0.113.{i}") for i in range(MOST_OF_NETWORK + 1)]
    far = Asked("far", "198.51.100.1")
    desk = desk_of([])
    for channel in (*near, far):
        await take(desk, channel)
    assert [len(channel.refused) for channel in (*near, far)] == [0] * MOST_OF_NETWORK + [1, 0]


async def test_a_question_whose_client_has_gone_is_not_begun_and_its_place_is_free() -> None:
    begun: list[int] = []

    async def train(message: Train, payload: bytes, within_s: float) -> bytes:
        begun.append(message.number)
        return b""

    gone, here = Asked("gone"), Asked("here")
    waiting: list[Any] = []
    desk = desk_of(waiting, train=train)
    for number, channel in enumerate((gone, gone, here, here)):
        await take(desk, channel, msgspec.structs.replace(FITTING, number=number))
    assert all(desk.holds(cast(Any, channel)) for channel in (gone, here))
    gone.closed = True
    for answer in waiting:
        await answer()
    assert begun == here.answered == [2, 3]
    assert not any(desk.holds(cast(Any, channel)) for channel in (gone, here))
    assert desk.knows(PeerId("here"))
    assert not desk.knows(PeerId("nobody"))
    await take(desk, here)
    assert not here.refused


async def test_questions_are_computed_one_at_a_time_and_not_for_ever(autojump_clock: Any) -> None:
    at_once = most = 0

    async def train(message: Train, payload: bytes, within_s: float) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await trio.sleep(training.ANSWER_S * 0.7)
        finally:
            at_once -= 1
        return b""

    channel, waiting = Asked("one"), list[Any]()
    desk = desk_of(waiting, train=train)
    for number in range(2):
        await take(desk, channel, msgspec.structs.replace(FITTING, number=number))
    async with trio.open_nursery() as nursery:
        for answer in waiting:
            nursery.start_soon(answer)
    assert most == 1
    assert len(channel.answered) == 1
    assert [answer.code for answer in channel.refused] == [DeadlineExceeded.code]


async def test_sessions_have_their_turns_between_sequences_and_what_it_takes_is_counted(
    tmp_path: Any, checkpoint: Any, monkeypatch: Any
) -> None:
    sequences = 12
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], train="on") as swarm:
        engine = swarm.nodes[0].server.engine
        question = msgspec.structs.replace(FITTING, lengths=(9,) * sequences, backward=True)
        payload = np.full(question.size // 4, 0.01, np.float32).tobytes()
        done, turns, rests, busy = trio.Event(), 0, list[float](), list[float]()

        async def ask() -> None:
            await engine.train(question, payload, 60.0)
            done.set()

        async def rest(seconds: float) -> None:
            rests.append(seconds)
            busy.append(engine.busy_s)
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr("shoal.executor.engine.trio", SimpleNamespace(sleep=rest))
        engine.share = 0.25
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not done.is_set():
                await engine.settled(lambda: None)
                turns += 1
        monkeypatch.undo()
        assert turns >= sequences / 2
        # A quarter of the time is its own: it rests for three times as long as it has computed.
        assert len(rests) == sequences - 1
        took = [after - before for before, after in pairwise(busy)]
        assert min(took) > 0
        assert rests[1:] == pytest.approx([3 * seconds for seconds in took])


async def test_backward_keeps_what_enters_blocks_that_do_not_fit_and_not_what_is_in_them(
    tmp_path: Any, checkpoint: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(train, "KEPT_BYTES", 0)
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], train="on") as swarm:
        engine = swarm.nodes[0].server.engine
        module = cast(Any, engine.runner).module
        inside: list[weakref.ref[torch.Tensor]] = []
        alive: list[int] = []
        for block in module.blocks.modules:
            block.mlp.gate_proj.register_forward_hook(lambda *a: inside.append(weakref.ref(a[-1])))
        backward = torch.Tensor.backward

        def counted(tensor: torch.Tensor, *given: Any, **named: Any) -> None:
            alive.append(sum(one() is not None for one in inside))
            backward(tensor, *given, **named)

        monkeypatch.setattr(torch.Tensor, "backward", counted)
        question = msgspec.structs.replace(FITTING, start=0, end=6, backward=True)
        payload = np.full(question.size // 4, 0.01, np.float32).tobytes()
        assert len(await engine.train(question, payload, 60.0)) == question.answer_size
        assert len(alive) == len(question.lengths)
        assert max(alive) <= 1
        # The first block once, each other once to see what enters and once to go back.
        assert len(inside) == (2 * 6 - 1) * len(question.lengths)
        assert not any("forward" in vars(block) for block in module.blocks.modules)


async def test_a_shortage_of_memory_is_told_as_being_busy(
    tmp_path: Any, checkpoint: Any, monkeypatch: Any
) -> None:
    def short(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], train="on") as swarm:
        engine = swarm.nodes[0].server.engine
        payload = np.full(FITTING.size // 4, 0.01, np.float32).tobytes()
        monkeypatch.setattr("shoal.executor.training.train._run", short)
        with pytest.raises(Busy, match="no memory left"):
            await engine.train(FITTING, payload, 60.0)


async def test_a_node_answers_what_fits_and_refuses_the_rest(tmp_path, checkpoint, monkeypatch) -> None:
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

        server = swarm.nodes[0].server
        with trio.fail_after(60):
            # A stranger sends nothing long, and is none any more once a short question of its was taken.
            long = (2000, 2000, 1000)
            with pytest.raises(ChannelClosed):
                await ask(lengths=long)
            assert not server.channels._known(swarm.client.network.peer)  # pyright: ignore[reportPrivateUsage]
            assert len(await ask()) == 4 * 8 * 64
            assert len(await ask(lengths=long)) == 4 * 5000 * 64
            backward = np.frombuffer(await ask(backward=True), np.float32)
            assert len(backward) == 8 * 64 + 2 * 2 * 128
            assert np.isfinite(backward).all()
            assert np.abs(backward[8 * 64 :]).sum() > 0
            with pytest.raises(DigestMismatch, match=r"model\.layers\.2\.lm_head, which is no linear layer"):
                await ask(layers=(TunedLayer("lm_head", 64, 64),))
            with pytest.raises(DigestMismatch, match="32×64 and not 64×64 in the model"):
                await ask(layers=(TunedLayer("self_attn.k_proj", 64, 64),))
            with pytest.raises(RemoteProtocolError, match="NaN or infinite"):
                await ask(float("nan"))
            for within_s, error in ((0.0, DeadlineExceeded), (60.0, None)):
                monkeypatch.setattr(training, "STEP_S", within_s)
                with pytest.raises(error) if error else nullcontext():
                    assert len(await ask(backward=True)) == len(backward) * 4
