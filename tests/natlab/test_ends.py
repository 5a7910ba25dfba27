"""Labs beside one another never meet, and none leaves anything behind, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.sites import parse_sites

from .conftest import WAIT_S, comes, udp

CALLS = """
import sys, time
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.sites import parse_sites
try:
    with NatLab(parse_sites("upnp,public")) as lab:
        sleeping = lab.host("a").popen(["sleep", "600"])
        print(sleeping.pid, lab._router.pid, lab._port_mappers[0].pid, flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_two_labs_have_the_same_addresses_and_never_meet(nat_lab: type[NatLab]) -> None:
    sites = parse_sites("public,public")
    with nat_lab(sites) as one, nat_lab(sites) as other:
        assert one.host("b").address == other.host("b").address
        here, there, sender = udp(one.host("b"), 7000), udp(other.host("b"), 7000), udp(one.host("a"))
        with here, there, sender:
            sender.sendto(b"hello", (one.host("b").address, 7000))
            assert comes(here)
            assert not comes(there, WAIT_S)


ENDS = [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)]


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_however_a_lab_ends_nothing_stays(nat_lab: type[NatLab], number: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", CALLS], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        pids = [int(pid) for pid in running.stdout.readline().split()]
        assert len(pids) == 3
        running.send_signal(number)
        assert running.wait(10) == code
    until = time.monotonic() + 5
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_lab_whose_router_was_killed_says_so_and_cleans_up(nat_lab: type[NatLab]) -> None:
    with nat_lab(parse_sites("public,cone")) as lab:
        sleeping = lab.host("b").popen(["sleep", "600"])
        assert lab._router
        lab._router.kill()
        with pytest.raises(Exception, match="router has ended with exit code -9"):
            lab.online("a")
    assert sleeping.returncode == -9


def test_what_a_command_prints_on_a_host_comes_back(nat_lab: type[NatLab]) -> None:
    with nat_lab(parse_sites("cone")) as lab:
        assert "192.168.7.2" in lab.host("a").run(["ip", "-br", "addr"]).stdout
        with pytest.raises(subprocess.CalledProcessError):
            lab.host("a").run(["false"])


def test_programs_that_are_started_after_a_lab_are_in_the_network_of_this_process(
    nat_lab: type[NatLab],
) -> None:
    async def network_of_programs() -> list[str]:
        found: list[str] = []

        async def start() -> None:
            done = await trio.run_process(["readlink", "/proc/self/ns/net"], capture_stdout=True)
            found.append(done.stdout.decode().strip())

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(start)
        return found

    own = str(Path("/proc/self/ns/net").readlink())
    with nat_lab(parse_sites("public")) as lab:
        inside = lab.host("a").namespace.call(partial(trio.run, network_of_programs))
        assert set(inside) - {own}, "those threads that began there; older ones are not"
    assert trio.run(network_of_programs) == [own] * 8
