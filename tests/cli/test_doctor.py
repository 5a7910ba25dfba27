"""`shoal doctor`: each thing that can be wrong, with its fix."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.cli.doctor import checks, machine, network
from shoal.cli.status.trace import Traced, Traces
from shoal.config import Settings, load
from shoal.executor.device.device import Device, DeviceMemory
from shoal.executor.device.find import choose_device
from shoal.executor.device.signs import TorchBuild, why_none
from shoal.net.network import ReachView
from shoal.swarm.membership import create, save
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import NatKind
from tests.cli.conftest import Shoal


@pytest.fixture
def settings(home: Path) -> Settings:
    return load()


def test_a_new_machine_is_healthy(shoal: Shoal) -> None:
    ran = shoal("doctor", "--json")
    assert ran.code == 0
    assert ran.data["healthy"] is True
    assert [check["name"] for check in ran.data["checks"]] == list(checks.CHECKS)


def test_it_prints_a_line_for_each_check(shoal: Shoal) -> None:
    lines = shoal("doctor").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(checks.CHECKS)


def test_a_failing_check_names_its_fix_and_ends_with_1(shoal: Shoal, home: Path) -> None:
    home.mkdir()
    (home / "identity.key").write_bytes(b"x")
    (home / "identity.key").chmod(0o644)
    ran = shoal("doctor")
    assert ran.code == 1
    assert f"chmod 600 {home / 'identity.key'}" in ran.out


def test_a_broken_config_file_is_a_finding_and_the_rest_is_looked_at(shoal: Shoal, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("port = 'x'")
    ran = shoal("doctor", "--json")
    assert ran.code == 1
    findings = {check["name"]: check for check in ran.data["checks"]}
    assert findings["config"]["verdict"] == "fail"
    assert set(findings) == set(checks.CHECKS)


def test_a_port_that_is_taken(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = network.ports(replace(settings, host="127.0.0.1", port=port))
    assert (found.verdict, str(port) in found.detail) == ("fail", True)
    assert network.ports(replace(settings, host="127.0.0.1", port=port)).verdict == "ok"


def test_too_little_memory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.device(replace(settings, memory=1 << 60, device="cpu")).verdict == "fail"
    monkeypatch.setattr(machine, "LEAST_MEMORY", 1 << 60)
    assert machine.memory(settings).verdict == "fail"


def test_a_draft_model_and_the_memory_that_it_takes(settings: Settings, tmp_path: Path) -> None:
    assert machine.draft(settings).detail.startswith("none is set")
    missing = machine.draft(replace(settings, draft="SmolLM2-135M-Instruct"))
    assert (missing.verdict, missing.fix) == ("note", "shoal models pull SmolLM2-135M-Instruct")
    here = replace(settings, draft=str(write_checkpoint(tmp_path / "small", "llama")), device="cpu")
    assert "while it is used" in machine.draft(here).detail
    assert machine.draft(replace(here, memory=1000)).verdict == "fail"


def test_which_device_and_why(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Device("cuda:0", "A Card", lambda: DeviceMemory(24 << 30, 20 << 30))
    monkeypatch.setattr(machine, "find_device", lambda asked: choose_device(asked, [card]))
    found = machine.device(settings)
    assert (found.verdict, found.detail.startswith("cuda:0 (A Card), 20.0 GiB of 24.0 GiB free")) == (
        "ok",
        True,
    )
    missing = checks.run("device", replace(settings, device="cuda:1"))
    assert (missing.verdict, "no device cuda:1" in missing.detail) == ("fail", True)


def test_an_accelerator_that_this_torch_cannot_use(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = why_none(["AMD"], TorchBuild("2.13.0+cpu", frozenset()))
    monkeypatch.setattr(machine, "makers_here", lambda: ["AMD"])
    monkeypatch.setattr(machine, "find_device", lambda asked: choose_device(asked, [], why))
    found = machine.device(settings)
    assert found.verdict == "note"
    assert "torch 2.13.0+cpu is not built for the accelerator that is here (AMD)" in found.detail


def test_too_little_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_DISK", 1 << 60)
    assert machine.disk(settings).verdict == "fail"


@pytest.mark.parametrize(
    ("asked", "built", "verdict", "said"),
    [
        ("auto", True, "ok", "int8"),
        ("auto", False, "note", "the C kernels are not built"),
        ("int4", False, "ok", "int4, as set"),
    ],
)
def test_which_format_a_node_here_would_take(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, asked: Any, built: bool, verdict: str, said: str
) -> None:
    monkeypatch.setattr(machine, "kernels_built", lambda: built)
    found = machine.format(replace(settings, format=asked))
    assert found.verdict == verdict
    assert said in found.detail


def test_a_clock_that_was_never_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert machine.clock(settings).verdict == "fail"


def test_a_clock_that_the_swarm_finds_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that runs here has asked others."""
    said = "this machine's clock is 24 hours ahead of that of most peers; set it"
    monkeypatch.setattr(
        machine, "traces", lambda _: [Traces("a", Traced()), Traces("b", Traced(), clock=said)]
    )
    found = machine.clock(settings)
    assert (found.verdict, found.detail) == ("note", said)


