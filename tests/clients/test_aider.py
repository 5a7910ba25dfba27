"""aider, as ``shoal launch`` sets it up, changes a file by what a model has answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.gateway.page.apps import APPS, GatewayAddress

from .conftest import RUN_WITHIN_S, python_with
from .speaker import speaking

pytestmark = pytest.mark.swarm
EDIT = """The greeting is friendlier now.

hello.py
```python
<<<<<<< SEARCH
    return "hello"
=======
    return "hello, shoal"
>>>>>>> REPLACE
```
"""
FLAGS = ("--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--no-detect-urls")
FLAGS += ("--analytics-disable", "--no-show-release-notes", "--no-suggest-shell-commands", "--map-tokens=0")


@pytest.fixture(scope="session")
def aider() -> Path:
    """aider in an environment of its own."""
    if sys.version_info >= (3, 13):
        pytest.skip("aider 0.86 is for Python 3.12 at the most")
    return python_with("clients-aider", "requirements-aider.txt").parent / "aider"


def test_aider_edits_a_file(aider: Path, tmp_path: Path) -> None:
    (app,) = [app for app in APPS if app.name == "aider"]
    task = tmp_path / "task"
    task.mkdir()
    code = task / "hello.py"
    code.write_text('def greet():\n    return "hello"\n')
    with speaking(tmp_path, EDIT) as found:
        setup = app.setup(GatewayAddress(found.url, found.model))
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        asked = ["--edit-format=diff", "--message=Make the greeting friendlier.", code.name]
        done = subprocess.run(
            [str(aider), *setup.arguments, *FLAGS, *asked],
            cwd=task,
            env=kept | setup.environ | {"HOME": str(task), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True,
            text=True,
            timeout=RUN_WITHIN_S,
            check=False,
        )
    assert code.read_text() == 'def greet():\n    return "hello, shoal"\n', done.stdout + done.stderr
