"""The published checks of others: llm-comply's, of three dialects."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import RUN_WITHIN_S, Served

IMAGES = "Image Input"
"""The model takes none, and says so by a 400, where the check wants an answer."""
COMPACTION = "Compaction Endpoint"
"""Is not there: a 404 passes, with a warning."""
ENDLESS = (
    {"Tool Calling": ["finish_reason: expected 'tool_calls', got 'length'"]},
    {"Tool Calling": ["stop_reason: expected 'tool_use', got 'max_tokens'"]},
)
"""Random weights may write an argument until the answer's longest length, which the answer then says."""
ANTHROPIC = ["--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01"]


@pytest.mark.parametrize(
    ("dialect", "count", "options"),
    [("openai-chat", 9, []), ("open-responses", 13, []), ("anthropic", 9, ANTHROPIC)],
)
def test_a_dialect_passes_llm_complys_checks(
    dialect: str, count: int, options: list[str], served: Served, python: Path, tmp_path: Path
) -> None:
    command = [python.parent / "llm-comply", "--format", dialect, "--json", "--timeout", "120"]
    command += ["-u", f"{served.url}/v1", "-k", "none", "-m", served.model, *options]
    environ = served.environ(tmp_path)
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=RUN_WITHIN_S, check=False
    )
    results = json.loads(done.stdout)["results"]
    assert len(results) == count
    failed = {result["name"]: result.get("errors") for result in results if result["status"] == "failed"}
    assert failed.pop(IMAGES)[0].startswith("HTTP 400")
    assert failed in ({}, *ENDLESS)
    warned = [result["name"] for result in results if "warnings" in result]
    assert set(warned) <= {IMAGES, COMPACTION}
