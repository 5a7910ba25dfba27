"""`shoal verify`: an answer that holds, and one of which a token, a receipt or a weight was changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from shoal.client.swarm import Swarm
from shoal.executor.kernels.built import kernels_built
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.trust.answer import KeptAnswer, read_kept_answer
from shoal.types import Span
from tests.trust.test_receipts import HONEST, contradicted

from .conftest import Shoal

needs_c = pytest.mark.skipif(not kernels_built(), reason="the C kernels are not built")
SPANS = [Span(0, 2), Span(2, 6)]
PROMPT = list(range(5, 40))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes with a model, and answers of a swarm that ran on them."""
    root = tmp_path_factory.mktemp("answers")
    checkpoint = write_checkpoint(root / "fish", "llama")

    async def ask(name: str, format: str, **options: Any) -> None:
        async with memory_swarm(root / "home", checkpoint, SPANS, format=format) as swarm:
            await keep(swarm.client, name, **options)

    async def keep(client: Swarm, name: str, **options: Any) -> None:
        answer = client.generate(str(checkpoint), PROMPT, max_tokens=30, receipts=True, **options)
        async for _ in answer:
            pass
        assert answer.receipts is not None
        (root / f"{name}.json").write_bytes(answer.receipts.kept.encoded())

    trio.run(ask, "greedy", "int8")
    trio.run(lambda: ask("seeded", "int4", temperature=0.8, seed=3))
    trio.run(ask, "bf16", "bf16")
    return root


