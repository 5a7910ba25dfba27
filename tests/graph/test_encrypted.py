"""Linear graphs on inputs that stay encrypted: what comes out, who is asked, and what peers cannot do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from shoal.client.graph import encrypted_rows
from shoal.client.graph.encryptable import check_encryptable, linear_outputs
from shoal.client.graph.graph_client import GraphAnswer
from shoal.client.graph.known_graph import of_local
from shoal.client.swarm import Swarm
from shoal.errors import IncompatibleLibrary, NoCoverage, ShoalError, StepFailed, UsageError
from shoal.executor.encrypted import parameters
from shoal.executor.encrypted.cost import encrypted_cost, encrypted_seconds
from shoal.executor.encrypted.parameters import PARAMETERS
from shoal.executor.encrypted.processes import EncryptedMapRunner, EncryptedScores
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.manifest import GRAPH_NUMERICS, LinearMap
from shoal.node.graph import graph_node
from shoal.node.graph.graph_node import computes_encrypted
from shoal.testing import byhand
from shoal.testing.byhand import MINE, by_hand
from shoal.testing.encrypted.in_process import InProcessKey, InProcessMap
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import GraphSwarm, InProcessRunner, graph_swarm
from shoal.testing.graphs import NamedArrays, write_linear
from shoal.testing.swarm import memory_settings
from shoal.types import Span
from shoal.wire.inferring import InferEncrypted, InferredEncrypted
from shoal.wire.messages import Failed, Opened

from .conftest import Imported

NEAR = 1e-3
"""How far a result may be from the one of inputs in the clear."""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encrypt in this process."""
    monkeypatch.setattr(encrypted_rows, "SecretProcess", InProcessKey)


def rows_of(count: int = 100, columns: int = 30) -> NamedArrays:
    return {"features": np.random.default_rng(0).standard_normal((count, columns)).astype(np.float32)}


async def asked(client: Swarm, graph: LocalGraph, inputs: NamedArrays) -> GraphAnswer:
    return await client.graphs.infer_encrypted(await client.graphs.resolve(graph.digest), inputs)


def only_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nodes compute nothing that is in the clear."""

    def run(*_: object) -> None:
        raise AssertionError("a node was given inputs in the clear")

    monkeypatch.setattr(InProcessRunner, "run", run)


async def test_a_logistic_model_gives_what_it_gives_in_the_clear(
    logistic: LocalGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By processes of their own at both ends."""
    inputs = rows_of()
    expected = whole(logistic, inputs)["scores"]
    async with graph_swarm(tmp_path, logistic, [Span(0, 1)]) as swarm:
        assert swarm.nodes[0].served().encrypted
        only_encrypted(monkeypatch)
        answer = await asked(swarm.client, logistic, inputs)
        assert np.abs(answer.outputs["scores"] - expected).max() < NEAR
        assert (answer.outputs["scores"].dtype, answer.outputs["scores"].shape) == (np.float32, (100, 1))
        assert [stage.span for stage in answer.route] == [Span(0, 1)]
        assert answer.encryption is not None and answer.encryption.parameters == PARAMETERS
        assert answer.encryption.error < 1e-8


