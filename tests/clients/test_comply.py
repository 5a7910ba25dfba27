"""The published checks of others: llm-comply's, of three dialects."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from shoal.testing.checkpoints import VOCAB, write_checkpoint
from tests.clients.conftest import RUN_WITHIN_S
from tests.gateway.conftest import Served, served

ENDS = [2, *range(285, VOCAB)]
"""Nobody bounds the answers that are checked: with random weights one token of many must end them."""
TRIES = 4
"""How often what failed is asked again: with random weights an answer may have no text at all."""
IMAGES = "Image Input"
"""The model takes none, and says so by a 400, where the check wants an answer."""
COMPACTION = "Compaction Endpoint"
"""Is not there: a 404 passes, with a warning."""
ENDLESS = (
    ["finish_reason: expected 'tool_calls', got 'length'"],
    ["stop_reason: expected 'tool_use', got 'max_tokens'"],
)
"""Random weights may write an argument until the answer's longest length, which the answer then says."""
ANTHROPIC = ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"]


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway in a thread of its own, before three nodes in memory."""
    home = tmp_path_factory.mktemp("comply")
    checkpoint = write_checkpoint(home / "fish", "llama", max_position_embeddings=1024, eos_token_id=ENDS)
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(served(home, checkpoint)) as found,
    ):
        yield found


@pytest.mark.parametrize(
    ("dialect", "count", "options"),
    [("openai-chat", 9, []), ("open-responses", 13, []), ("anthropic", 9, ANTHROPIC)],
)
def test_a_dialect_passes_llm_complys_checks(
    dialect: str, count: int, options: list[str], standing: Served, python: Path
) -> None:
    command = [str(python.parent / "llm-comply"), "--format", dialect, "--json", "--timeout", "120"]
    command += ["-u", f"{standing.url}/v1", "-k", "none", "-m", standing.model, *options]
    results = checked(command)
    assert len(results) == count
    images = results.pop(IMAGES)
    assert images["errors"][0].startswith("HTTP 400")
    for _ in range(TRIES):
        wrong = [result["id"] for result in results.values() if failed(result)]
        if wrong:
            results |= checked([*command, "--filter", ",".join(wrong)])
    assert [result for result in results.values() if failed(result)] == []
    assert {name for name, result in results.items() if "warnings" in result} <= {COMPACTION}


def checked(command: list[str]) -> dict[str, Any]:
    """What each check found, by its name."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=RUN_WITHIN_S, check=False
    )
    return {result["name"]: result for result in json.loads(done.stdout)["results"]}


def failed(result: dict[str, Any]) -> bool:
    return result["status"] == "failed" and result["errors"] not in ENDLESS
