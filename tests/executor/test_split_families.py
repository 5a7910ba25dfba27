"""Every family that has a plan gives over two processes what it gives in one; the others say so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal import process_environ
from shoal.models.seam.split import plan_of
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import FAMILIES

pytestmark = [pytest.mark.models, pytest.mark.swarm]
NEAR = 1e-5
"""Of the largest element: sums of halves."""
UNCUT = ("gemma3n",)
"""They have a plan, and cannot be cut into spans."""
PLANNED = [name for name, make in FAMILIES.items() if name not in UNCUT and plan_of(make())]
"""By the plans of the transformers that is here: each version has some more."""
ALWAYS = {"llama", "qwen3", "gemma3", "mixtral", "deepseek_v3", "qwen3_moe", "olmo2", "phi3", "cohere"}
"""They have a plan in every version that is supported."""
PARTLY = ("deepseek_v3", "jamba", "qwen2_moe", "phimoe")
"""Their plans leave attention whole, or some of their experts."""


@pytest.fixture(scope="module")
def found(
    families: Callable[[str], LocalModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    (folder,) = {families(family).path.parent for family in FAMILIES}
    ranks = tmp_path_factory.mktemp("split") / "ranks"
    program = Path(__file__).with_name("split_family.py")
    both = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(ranks), str(folder), *FAMILIES],
            env=process_environ.child_environ(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    lines = [json.loads(line) for line in said[0].splitlines() if line.startswith("{")]
    return {line["family"]: line for line in lines}


@pytest.mark.parametrize("family", PLANNED)
def test_two_processes_give_what_one_gives(family: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[family]["difference"] < NEAR
    assert found[family]["share"] < (0.9 if family in PARTLY else 0.52)


def test_the_families_that_are_run_most_have_a_plan() -> None:
    assert set(PLANNED) >= ALWAYS


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in PLANNED])
def test_a_family_without_a_plan_is_refused(family: str, found: dict[str, dict[str, Any]]) -> None:
    assert "no plan" in found[family]["refused"] or "cannot be split into spans" in found[family]["refused"]
