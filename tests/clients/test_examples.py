"""Every example, as a reader would run it, against three nodes: the clients of others work unchanged."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.packages import node

from .conftest import EXAMPLES, Served

pytestmark = pytest.mark.swarm
GRAPHS = Path(__file__).parents[1] / "graph/test_examples.py"
"""Where the examples of graphs run."""
PAYING = Path(__file__).parents[1] / "gateway/test_payment.py"
"""Where the one that pays runs."""
TUNING = Path(__file__).parents[1] / "processes/test_tuning.py"
"""Where those of tuning do."""


def answered(served: Served, *messages: tuple[str, str]) -> str:
    """What the gateway says to the same question, asked with nothing but the standard library."""
    body = {
        "model": served.model,
        "messages": [{"role": role, "content": content} for role, content in messages],
        "max_tokens": 16,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


SHOAL = ("user", "What is a shoal?")


def test_every_example_is_listed_and_run_here() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text() + GRAPHS.read_text() + PAYING.read_text() + TUNING.read_text()
    for example in EXAMPLES.iterdir():
        if example.is_file() and example.name != "README.md":  # Python leaves a folder of its own there
            assert f"({example.name})" in listed, example.name
            assert f'"{example.name}"' in tests, example.name


def example(served: Served, python: Path, home: Path, name: str) -> str:
    return served.run(home, [str(python), str(EXAMPLES / name)])


def test_openai_answers(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "openai_chat.py")
    assert " tokens, " in out.splitlines()[-1]


def test_openai_answers_several_at_once_and_mixes_none_up(
    served: Served, python: Path, tmp_path: Path
) -> None:
    out = example(served, python, tmp_path, "openai_async.py")
    for question in ("What is a fish?", "What is a shoal?", "What is the sea?"):
        assert f"{question} {answered(served, ('user', question))}\n" in out


def test_openai_streams(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "openai_stream.py")
    whole = answered(served, ("user", "Tell me about the sea."))
    assert out.startswith(whole.rstrip("\ufffd"))
    assert out.splitlines()[-1].endswith(" tokens")


def test_openai_calls_a_tool(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "openai_tools.py")
    assert out.startswith("high_tide(")


def test_openai_answers_by_a_schema(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "openai_structured.py")
    assert out.startswith("mood='")
    assert "again=" in out


def test_openai_responses(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "openai_responses.py")
    whole = answered(served, SHOAL)
    assert out == f"{whole}\n{whole}\n"


def test_openai_embeds_and_the_command_line_gives_the_same(
    served: Served, python: Path, tmp_path: Path
) -> None:
    out = served.run(tmp_path, [python, EXAMPLES / "openai_embeddings.py", served.model])
    *lines, said = out.splitlines()
    assert said.endswith(" tokens, 64 numbers each")
    texts = ["How do fish swim together?", *(line.split(" ", 1)[1] for line in lines)]
    command = [sys.executable, "-m", "shoal.cli", "embed", str(served.checkpoint), *texts]
    vectors = [json.loads(line) for line in served.run(tmp_path, command).splitlines()]
    likeness = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:]]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(likeness, abs=2e-6)
    assert likeness == sorted(likeness, reverse=True)


@pytest.mark.parametrize(
    "name", ["openai_node.mjs", "anthropic_node.mjs", "ollama_node.mjs", "vercel_ai.mjs"]
)
def test_javascript(name: str, served: Served, node_folder: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / name, node_folder / name)
    out = served.run(tmp_path, [node(), node_folder / name])
    whole = answered(served, SHOAL)
    assert out == f"{whole}\n{whole}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(served: Served, tmp_path: Path) -> None:
    out = served.run(tmp_path, ["sh", str(EXAMPLES / "curl.sh")])
    events = [line.removeprefix("data: ") for line in out.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(deltas) == answered(served, SHOAL)


def test_langchain(served: Served, python: Path, tmp_path: Path) -> None:
    out = example(served, python, tmp_path, "langchain_chat.py")
    assert answered(served, ("system", "Be brief."), SHOAL) in out
    assert answered(served, ("user", "What is the sea?")) in out


def test_llamaindex(served: Served, frameworks: Path, tmp_path: Path) -> None:
    out = example(served, frameworks, tmp_path, "llamaindex_chat.py")
    assert answered(served, ("system", "Be brief."), SHOAL) in out
    assert answered(served, ("user", "What is the sea?")) in out


def test_an_agent_calls_a_function_and_ends(served: Served, frameworks: Path, tmp_path: Path) -> None:
    turns, *answer = example(served, frameworks, tmp_path, "agents_sdk.py").splitlines()
    assert turns == "turns: tool_call_item, tool_call_output_item, message_output_item"
    assert any(answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_llm(served: Served, python: Path, tmp_path: Path) -> None:
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    out = served.run(tmp_path, ["sh", str(EXAMPLES / "llm.sh")], PATH=path, LLM_USER_PATH=str(tmp_path))
    assert answered(served, SHOAL) in out


def test_litellm(served: Served, python: Path, tmp_path: Path) -> None:
    assert answered(served, SHOAL) in example(served, python, tmp_path, "litellm_chat.py")


def test_instructor(served: Served, python: Path, tmp_path: Path) -> None:
    assert example(served, python, tmp_path, "instructor_answer.py").startswith("kind='")


@pytest.mark.parametrize("name", ["library.py", "library_asyncio.py", "library_trio.py"])
def test_our_own_library(name: str, served: Served, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    out = served.run(
        tmp_path,
        [sys.executable, str(EXAMPLES / name), str(served.checkpoint)],
        PYTHONPATH=str(source),
    )
    lines = out.splitlines()
    if name == "library.py":
        assert [line.split()[:2] for line in lines[-3:]] == [
            ["blocks", "0:2"],
            ["blocks", "2:4"],
            ["blocks", "4:6"],
        ]
    elif name == "library_trio.py":
        assert "8 tokens, " in lines[-1]
    else:
        assert len(lines) >= 2  # one for each answer
