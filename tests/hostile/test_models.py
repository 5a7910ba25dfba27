"""Models that mean harm (docs/hostile.md 5-7), given to a client whose swarm serves others meanwhile.

What each part refuses, lie by lie, is in ``tests/models``; here is that nobody else notices.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.errors import BadWeights, ShoalError, UnsupportedModel, UsageError
from shoal.models.text.template import TemplateRenderer
from shoal.testing.checkpoints import write_checkpoint
from tests.hostile.conftest import Attack

Spoil = Callable[[Path], None]


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes behind it."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of the model's file, and keep its bytes."""
    path = folder / "model.safetensors"
    header, data = header_of(path)
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def past_the_end(header: dict[str, Any]) -> None:
    first(header)["data_offsets"][1] += 1 << 40


def overlapping(header: dict[str, Any]) -> None:
    a, b = [entry for name, entry in header.items() if name != "__metadata__"][:2]
    b["data_offsets"] = [
        a["data_offsets"][0],
        a["data_offsets"][0] + b["data_offsets"][1] - b["data_offsets"][0],
    ]


def crowded(header: dict[str, Any]) -> None:
    header |= {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}


def with_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def code(folder: Path) -> None:
    """A model that brings a program of its own."""
    with_config(folder, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')\n")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


async def refused(attack: Attack, folder: Path, *kinds: type[ShoalError]) -> None:
    """A client that asks for the model gets the error, soon."""
    with pytest.raises(kinds) as caught, trio.fail_after(20):
        async for _ in attack.swarm.client.generate(str(folder), "x", max_tokens=1):
            pass
    assert caught.value.message


async def test_05_weights_with_lying_headers_are_refused_before_a_tensor_is_read(
    attack: Attack, tmp_path: Path
) -> None:
    for lie in (past_the_end, overlapping, crowded):
        folder = write_checkpoint(tmp_path / lie.__name__, "llama")
        with_header(folder, lie)
        await refused(attack, folder, BadWeights)


async def test_06_code_that_comes_with_a_model_is_never_run(attack: Attack, tmp_path: Path) -> None:
    for spoil in (code, pickled):
        folder = write_checkpoint(tmp_path / spoil.__name__, "llama")
        spoil(folder)
        await refused(attack, folder, UnsupportedModel, BadWeights)
        assert not await trio.Path(folder / "was-run").exists()


TEMPLATES = {
    "never ends": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "fills the memory": "{{ 'x' * 99999 * 99999 }}",
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reads files": "{% include '/etc/passwd' %}",
    "is no template": "{% for %}",
}


async def test_07_chat_templates_that_escape_or_never_end_are_ended(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TemplateRenderer.__init__.__kwdefaults__, "deadline_s", 1.0)
    for number, template in enumerate(TEMPLATES.values()):
        folder = write_checkpoint(tmp_path / str(number), "llama", seed=10 + number)
        (folder / "chat_template.jinja").write_text(template)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        asked = attack.swarm.client.generate(
            str(folder), messages=[{"role": "user", "content": "x"}], max_tokens=1
        )
        with pytest.raises(ShoalError) as caught, trio.fail_after(60):
            async for _ in asked:
                pass
        assert isinstance(caught.value, BadWeights | UsageError), template
    attack.swarm.client._codecs.clear()  # each keeps a process for its model's next conversation