@pytest.fixture
def home(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has the model, and its weights to itself."""
    home = tmp_path / "home"
    shutil.copytree(made / "home", home)
    monkeypatch.setenv("SHOAL_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture
def changed(made: Path, tmp_path: Path) -> Callable[..., str]:
    """The path of an answer in which something is otherwise."""

    def change(name: str = "greedy", **changes: Any) -> str:
        answer = read_kept_answer((made / f"{name}.json").read_bytes(), name)
        file = tmp_path / "changed.json"
        file.write_bytes(msgspec.structs.replace(answer, **changes).encoded())
        return str(file)

    return change


def kept(made: Path, name: str = "greedy") -> KeptAnswer:
    return read_kept_answer((made / f"{name}.json").read_bytes(), name)


@needs_c
@pytest.mark.parametrize("name", ["greedy", "seeded"])
def test_an_answer_is_computed_again_to_the_bit_and_chosen_again(shoal: Shoal, made: Path, name: str) -> None:
    ran = shoal("verify", str(made / f"{name}.json"), "--json")
    assert (ran.code, ran.data["valid"]) == (0, True), ran.data
    answer = kept(made, name)
    assert ran.data["replayed"]["tokens"] == answer.tokens
    assert ran.data["replayed"]["chosen"] == len(answer.token_ids) - answer.prompt_tokens


@needs_c
def test_a_person_is_told_in_sentences(shoal: Shoal, made: Path) -> None:
    ran = shoal("verify", str(made / "greedy.json"))
    assert "signed by 2 hops and whole" in ran.out
    assert "the answer is valid" in ran.out


@needs_c
@pytest.mark.parametrize("place", [3, 40])
def test_a_changed_token_is_named(shoal: Shoal, made: Path, changed: Callable[..., str], place: int) -> None:
    token_ids = list(kept(made).token_ids)
    token_ids[place] ^= 1
    ran = shoal("verify", changed(token_ids=tuple(token_ids)), "--json")
    assert (ran.code, ran.data["replayed"]["token"]) == (1, place)
    assert f"token {place} ({token_ids[place]}) is not the one that was sent" in ran.data["said"][-1]


@needs_c
def test_a_changed_last_token_which_no_hop_has_seen_is_not_what_the_logits_give(
    shoal: Shoal, made: Path, changed: Callable[..., str]
) -> None:
    token_ids = [*kept(made).token_ids[:-1], kept(made).token_ids[-1] ^ 1]
    ran = shoal("verify", changed(token_ids=tuple(token_ids)), "--json")
    assert (ran.code, ran.data["replayed"]["token"]) == (1, len(token_ids) - 1)
    assert "the model's logits give" in ran.data["said"][-1]


def test_a_changed_receipt_is_named_without_any_weights(
    shoal: Shoal, made: Path, changed: Callable[..., str], home: Path
) -> None:
    shutil.rmtree(home)
    hops = list(kept(made).hops)
    receipts = list(hops[1].receipts)
    receipts[1] = msgspec.structs.replace(receipts[1], went=bytes(32))
    hops[1] = msgspec.structs.replace(hops[1], receipts=tuple(receipts))
    ran = shoal("verify", changed(hops=tuple(hops)), "--json")
    assert (ran.code, ran.data["valid"]) == (1, False)
    (fault,) = ran.data["faults"]
    assert (fault["kind"], fault["hops"], fault["window"]) == ("signature", [1], 1)


def test_where_the_model_is_not_the_signatures_alone_are_checked(
    shoal: Shoal, made: Path, home: Path
) -> None:
    shutil.rmtree(home)
    ran = shoal("verify", str(made / "greedy.json"), "--json")
    assert (ran.code, ran.data["valid"], ran.data["replayed"]) == (0, True, None)
    assert "not on this machine" in ran.data["said"][-1]


@needs_c
def test_a_changed_weight_is_named_and_nobody_is_accused(
    shoal: Shoal, made: Path, home: Path, tmp_path: Path
) -> None:
    folder = made / "fish"
    file = next(folder.glob("*.safetensors"))
    before = file.read_bytes()
    try:
        at = len(before) - 3
        file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        ran = shoal("verify", str(made / "greedy.json"), "--json")
    finally:
        file.write_bytes(before)
    assert (ran.code, len(ran.data["weights"]), ran.data["replayed"]) == (1, 1, None)
    assert ran.data["weights"][0] in ran.data["said"][-1]


@needs_c
def test_a_hop_that_computes_with_other_weights_is_named(shoal: Shoal, made: Path, tmp_path: Path) -> None:
    """An answer by a model of other weights whose nodes say that they serve this one."""
    other = write_checkpoint(tmp_path / "other" / "fish", "llama", seed=4)

    async def ask() -> KeptAnswer:
        async with memory_swarm(tmp_path / "elsewhere", made / "fish", SPANS[:1], format="int8") as swarm:
            lying = dataclasses.replace(swarm.model, path=other)
            await swarm.add_node(SPANS[1], lying, format="int8")
            answer = swarm.client.generate(str(made / "fish"), PROMPT, max_tokens=8, receipts=True)
            async for _ in answer:
                pass
            assert answer.receipts is not None
            assert answer.receipts.faults == ()
            return answer.receipts.kept

    file = tmp_path / "lie.json"
    file.write_bytes(trio.run(ask).encoded())
    ran = shoal("verify", str(file), "--json")
    # The last hop sends on what the client wants: of the prompt its last row alone, which is in window 1.
    assert (ran.code, ran.data["replayed"]["hop"], ran.data["replayed"]["window"]) == (1, 1, 1)
    assert "has signed other rows than its blocks of this model give" in ran.data["said"][-1]


@needs_c
def test_bits_that_depend_on_the_company_are_not_computed_again(shoal: Shoal, made: Path) -> None:
    ran = shoal("verify", str(made / "bf16.json"), "--json")
    assert (ran.code, ran.data["valid"], ran.data["replayed"]) == (0, True, None)
    assert "n1/bf16/auto/batch" in ran.data["said"][-1]


def test_two_receipts_that_contradict_each_other_are_proof_for_anybody(shoal: Shoal, tmp_path: Path) -> None:
    honest, lie = tmp_path / "honest.json", tmp_path / "lie.json"
    honest.write_bytes(HONEST.encoded())
    lie.write_bytes(contradicted().encoded())
    ran = shoal("verify", "--evidence", str(honest), str(lie), "--json")
    assert (ran.code, ran.data["peer"], ran.data["window"]) == (1, HONEST.hops[1].peer, 1)
    assert "proof that it lied" in ran.data["said"][0]


def test_two_answers_that_prove_nothing_say_so(shoal: Shoal, made: Path) -> None:
    ran = shoal("verify", "--evidence", str(made / "greedy.json"), str(made / "bf16.json"), "--json")
    assert (ran.code, ran.data["peer"]) == (0, None)


def test_a_file_that_is_no_answer_is_an_error_with_the_next_command(shoal: Shoal, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"id": 1}))
    ran = shoal("verify", str(tmp_path / "a.json"))
    assert ran.code == 2
    assert "no answer with receipts" in ran.err and "shoal run --receipts" in ran.err
    assert shoal("verify", str(tmp_path / "none.json")).code == 2
    assert shoal("verify", "--evidence", str(tmp_path / "a.json")).code == 2
