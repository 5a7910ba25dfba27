"""`shoal plan`: what is asked of it, what it answers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from shoal.executor.device import find
from shoal.executor.device.device import Device, DeviceMemory
from shoal.planning import measure as measure_module
from shoal.planning.protection import mean_proof_bytes
from shoal.planning.roofline import Machine
from shoal.testing.checkpoints import FAMILIES, write_checkpoint
from shoal.testing.graphs import write_mlp
from shoal.trust.proofs.draw import MAX_PAST
from shoal.trust.proofs.sumcheck import proof_bytes
from shoal.types import Format
from tests.cli.conftest import Shoal

DESK = "name=desk,memory=16GiB,bandwidth=30GB/s,ops=200G,link=1Gb/s,rtt=20ms"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a config and nothing else."""
    FAMILIES["llama"]().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With how many threads this machine was measured; it has 8 GiB and is a thousandth of DESK."""
    asked: list[int] = []

    def measure(threads: int) -> Machine:
        asked.append(threads)
        return Machine("this machine", 8 << 30, 30e6, {"fp32": 2e8, "bf16": 1e8}, 1e9, 0.0)

    monkeypatch.setattr(measure_module, "measure_machine", measure)
    return asked


def test_what_the_client_keeps_is_told_and_the_other_blocks_keep_their_numbers(
    shoal: Shoal, llama: Path
) -> None:
    asked = ("plan", str(llama), "--machine", DESK, "--machine", DESK, "--format", "fp32")
    plain, kept = (shoal(*asked, *more, "--json").data for more in ((), ("--private-ends", "2:1")))
    assert (kept["blocks"], kept["bytes"]) == (plain["blocks"], plain["bytes"])
    assert kept["own"]["spans"] == ["0:2", "5:6"] and plain["own"]["spans"] == []
    assert kept["own"]["bytes"] > 0 and kept["own"]["step_s"] > 0
    assert kept["stages"][0]["span"].startswith("2:") and kept["stages"][-1]["span"].endswith(":5")
    assert "the client runs blocks 0:2 and 5:6 itself" in shoal(*asked, "--private-ends", "2:1").out


def test_what_a_level_of_protection_costs_is_told_before(shoal: Shoal, llama: Path) -> None:
    asked = ("plan", str(llama), "--machine", DESK, "--context", "128")
    plain = shoal(*asked, "--format", "int8", "--json").data
    assert (plain["protection"]["level"], plain["protection"]["budget"]) == ("fast", 0.0)
    audited = (*asked, "--protect", "audited", "--audit-budget", "0.1")
    cost = shoal(*audited, "--format", "int8", "--json").data["protection"]
    hops = len(plain["stages"])
    assert cost["answers_per_audit"] == pytest.approx(0.5 / (0.1 * hops))
    assert cost["shown_bytes"] == 64 * 64 * 2
    said = shoal(*audited, "--format", "int8").out
    assert "audits take up to 10.0% of the compute" in said and "hops sign each answer" in said
    assert "nothing can be audited: in bf16" in shoal(*audited, "--format", "bf16").out
    consensus = (*asked, "--protect", "consensus", "--format")
    cost = shoal(*consensus, "int8", "--json").data["protection"]
    assert (cost["level"], cost["replicas"], cost["answers_per_audit"]) == ("consensus", 3, 0.0)
    assert cost["sent_bytes"] > 0
    assert "3 replicas compute each answer: 2 times the compute more" in shoal(*consensus, "int8").out
    assert "nothing can be compared" in shoal(*consensus, "bf16").out
    attested = (*asked, "--format", "int8", "--protect", "attested")
    assert shoal(*attested, "--json").data["protection"]["receipt_bytes"] == 0.0
    assert "nothing is computed again" in shoal(*attested).out
    proved = (*asked, "--protect", "proved", "--format")
    cost = shoal(*proved, "int8", "--json").data["protection"]
    # 32 rows, 64 wide, and 512 sums of each; in the mean 32 keys and 32 values of 48 positions before.
    argument = 3 * proof_bytes(64) + proof_bytes(128)
    assert cost["proof_bytes"] == 32 * 4 * (64 + 512) + 48 * 64 * 2 + argument
    assert "of each answer one block is proved" in shoal(*proved, "int8").out
    assert "nothing can be proved: int4 has no sums" in shoal(*proved, "int4").out
    refused = shoal(*asked, "--protect", "sworn")
    assert refused.code == 2 and "auto, fast, audited" in refused.err


def test_no_proof_of_a_long_session_is_larger_than_those_that_are_drawn() -> None:
    config = FAMILIES["llama"]().to_dict()
    a_window = 32 * 64 * 2
    last = a_window * (MAX_PAST // a_window)
    short, long, longer = (mean_proof_bytes(config, tokens, "auto") for tokens in (32, 1 << 20, 1 << 21))
    assert long == longer == short + last / 2
    assert mean_proof_bytes(config, 1 << 10, "int8") < mean_proof_bytes(config, 1 << 10, "auto") < long


def test_what_a_draft_model_takes_of_the_client_is_told_and_not_placed_on(
    shoal: Shoal, llama: Path, tmp_path: Path
) -> None:
    small = str(write_checkpoint(tmp_path / "small", "llama", num_hidden_layers=1))
    asked = ("plan", str(llama), "--machine", DESK, "--format", "fp32", "--json")
    plain, drafted = (shoal(*asked, *more).data for more in ((), ("--draft", small)))
    assert plain["draft_bytes"] == 0 < drafted["draft_bytes"]
    assert plain["machines"][0]["memory"] - drafted["machines"][0]["memory"] == drafted["draft_bytes"]
    tiny = shoal("plan", str(llama), "--machine", DESK.replace("16GiB", "1KB"), "--draft", small)
    assert tiny.code == 6
    assert "choose a smaller draft model" in tiny.err


def test_a_config_and_a_described_machine_are_enough(shoal: Shoal, llama: Path, measured: list[int]) -> None:
    asked = ("--machine", DESK, "--sessions", "4", "--format", "fp32")
    data = shoal("plan", str(llama), *asked, "--json").data
    assert (data["model"], data["format"], data["blocks"]) == ("llama", "fp32", 6)
    assert data["machines"][0] | {"ops": None} == {
        "name": "desk",
        "memory": 16 << 30,
        "bandwidth": 30e9,
        "ops": None,
        "link": 125e6,
        "rtt_s": 0.02,
    }
    assert data["machines"][0]["ops"] == dict.fromkeys(get_args(Format), 200e9)
    assert [stage["span"] for stage in data["stages"]] == ["0:6"]
    assert data["one_session"]["bound"] == "memory"
    assert data["one_session"]["tok_s"] == pytest.approx(30e9 / one_step(data), rel=0.01)
    assert data["all_sessions"]["sessions"] == 4
    assert data["prefill"]["first_token_s"] > 0
    assert data["kv_tokens"] == data["stages"][0]["kv_tokens"]
    assert not measured


def one_step(data: dict[str, Any]) -> float:
    """Bytes that a session reads for a token: weights, head, and KV of the whole context."""
    kv_of_a_token = 2 * 2 * 16 * 4 * data["blocks"]
    return data["bytes"] + (data["context"] + 1) * kv_of_a_token


def test_without_machines_it_is_this_one_with_half_of_its_free_memory(
    shoal: Shoal, llama: Path, measured: list[int]
) -> None:
    data = shoal("plan", str(llama), "--threads", "3", "--json").data
    assert [(m["name"], m["memory"]) for m in data["machines"]] == [("this machine", 4 << 30)]
    assert measured == [3]


def test_this_machine_is_its_accelerator_where_it_has_one(
    shoal: Shoal, llama: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device("cuda:0", "A Card", lambda: DeviceMemory(24 << 30, 20 << 30))
    monkeypatch.setattr(find, "find_device", lambda asked: find.choose_device(asked, [card]))
    known = Machine("A Card", 20 << 30, 1e12, dict.fromkeys(get_args(Format), 1e14), 1e9, 0.0)
    monkeypatch.setattr(measure_module, "measure_accelerator", lambda device: known)
    (machine,) = shoal("plan", str(llama), "--json").data["machines"]
    assert (machine["name"], machine["memory"], machine["bandwidth"]) == ("A Card", 10 << 30, 1e12)
    assert not measured


def test_this_machine_can_be_there_often(shoal: Shoal, llama: Path) -> None:
    data = shoal("plan", str(llama), "--count", "3", "--json").data
    assert [machine["name"] for machine in data["machines"]] == [f"this machine {i}" for i in (1, 2, 3)]


def test_what_is_not_said_of_a_machine_is_this_ones(shoal: Shoal, llama: Path) -> None:
    (machine,) = shoal("plan", str(llama), "--machine", "name=a,int8=1T", "--json").data["machines"]
    assert (machine["memory"], machine["bandwidth"]) == (4 << 30, 30e6)
    assert machine["ops"] == {"fp32": 2e8, "bf16": 1e8, "int8": 1e12}
    assert (machine["link"], machine["rtt_s"]) == (125e6, 1e-3)


def test_machines_stand_in_a_file_too(shoal: Shoal, llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(
        '[[machine]]\nname = "a"\ncount = 2\nmemory = "1GiB"\nbandwidth = "1GB/s"\nops = "1T"\nint4 = "2T"\n'
        '[[machine]]\nmemory = "2GiB"\nbandwidth = "8Gb/s"\nops = "500 GFLOP/s"\nlink = "12.5MB/s"\n'
        'rtt = "1s"\n'
    )
    machines = shoal("plan", str(llama), "--machines", str(file), "--json").data["machines"]
    assert [machine["name"] for machine in machines] == ["a 1", "a 2", "machine 2"]
    assert [machine["bandwidth"] for machine in machines] == [1e9, 1e9, 1e9]
    assert machines[0]["ops"] == dict.fromkeys(get_args(Format), 1e12) | {"int4": 2e12}
    assert (machines[2]["ops"]["int4"], machines[2]["link"], machines[2]["rtt_s"]) == (5e11, 12.5e6, 1.0)


def test_the_format_and_the_kv_can_be_chosen(shoal: Shoal, llama: Path) -> None:
    asked = ("plan", str(llama), "--machine", DESK, "--json")
    sizes = [shoal(*asked, "--format", format).data["bytes"] for format in ("fp32", "bf16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    plain = shoal(*asked, "--format", "bf16").data["kv_tokens"]
    assert shoal(*asked, "--format", "bf16", "--kv", "int8").data["kv_tokens"] > 1.5 * plain


def test_a_reader_gets_a_table_and_sentences(shoal: Shoal, llama: Path) -> None:
    out = shoal("plan", str(llama), "--machine", DESK, "--count", "2").out
    for words in (
        "desk 1",
        "0:6",
        "1 session",
        "8 sessions",
        "bound by memory",
        "prompt of 256",
        "tokens of KV",
    ):
        assert words in out
    assert "1 of 2 machines" in out


def test_what_does_not_fit_ends_with_6_and_says_what_is_lacking(shoal: Shoal, llama: Path) -> None:
    ran = shoal("plan", str(llama), "--machine", DESK.replace("16GiB", "300KB"))
    assert (ran.code, ran.out) == (6, "")
    assert "GiB of memory are lacking" in ran.err
    assert "of 6 find no room" in ran.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("desk", "'desk'"),
        ("name=a,name=b", "'name=b'"),
        ("colour=red", "unknown key 'colour'"),
        ("memory=lots", "'lots' is not a size"),
        ("bandwidth=30", "'30' for bandwidth"),
        ("bandwidth=0GB/s", "'0GB/s' for bandwidth"),
        ("ops=fast", "'fast' for ops"),
        ("rtt=20", "'20' for rtt"),
        ("count=0", "'0' for count"),
        ("name=", "'' for name"),
    ],
)
def test_a_machine_that_makes_no_sense_is_refused(shoal: Shoal, llama: Path, text: str, said: str) -> None:
    ran = shoal("plan", str(llama), "--machine", text)
    assert ran.code == 2
    assert said in ran.err


def test_too_many_machines_are_refused(shoal: Shoal, llama: Path) -> None:
    ran = shoal("plan", str(llama), "--machine", f"{DESK},count=500", "--count", "3")
    assert ran.code == 2
    assert "more than 1000 machines" in ran.err


@pytest.mark.parametrize(
    "text", ["nonsense", "machine = 3", "machine = [3]", "[other]", '[[machine]]\nx = "y"']
)
def test_a_file_that_makes_no_sense_is_refused(shoal: Shoal, llama: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(text)
    ran = shoal("plan", str(llama), "--machines", str(file))
    assert ran.code == 2
    assert "machines.toml" in ran.err
    assert shoal("plan", str(llama), "--machines", str(tmp_path / "none")).code == 2


def test_a_session_longer_than_the_model_was_made_for_is_refused(shoal: Shoal, llama: Path) -> None:
    ran = shoal("plan", str(llama), "--machine", DESK, "--context", "257")
    assert ran.code == 1
    assert "sessions of 256 tokens, not 257" in ran.err


def test_a_model_that_nobody_knows_is_refused(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = shoal("plan", "SmolLM2-135M-Instrukt", "--machine", DESK)
    assert ran.code == 1
    assert "SmolLM2-135M-Instruct" in ran.err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it was imported
    assert "hub cannot be reached" in shoal("plan", "org/none", "--machine", DESK).err


def test_a_quantised_or_nested_config_is_refused(shoal: Shoal, llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    ran = shoal("plan", str(llama), "--machine", DESK)
    assert ran.code == 1
    assert "quantised" in ran.err


GRAPHS_HAVE_NONE = {
    "--context": "512",
    "--format": "int8",
    "--kv": "int8",
    "--private-ends": "1:1",
    "--draft": "small",
    "--protect": "audited",
    "--audit-budget": "0.1",
}


def test_the_segments_of_a_graph_are_placed_over_the_machines(shoal: Shoal, tmp_path: Path) -> None:
    file = write_mlp(tmp_path / "mlp.onnx")
    desk = DESK.replace("16GiB", "40KiB")
    asked = ("plan", str(file), "--machine", desk, "--machine", desk.replace("desk", "old"))
    data = shoal(*asked, "--sessions", "1", "--json").data
    assert (data["kind"], data["segments"], data["bytes"]) == ("graph", 8, 8 * 32 * 32 * 4)
    assert {stage["machine"] for stage in data["stages"]} == {"desk", "old"}
    assert data["request_s"] == pytest.approx(
        sum(stage["computing_s"] + stage["ways_s"] for stage in data["stages"])
    )
    assert "the cut costs more than it saves" in data["warning"]
    shown = shoal("plan", "mlp", "--machine", DESK).out  # as it was imported, by its name
    assert "mlp: 8 segments" in shown and "8 requests" in shown
    for option, value in GRAPHS_HAVE_NONE.items():
        refused = shoal("plan", str(file), "--machine", DESK, option, value)
        assert (refused.code, f"{option} says nothing about the plan of a graph" in refused.err) == (
            2,
            True,
        ), option
    lacking = shoal("plan", str(file), "--machine", desk)
    assert (lacking.code, "find no room" in lacking.err) == (6, True)
