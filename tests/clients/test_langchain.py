"""LangChain's own standard tests of chat models, with its client for OpenAI and nothing of ours between."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import HERE, RUN_WITHIN_S
from .speaker import speaking

pytestmark = pytest.mark.swarm
OPTIONS = ("asyncio_mode=auto", "asyncio_default_test_loop_scope=session")
"""One event loop for all: LangChain shares its HTTP client between models."""


def test_langchains_standard_tests_pass(python: Path, tmp_path: Path) -> None:
    with speaking(tmp_path, "A shoal is many fish that swim together.") as found:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environ = {
            "OPENAI_BASE_URL": f"{found.url}/v1",
            "OPENAI_API_KEY": "none",
            "LANGSMITH_TRACING": "false",
        }
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
        command += ["-c", os.devnull, *(f"-o{option}" for option in OPTIONS)]
        # Elsewhere, so that its pytest meets no conftest of ours.
        tests = shutil.copy(HERE / "langchain_standard.py", tmp_path)
        done = subprocess.run(
            [*command, tests],
            cwd=tmp_path,
            env=kept | environ | {"SHOAL_MODEL": found.model},
            capture_output=True,
            text=True,
            timeout=RUN_WITHIN_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    # Those that are left out need pictures, recordings or documents as input, or recorded answers.
    assert (counts["passed"], counts["xfailed"], counts["skipped"]) == (40, 2, 7)
