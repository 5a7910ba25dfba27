"""The lab as its users run it: real processes, a plan, one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.testing.checkpoints import write_checkpoint

pytestmark = [pytest.mark.swarm, pytest.mark.alone]

PLAN: dict[str, Any] = {"prompts": [[5, 6, 7, 8], list(range(9, 60))], "max_tokens": 40, "stages": 2}
PATIENT: dict[str, Any] = {"gap_s": 30, "gap_s_median": 30}
"""A machine that is busy with other tests is no reason to fail."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama", eos_token_id=None)


def lab(folder: Path, kind: str, plan: dict[str, Any], *argv: str) -> tuple[int, dict[str, Any]]:
    """Run the lab; its exit code, and what it printed."""
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "shoal.testing.lab", kind, "--json", *argv]
    ran = subprocess.run(
        [*command, "--plan", str(folder / "plan.json")],
        env=os.environ | {"SHOAL_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.stdout.count("\n") == 1 and "ok" in json.loads(ran.stdout), (ran.stdout, ran.stderr)
    return ran.returncode, json.loads(ran.stdout)


def test_hops_that_die_stand_still_or_are_slow_change_no_token_and_blocks_that_nobody_serves_are_named(
    tmp_path: Path, checkpoint: Path
) -> None:
    still = [{"do": "freeze", "hop": 0, "token": 3}, {"do": "slow", "hop": 1, "token": 6, "for_s": 1}]
    runs = [
        {"name": "decode", "events": [{"do": "kill", "hop": 0, "token": 5}]},
        {"name": "prefill", "prompt": 1, "events": [{"do": "kill", "hop": 1, "prefill_s": 0}]},
        {"name": "still", "events": still},
        {"expect": "no_coverage", "events": [{"do": "kill", "block": 4, "token": 5}]},
    ]
    plan = PLAN | {"model": str(checkpoint), "replicas": 2, "runs": runs} | PATIENT
    code, said = lab(tmp_path, "kill", plan)
    assert (code, said["ok"], said["errors"]) == (0, True, []), said
    assert (said["runs"], said["same_tokens"], said["nodes"]) == (4, 4, 4)
    decode, prefill, still, gone = said["results"]
    assert decode["reroutes"] >= 1
    assert prefill["tokens"] == decode["tokens"] == 40
    assert still["reroutes"] >= 1
    assert still["gap_s"] >= 1.0
    assert len(still["events"]) == 2
    assert 0 < said["gap_s_median"] <= said["gap_s_max"]
    assert gone["error"] == "no_coverage"


def test_nodes_that_come_and_go_beside_liars_change_no_token(tmp_path: Path, checkpoint: Path) -> None:
    plan = PLAN | {"model": str(checkpoint), "replicas": 2} | PATIENT
    code, said = lab(tmp_path, "churn", plan, "--minutes", "0.2", "--liars", "3")
    assert (code, said["ok"], said["errors"]) == (0, True, []), said
    assert said["same_tokens"] == said["runs"] > 0
    assert said["sessions_at_liars"] > 0
