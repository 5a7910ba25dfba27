"""Two models, or two versions of one model, in the same swarm (docs/hostile.md 21): never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from shoal.errors import DigestMismatch, NoCoverage
from shoal.models.store.store import ModelStore
from shoal.sharing.peer_weights import PeerWeights
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import Span
from tests.hostile.conftest import PROMPT
from tests.one_process import KERNELS, OneProcess


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of one name, whose weights differ."""
    return tuple(
        write_checkpoint(tmp_path_factory.mktemp(f"v{seed}") / "fish", "llama", seed=seed) for seed in (0, 4)
    )  # pyright: ignore[reportReturnType]


async def tokens(swarm: MemorySwarm, folder: Path, count: int = 6) -> list[int]:
    answer = swarm.client.generate(str(folder), PROMPT, max_tokens=count)
    async for _ in answer:
        pass
    return answer.token_ids


async def add(swarm: MemorySwarm, folder: Path, span: Span) -> None:
    store = ModelStore(swarm.settings.paths.models)
    model = await trio.to_thread.run_sync(store.resolve, str(folder))
    await swarm.add_node(span, model, **KERNELS)


async def test_21_each_version_answers_with_its_own_tokens(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    one, two = versions
    async with memory_swarm(tmp_path / "home", one, [Span(0, 3), Span(3, 6)], **KERNELS) as swarm:
        await add(swarm, two, Span(0, 3))
        await add(swarm, two, Span(3, 6))
        expected = [OneProcess(tmp_path / "whole", folder).greedy(PROMPT, 6) for folder in versions]
        assert expected[0] != expected[1]
        for _ in range(2):
            assert [await tokens(swarm, folder) for folder in versions] == expected


async def test_21_halves_of_two_versions_make_no_whole(
    tmp_path: Path, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.client.ring.route_finder.HEAR_WITHIN_S", 0.5)
    one, two = versions
    async with memory_swarm(tmp_path / "home", one, [Span(0, 3)], resume_s=1, **KERNELS) as swarm:
        await add(swarm, two, Span(3, 6))
        with pytest.raises(NoCoverage) as caught:
            await tokens(swarm, one)
        assert caught.value.missing == (Span(3, 6),)


async def test_21_a_node_of_another_version_takes_no_lost_hops_place(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    one, two = versions
    async with memory_swarm(tmp_path / "home", one, [Span(0, 3), Span(3, 6)], resume_s=1, **KERNELS) as swarm:
        await add(swarm, two, Span(3, 6))
        answer = swarm.client.generate(str(one), PROMPT, max_tokens=20)
        with pytest.raises(NoCoverage) as caught:
            async for _ in answer:
                if len(answer.token_ids) == 3:
                    swarm.kill(1)
        assert caught.value.missing == (Span(3, 6),)
        assert answer.token_ids == OneProcess(tmp_path / "whole", one).greedy(PROMPT, len(answer.token_ids))


async def test_21_halves_with_other_kinds_of_kv_make_no_whole_and_say_so(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    async with memory_swarm(tmp_path / "home", versions[0], [Span(0, 3)], resume_s=1, **KERNELS) as swarm:
        await swarm.add_node(Span(3, 6), kv="int8", **KERNELS)
        with pytest.raises(NoCoverage) as caught:
            await tokens(swarm, versions[0])
        assert caught.value.missing == (Span(3, 6),)


async def test_21_nodes_that_compute_by_other_means_answer_together_without_a_promise_of_bits(
    tmp_path: Path, versions: tuple[Path, Path]
) -> None:
    async with memory_swarm(tmp_path / "home", versions[0], [Span(0, 3)], **KERNELS) as swarm:
        await swarm.add_node(Span(3, 6), kernels="torch", **KERNELS)
        async with swarm.client.session(str(versions[0]), tokens=16) as session:
            assert str(session.ring.numerics) == "n1/int8/auto/any"
        assert len(await tokens(swarm, versions[0])) == 6
        await swarm.add_node(Span(3, 6), **KERNELS)
        async with swarm.client.session(str(versions[0]), tokens=16) as session:
            assert str(session.ring.numerics) == "n1/int8/auto/rows"


async def test_21_only_another_version_is_an_error_that_says_so(
    tmp_path: Path, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.client.ring.route_finder.HEAR_WITHIN_S", 0.5)
    one, two = versions
    async with memory_swarm(tmp_path / "home", one, [Span(0, 6)], **KERNELS) as swarm:
        client, elsewhere = swarm.client, ModelStore(tmp_path / "models of another machine")
        client.weights = PeerWeights(client.member, client.settings, elsewhere)
        with pytest.raises(DigestMismatch) as caught:
            await tokens(swarm, two)
        assert caught.value.next_command
