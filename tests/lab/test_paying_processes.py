"""Answers that are paid over a chain, through real processes of which some are killed: all adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.testing.checkpoints import write_checkpoint
from tests.ledger.engines import anvil_program

pytestmark = [pytest.mark.swarm, pytest.mark.alone]


def test_whoever_is_killed_while_answers_are_paid_for_nobody_loses_more_than_a_window(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "m", eos_token_id=None, max_position_embeddings=1100)
    command = [sys.executable, "-m", "shoal.testing.lab", "pay", "--json", "--anvil", str(anvil_program())]
    ran = subprocess.run(
        [*command, "--model", str(checkpoint), "--runs", "2", "--answers", "2", "--tokens", "8"],
        env=os.environ | {"SHOAL_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.stdout.count("\n") == 1, (ran.stdout, ran.stderr)
    said = json.loads(ran.stdout)
    assert (ran.returncode, said["ok"], said["errors"]) == (0, True, []), said
    assert (said["nodes"], said["answers"], said["runs"]) == (3, 2, 2)
    assert said["ratio"] > 0 and int(said["paid_wei"]) > 0
    assert max(said["hop_loss_windows_max"], said["client_loss_windows_max"]) <= 1
