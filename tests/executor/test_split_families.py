"""Every family that has a plan gives over two processes what it gives in one; the others say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from shoal import process_environ
from shoal.errors import BadWeights
from shoal.models.seam.split import plan_of
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import FAMILIES, write_checkpoint

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
REFUSED = ("gpt2", *UNCUT)
"""Without a plan, and not to be cut."""


def no_tokenizer(folder: Path) -> NoReturn:
    raise BadWeights(f"{folder} has none")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("split")
    families = [*PLANNED, *REFUSED]
    with pytest.MonkeyPatch.context() as patch:
        # Nobody reads their tokenizers: to describe those too would start two processes for each.
        patch.setattr("shoal.models.store.describe.TextCodec", SimpleNamespace(load=no_tokenizer))
        for family in families:
            write_checkpoint(folder / family, family, shard="300KB")
            ModelStore(folder / "store").resolve(str(folder / family))
    ranks = folder / "ranks"
    program = Path(__file__).with_name("split_family.py")
    both = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(ranks), str(folder), *families],
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


def test_a_family_that_cannot_be_split_is_refused(found: dict[str, dict[str, Any]]) -> None:
    without_plan, uncut = (found[family]["refused"] for family in REFUSED)
    assert "no plan" in without_plan
    assert "cannot be split into spans" in uncut