async def test_two_products_with_a_class_at_the_end_are_one_map(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_linear(tmp_path / "classes.onnx", hidden=16, scores=4, final="Softmax")
    graph = GraphStore(tmp_path / "graphs").resolve(str(file))
    inputs = rows_of()
    inputs["features"] *= 1e4  # as amounts of money are
    expected = whole(graph, inputs)
    span = Span(0, len(graph.manifest.segments))
    async with graph_swarm(tmp_path, graph, [span], make_map_runner=InProcessMap) as swarm:
        only_encrypted(monkeypatch)
        outputs = await swarm.client.run(graph.digest, inputs, encrypted=True)
        assert np.abs(outputs["scores"] - expected["scores"]).max() < NEAR
        assert same({"best": outputs["best"]}, {"best": expected["best"]})
        linear = swarm.nodes[0].server.linear
        assert isinstance(linear, InProcessMap) and len(linear.asked) == 1
        again = await swarm.client.run(graph.digest, inputs, encrypted=True)
        assert linear.asked[0] != linear.asked[1]  # by another key
        assert np.allclose(again["scores"], outputs["scores"], atol=NEAR)


async def test_only_nodes_that_can_are_asked(
    in_process: None, logistic: LocalGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with graph_swarm(tmp_path, logistic, [], make_map_runner=InProcessMap) as swarm:
        with monkeypatch.context() as patch:
            patch.setattr(graph_node, "has_ckks", lambda: False)
            await swarm.add_node(Span(0, 1))
            assert not swarm.nodes[0].served().encrypted
            with pytest.raises(NoCoverage, match="nobody computes logistic on encrypted inputs") as raised:
                await asked(swarm.client, logistic, rows_of())
            assert "shoal[encrypted]" in raised.value.check
        await swarm.add_node(Span(0, 1))
        for _ in range(2):
            answer = await asked(swarm.client, logistic, rows_of())
            assert [stage.peer for stage in answer.route] == [swarm.networks[-1].peer]


def test_a_node_of_a_part_or_of_another_graph_cannot(imported: Imported, tmp_path: Path) -> None:
    file = write_linear(tmp_path / "classes.onnx", hidden=16, scores=4, final="Softmax")
    graph = GraphStore(tmp_path / "graphs").resolve(str(file))
    count = len(graph.manifest.segments)
    assert computes_encrypted(graph, Span(0, count))
    assert not computes_encrypted(graph, Span(0, count - 1))
    assert not computes_encrypted(imported("mlp"), Span(0, 8))


class LyingMap(InProcessMap):
    """Sends something else than it was asked for."""

    made: EncryptedScores

    def run(self, sizes: tuple[int, ...], payload: bytes) -> EncryptedScores:
        return self.made


class OtherKeys(InProcessMap):
    """Answers with scores that are somebody else's: well formed, and decrypted they are noise."""

    def run(self, sizes: tuple[int, ...], payload: bytes) -> EncryptedScores:
        other = InProcessKey(within_s=10)
        mine = super().run(*other.encrypt(np.full((3, len(sizes)), 0.1)))
        other.close()
        return EncryptedScores(mine.sizes, mine.ciphertexts, 256)


async def test_what_can_be_no_score_is_not_given_out(
    in_process: None, logistic: LocalGraph, tmp_path: Path
) -> None:
    async with graph_swarm(tmp_path, logistic, [Span(0, 1)], make_map_runner=OtherKeys) as swarm:
        client = await swarm.add_client(resume_s=0.1)
        with pytest.raises(ShoalError, match=r"scores of these rows|nobody computes"):
            await asked(client, logistic, rows_of())


class Unable(InProcessMap):
    """On a machine on which the library is there and does not work."""

    def load(self) -> None:
        raise StepFailed("it does not start")


async def test_a_node_on_which_it_does_not_work_does_not_say_that_it_can(
    in_process: None, logistic: LocalGraph, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with graph_swarm(tmp_path, logistic, [Span(0, 1)], make_map_runner=Unable) as swarm:
        client = await swarm.add_client(resume_s=0.1)
        graph = await client.graphs.resolve(logistic.digest)
        assert (await client.graphs.infer(graph, rows_of())).outputs
        with pytest.raises(ShoalError, match="nobody"):
            await asked(client, logistic, rows_of())
    assert "encrypted inputs are not computed here: it does not start" in caplog.text


@pytest.mark.parametrize(
    "made",
    [
        EncryptedScores((100,), bytes(100), 0),
        EncryptedScores((10, 10), bytes(20), 0),
        EncryptedScores((200_000,), bytes(200_000), 0),
    ],
)
async def test_a_node_that_answers_with_something_else_is_left_for_another(
    made: EncryptedScores, in_process: None, logistic: LocalGraph, tmp_path: Path
) -> None:
    LyingMap.made = made
    async with graph_swarm(tmp_path, logistic, [Span(0, 1)], make_map_runner=LyingMap) as swarm:
        liar = swarm.networks[0].peer
        client = await swarm.add_client(resume_s=0.1)
        with pytest.raises(ShoalError, match=r"decrypt|scores|nobody computes"):
            await asked(client, logistic, rows_of())
        swarm.make_map_runner = InProcessMap
        await swarm.add_node(Span(0, 1))
        answer = await asked(client, logistic, rows_of())
        assert np.abs(answer.outputs["scores"] - whole(logistic, rows_of())["scores"]).max() < NEAR
        assert liar not in [stage.peer for stage in answer.route]


async def test_what_cannot_be_encrypted_is_said_before_anything_is_sent(
    logistic: LocalGraph, tmp_path: Path
) -> None:
    known = of_local(logistic)
    async with graph_swarm(tmp_path, logistic, []) as swarm:
        for inputs, why in [
            (rows_of(4097), "at most 4096"),
            (rows_of(0), "0 rows"),
            ({"features": np.full((1, 30), np.nan, np.float32)}, "NaN"),
            (rows_of(columns=29), "has the shape"),
        ]:
            with pytest.raises(UsageError, match=why):
                await swarm.client.graphs.infer_encrypted(known, inputs)
        private = await swarm.add_client(private_ends="1:0")
        with pytest.raises(UsageError, match="private ends have no meaning"):
            await private.graphs.infer_encrypted(known, rows_of())


async def test_other_graphs_and_language_models_are_refused_with_what_they_would_cost(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("mlp")
    async with graph_swarm(tmp_path, graph, []) as swarm:
        with pytest.raises(UsageError, match=r"one linear map of each row can.* would take .* a row"):
            await swarm.client.graphs.infer_encrypted(of_local(graph), {})
        with pytest.raises(UsageError, match=r"language model.* an answer of 300 tokens would take .* years"):
            await swarm.client.run("SmolLM2-135M-Instruct", {}, encrypted=True)


def test_the_cost_grows_with_the_weights() -> None:
    assert encrypted_seconds(2 * 576**2) == 2 * encrypted_seconds(576**2)
    assert "minutes a row" in encrypted_cost(25_600_000, "row")


def test_attested_peers_do_not_compute_graphs_and_without_the_library_nothing_is_encrypted(
    logistic: LocalGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = memory_settings(tmp_path)
    with pytest.raises(UsageError, match="do not show what they run on"):
        check_encryptable(of_local(logistic), replace(settings, attested_only=True))
    monkeypatch.setattr(parameters, "find_spec", lambda name: None)
    with pytest.raises(IncompatibleLibrary, match="TenSEAL") as raised:
        check_encryptable(of_local(logistic), settings)
    assert "shoal[encrypted]" in raised.value.check
    assert not computes_encrypted(logistic, Span(0, 1))


def test_what_follows_the_map_is_computed_here(logistic: LocalGraph) -> None:
    scores = np.array([[-1000.0, 1000.0], [0.5, 0.25]])

    def made(*finals: str) -> Any:
        return linear_outputs(logistic.manifest, LinearMap(30, 2, (finals,)), scores)["scores"]  # type: ignore[arg-type]

    assert made().tolist() == scores.tolist()
    assert made("sigmoid")[0].tolist() == [0, 1]
    assert np.allclose(made("softmax"), [[0, 1], [0.5622, 0.4378]], atol=1e-4)
    assert made("softmax", "argmax").tolist() == [1, 0]
    assert made("sigmoid", "l1")[0].tolist() == [0, 1]
    assert made("l1")[1].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert made("argmax_kept").tolist() == [[1], [0]]


Change = Callable[[InferEncrypted, bytes], tuple[InferEncrypted, bytes]]


def named(name: str) -> Change:
    return lambda asked, payload: (
        InferEncrypted(asked.session, asked.number, name, asked.sizes),
        payload,
    )


def sized(count: int) -> Change:
    def change(asked: InferEncrypted, payload: bytes) -> tuple[InferEncrypted, bytes]:
        sizes = asked.sizes[:count]
        return InferEncrypted(asked.session, asked.number, PARAMETERS, sizes), payload[: sum(sizes)]

    return change


def shortened(asked: InferEncrypted, payload: bytes) -> tuple[InferEncrypted, bytes]:
    """The last ciphertext is not all there."""
    sizes = (*asked.sizes[:-1], asked.sizes[-1] - 50)
    return InferEncrypted(asked.session, asked.number, PARAMETERS, sizes), payload[:-50]


async def test_a_node_refuses_what_is_not_encrypted_as_it_should_be_and_serves_the_next(
    logistic: LocalGraph, tmp_path: Path
) -> None:
    key = InProcessKey(within_s=1)
    sizes, payload = key.encrypt(np.hstack([rows_of()["features"], np.ones((100, 1))]))
    honest = InferEncrypted(MINE, 1, PARAMETERS, sizes)
    changes: list[tuple[Change, str]] = [
        (named("ckks-4096-20"), "by ckks-8192-60-60-60 alone"),
        (sized(30), "30 ciphertexts"),
        (lambda asked, payload: (asked, bytes(len(payload))), "cannot be read"),
        (shortened, "cannot be read"),
        (lambda asked, payload: (asked, b"\xff" * len(payload)), "cannot be read"),
    ]
    async with (
        graph_swarm(tmp_path, logistic, [Span(0, 1)]) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as me,
    ):
        opening = byhand.an_open(logistic.digest, 1, tokens=1, numerics=str(GRAPH_NUMERICS))
        assert isinstance((await me.ask(opening))[0], Opened)
        for change, why in changes:
            failed, _ = await me.ask(*change(honest, payload))
            assert isinstance(failed, Failed) and why in failed.message, failed
        await crash(swarm)
        answer, made = await me.ask(honest, payload)
        assert isinstance(answer, InferredEncrypted)
        scores = np.ldexp(key.decrypt(answer.sizes, made, 100), answer.exponent)
        assert np.abs(1 / (1 + np.exp(-scores)) - whole(logistic, rows_of())["scores"]).max() < NEAR


async def crash(swarm: GraphSwarm) -> None:
    """Kill the process that reads ciphertexts."""
    linear = swarm.nodes[0].server.linear
    assert isinstance(linear, EncryptedMapRunner) and linear.pid is not None
    os.kill(linear.pid, signal.SIGKILL)
    await trio.sleep(0.1)


def test_a_runner_finds_its_graph_from_here_and_computes_nothing_more_once_it_is_closed(
    logistic: LocalGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(logistic.folder.parent)
    runner = EncryptedMapRunner(Path(logistic.folder.name), within_s=1)
    runner.load()
    runner.close()
    with pytest.raises(StepFailed, match="has ended"):
        runner.run((1,), b"x")


async def test_a_node_without_a_linear_graph_refuses(imported: Imported, tmp_path: Path) -> None:
    graph = imported("mlp")
    async with (
        graph_swarm(tmp_path, graph, [Span(0, 8)]) as swarm,
        by_hand(swarm.world.network(), swarm.networks[0].address) as me,
    ):
        await me.ask(byhand.an_open(graph.digest, 8, tokens=1, numerics=str(GRAPH_NUMERICS)))
        failed, _ = await me.ask(InferEncrypted(MINE, 1, PARAMETERS, (1,)), b"x")
        assert isinstance(failed, Failed) and "does not compute all" in failed.message