def test_a_package_that_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", ("shoal-does-not-exist",))
    assert (machine.packages(settings).verdict, machine.packages(settings).fix) == ("fail", "make setup")


def test_no_hub_is_no_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in network.hub(settings).detail
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert network.hub(settings).verdict == "note"
    for port in ("abc", "99999"):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert network.hub(settings).fix == "unset HF_ENDPOINT"


def test_no_multicast_is_no_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    assert "shoal invite" in network.multicast(settings).fix


def test_an_address_that_cannot_be_is_one_that_is_silent(settings: Settings) -> None:
    peer = "12D3KooWGbkv2Ev5EZaQuGWbvHpJnGMNPpgKPMKU1Y6DXA1rWvY5"
    save(settings.paths.swarms, create("home", [f"/ip4/127.0.0.1/tcp/{10**30}/p2p/{peer}"]))
    assert "no answer" in network.swarms(settings).detail


def test_a_swarm_whose_addresses_are_silent(settings: Settings) -> None:
    peer = "12D3KooWGbkv2Ev5EZaQuGWbvHpJnGMNPpgKPMKU1Y6DXA1rWvY5"
    with socket.socket() as open_port:
        open_port.bind(("127.0.0.1", 0))
        open_port.listen()
        address = f"/ip4/127.0.0.1/tcp/{open_port.getsockname()[1]}/p2p/{peer}"
        save(settings.paths.swarms, create("home", [address]))
        assert network.swarms(settings).verdict == "ok"
    assert "no answer" in network.swarms(settings).detail


def test_iroh_is_off_or_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.iroh(load()).detail == "off"
    wanted = load({"iroh": True, "iroh_relay": ["https://relay.example.org"]})
    assert "https://relay.example.org" in network.iroh(wanted).detail
    monkeypatch.delitem(sys.modules, "shoal.net.iroh.library", raising=False)
    monkeypatch.setitem(sys.modules, "iroh", None)
    found = checks.run("iroh", wanted)
    assert (found.verdict, found.fix) == ("fail", "pip install 'shoal[iroh]'")


@pytest.mark.parametrize(
    ("nat", "verdict", "words"),
    [
        ("none", "ok", "public address"),
        ("cone", "ok", "cone"),
        ("symmetric", "note", "need a relay"),
        ("unknown", "note", "fewer than two public peers"),
    ],
)
def test_what_kind_of_router_is_between_and_what_helps(nat: NatKind, verdict: str, words: str) -> None:
    found = network.router_finding(ReachView(nat, False, "/ip4/198.41.0.4/tcp/30001", ()))
    assert (found.name, found.verdict) == ("router", verdict)
    assert words in found.detail
    assert bool(found.fix) == (verdict == "note")


def test_a_public_address_that_peers_do_not_see_is_a_finding() -> None:
    view = ReachView("cone", False, "/ip4/198.41.0.4/tcp/30001", ())
    assert "as public_address says" in network.router_finding(view, ["198.41.0.4:4002"]).detail
    found = network.router_finding(view, ["198.41.0.5"])
    assert (found.verdict, "198.41.0.4" in found.detail, bool(found.fix)) == ("note", True, True)
    symmetric = ReachView("symmetric", False, "", ())
    assert network.router_finding(symmetric, ["198.41.0.5"]).verdict == "ok"


def test_without_peers_nobody_is_asked_about_the_router(settings: Settings) -> None:
    assert network.router(settings).verdict == "ok"
    save(settings.paths.swarms, create("home", []))
    assert "no peer" in network.router(settings).detail


def test_a_damaged_swarm_file_is_a_finding(settings: Settings) -> None:
    settings.paths.swarms.mkdir(parents=True)
    (settings.paths.swarms / "home.json").write_text("{")
    assert "is damaged" in checks.run("swarms", settings).detail


def test_a_damaged_identity_is_a_finding(shoal: Shoal, home: Path) -> None:
    shoal("identity", "create")
    (home / "identity.key").write_bytes(b"x")
    ran = shoal("doctor")
    assert ran.code == 1
    assert "is damaged" in ran.out
