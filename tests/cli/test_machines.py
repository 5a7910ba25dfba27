"""`shoal peers --attested`: what each peer shows to run on, verified; also where there is no list yet."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
import trio
from rich.console import Console

from shoal.cli.enter import Onlooker
from shoal.cli.status import machines
from shoal.cli.status.machines import ask_machines
from shoal.cli.status.observe import look
from shoal.cli.status.overview import peers_table
from shoal.cli.status.route import _explained
from shoal.errors import NoCoverage, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.testing.tee.snp import MEASUREMENT, FakeChip
from shoal.testing.tee.source import attesting_on
from shoal.trust.attestation.verify import Roots
from shoal.types import Span
from tests.cli.conftest import Shoal

LIST = """
[[snp]]
name = "our image"
measurement = "{measurement}"
least = {{ boot_loader = 4, tee = 0, snp = 22, microcode = 213 }}
"""


async def test_peers_show_what_they_run_on_with_a_list_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "tiny", "llama")
    chip = FakeChip(datetime.fromtimestamp(time.time(), UTC) - timedelta(days=1))
    roots = Roots(amd=chip.roots)
    async with memory_swarm(tmp_path / "home", checkpoint, []) as swarm:
        for attesting in (attesting_on(chip), attesting_on(chip, lambda _: b"nonsense"), None):
            await swarm.add_node(Span(0, 6), attesting=attesting)
        client = swarm.client
        client.member.clock.wall = time.time
        with trio.fail_after(25):
            while len(client.announcements()) < 3:
                await client.member.wait_changed()
        seeing = Onlooker(client.settings, client.network, client.member)
        one, other, none = (network.peer for network in swarm.networks)

        found = await ask_machines(seeing, client.announcements(), roots)
        assert set(found) == {one, other}
        assert found[one].told.startswith("refused: its software is not on the list: snp")
        assert found[one].measurements["measurement"] == MEASUREMENT.hex()  # so that it can be put there
        assert found[other].told == "refused: its report has 8 bytes, not 1184"
        # Who shows nothing is not among the first so many that are asked.
        silent_first = sorted(client.announcements(), key=lambda a: a.peer != none)
        monkeypatch.setattr(machines, "MOST", 2)
        assert set(await ask_machines(seeing, silent_first, roots)) == {one, other}

        written = client.settings.measurements_file
        written.write_text(LIST.format(measurement=MEASUREMENT.hex()))
        found = await ask_machines(seeing, client.announcements(), roots)
        assert found[one].told == "snp: our image (boot_loader 4, tee 0, snp 22, microcode 213)"

        strict = Onlooker(replace(client.settings, attested_only=True), client.network, client.member)
        shape = client.models()[0]
        with pytest.raises(NoCoverage, match="nobody who serves"):  # by AMD's own roots
            await _explained(strict, shape.name, 16)
        view = await look(seeing, attested=True)
        shown = {peer.peer: peer for peer in view.peers}
        assert shown[one].attested == "refused: its certificates do not end in a root of AMD"
        assert (shown[none].attests, shown[none].attested) == ("", "")
        out = StringIO()
        Console(file=out, width=300).print(peers_table(view.peers))
        assert "shows nothing" in out.getvalue()

        written.write_text("nonsense")
        with pytest.raises(UsageError, match="no list of measurements"):
            await ask_machines(seeing, client.announcements(), roots)


def test_a_node_can_be_told_to_show_what_it_runs_on(shoal: Shoal) -> None:
    assert "--attest" in shoal("serve", "--help").out
    said = shoal("serve", "a.onnx", "--attest")
    assert said.code == 2
    assert "graphs do not show" in said.err


def test_a_key_may_be_for_attested_peers_alone(shoal: Shoal) -> None:
    shoal("key", "create", "laptop", "--attested-only")
    (entry,) = shoal("key", "list", "--json").data["keys"]
    assert entry["attested_only"] is True


@pytest.mark.parametrize("command", ["run", "chat", "embed", "gateway", "route"])
def test_the_option_is_there(shoal: Shoal, command: str) -> None:
    said = shoal(command, "--help")
    assert "--attested-only" in said.out
    assert "--measurements" in said.out
