"""Requests made at random of our own OpenAPI document: whatever comes, no answer is a 5xx."""

from __future__ import annotations

from contextlib import suppress

import hypothesis
import pytest
import schemathesis
import trio

from shoal.gateway.api.openapi import BODIES, PLAIN
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.encoders import write_pooling

from .conftest import served

TOKENS = 4
NOT_TOGETHER = (
    "tools",
    "tool_choice",
    "response_format",
    "format",
    "top_logprobs",
    "logprobs",
    "thinking",
    "think",
)
SETTINGS = hypothesis.settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
)


def answerable(document, model):
    """Let requests that the document allows be answered: by a model that there is, and soon."""
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in fields:
            fields["model"] = {"const": model}
            fields.pop("name", None)  # or a pull might look for it elsewhere
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"):
            if name in fields:
                fields[name] = {"type": "integer", "minimum": 1, "maximum": TOKENS}
        if "n" in fields:
            fields["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        # What JSON schema does not say of these: which of them go together.
        for name in (*NOT_TOGETHER, "previous_response_id"):
            fields.pop(name, None)
    said = {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}}
    message = {"type": "object", "properties": said, "required": list(said), "additionalProperties": False}
    document["components"]["schemas"]["RequestMessage"] = message
    turn = {"role": {"const": "user"}, "content": {"type": "string", "minLength": 1}}
    for name in ("BlockMessage", "OllamaMessage"):
        document["components"]["schemas"][name] = message | {"properties": turn}


@pytest.fixture
async def gateway(tmp_path):
    """Before a model that generates text and gives embeddings."""
    folder = write_checkpoint(tmp_path / "tiny", max_position_embeddings=2048)
    write_pooling(folder, "lasttoken")
    async with served(tmp_path / "home", folder) as found:
        yield found


async def test_no_request_that_the_document_describes_or_forbids_is_a_5xx(gateway, monkeypatch):
    document = (await gateway.http.get("/openapi.json")).json()
    answerable(document, gateway.model)
    monkeypatch.setattr("shoal.gateway.api.request.DEFAULT_TOKENS", TOKENS)
    seen = []

    def ask_all():
        schema = schemathesis.openapi.from_dict(document)
        for operation in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:

                @SETTINGS
                @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
                def ask(case):
                    answer = case.call(base_url=gateway.url, timeout=30)
                    seen.append((case.path, answer.status_code))
                    assert answer.status_code < 500, (case.path, case.body, answer.text)

                with suppress(hypothesis.errors.Unsatisfiable):  # nothing there can be wrong
                    ask()

    await trio.to_thread.run_sync(ask_all)
    assert {400, 404} & {status for _, status in seen}
    assert {path for path, status in seen if status == 200} >= {*BODIES, *PLAIN}
    assert (await gateway.chat()).status_code == 200
