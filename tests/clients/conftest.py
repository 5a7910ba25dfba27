"""Three node processes, a gateway before them, and the programs of others in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.swarm import membership
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.encoders import write_pooling
from tests.one_process import OneProcess
from tests.packages import installed, npm_ci
from tests.processes.conftest import Processes, processes

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
BLOCKS = 6
READY_WITHIN_S = 60
RUN_WITHIN_S = 240


@dataclass(frozen=True)
class Served:
    """A gateway before three nodes."""

    swarm: Processes
    checkpoint: Path
    url: str
    pid: int
    """Of the gateway."""

    @property
    def model(self) -> str:
        return self.checkpoint.name

    def one_process(self) -> OneProcess:
        """The same model in this process, by what the nodes run."""
        return OneProcess(self.swarm.home, self.checkpoint)

    def environ(self, home: Path) -> dict[str, str]:
        """What a program of others is run in: it knows the gateway, and has a home of its own."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHOAL_HOME")}
        ours = {"SHOAL_HOME": str(self.swarm.home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
        ours |= {"SHOAL_SWARM": self.swarm.local.membership.name}
        theirs = {"HOME": str(home), "OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": "none"}
        # Nobody is to be told, or asked, anything but the gateway.
        offline = {
            "HF_HUB_OFFLINE": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LANGSMITH_TRACING": "false",
        }
        return kept | ours | theirs | offline

    def run(self, home: Path, command: Sequence[str | Path], **environ: str) -> str:
        """What a program of others wrote, run in the folder ``home``."""
        done = subprocess.run(
            command,
            env=self.environ(home) | environ,
            cwd=home,
            capture_output=True,
            timeout=RUN_WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode(errors="replace")
        return done.stdout.decode()  # as it is: a model may say a carriage return


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """One swarm and one gateway for all the clients."""
    with gateway_before_nodes(tmp_path_factory.mktemp("home")) as found:
        yield found


@contextmanager
def gateway_before_nodes(home: Path) -> Generator[Served]:
    """Three nodes that serve a small model, and a gateway before them, with nothing rounded on the way."""
    checkpoint = write_checkpoint(home / "fish", "llama", max_position_embeddings=4096)
    write_pooling(checkpoint, "lasttoken", normalize=True)  # it gives embeddings, too
    with processes(home, str(checkpoint), BLOCKS) as swarm:
        membership.save(home / "swarms", swarm.local.membership)
        command = [sys.executable, "-m", "shoal.cli", "gateway", "--gateway-port", "0", "--json"]
        command += ["--model", str(checkpoint), "--swarm", swarm.local.membership.name]
        environ = os.environ | {"SHOAL_HOME": str(home), "SHOAL_HOST": "127.0.0.1", "SHOAL_MDNS": "0"}
        environ["SHOAL_WIRE"] = "float32"
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                found = Served(swarm, checkpoint, json.loads(process.stdout.readline())["url"], process.pid)
                wait_ready(found.url)
                yield found
            finally:
                process.terminate()


def wait_ready(url: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, "the gateway did not get ready"
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="session")
def python() -> Path:
    """A Python with the clients of requirements.txt."""
    return python_with("clients-python", "requirements.txt")


@pytest.fixture(scope="session")
def frameworks() -> Path:
    """A Python with the frameworks of requirements-frameworks.txt."""
    return python_with("clients-frameworks", "requirements-frameworks.txt")


def python_with(name: str, requirements: str) -> Path:
    """A Python of its own with what the file names."""

    def install(folder: Path) -> list[str]:
        venv.create(folder / "venv")
        uv = [
            str(Path(sys.executable).parent / "uv"),
            "pip",
            "sync",
            "--python",
            str(folder / "venv/bin/python"),
        ]
        return [*uv, "--quiet", "--require-hashes", requirements]

    return installed(name, HERE, [requirements], install) / "venv/bin/python"


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder with the JavaScript clients of package.json."""
    return installed("clients-node", HERE, ["package.json", "package-lock.json"], npm_ci)
