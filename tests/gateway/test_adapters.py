"""Over HTTP a model with an adapter is a model of its own: MODEL:ADAPTER."""

from __future__ import annotations

import json

import pytest

from shoal.testing.adapters import write_adapter, write_soft_prompt

from .conftest import served

LAYERS = ["q_proj", "v_proj", "up_proj", "down_proj"]


@pytest.fixture
async def gateway(tmp_path, checkpoint):
    adapters = [
        str(write_adapter(tmp_path / name, checkpoint, LAYERS, seed=seed))
        for seed, name in enumerate(("pirate", "poet", "polite"))
    ]
    soft = write_soft_prompt(tmp_path / "soft", checkpoint, rows=4)
    other = write_soft_prompt(tmp_path / "other", checkpoint, rows=4)
    (other / "shoal.json").write_text(json.dumps({"base": f"sha256:{'a' * 64}"}))
    settings = {"adapter": adapters, "soft_prompt": [f"polite={soft}", f"pirate={other}"]}
    async with served(tmp_path / "home", checkpoint, nodes=settings) as found:
        yield found


async def test_a_models_adapters_and_soft_prompts_are_listed_and_answer_each_in_its_own_words(gateway):
    """Once each: a soft prompt comes before an adapter of its name, and one of another model hides none."""
    plain = gateway.model
    names = [plain, f"{plain}:pirate", f"{plain}:poet", f"{plain}:polite"]
    listed = (await gateway.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == names
    said = {}
    for name in (*names, *names):  # the second time over sessions that were kept, if one were another's
        answer = (await gateway.chat(model=name, max_tokens=16)).json()
        assert answer["model"] == name
        text = answer["choices"][0]["message"]["content"]
        assert said.setdefault(name, text) == text
    assert len(set(said.values())) == 4
    assert (await gateway.http.get(f"/v1/models/{plain}:poet")).json()["id"] == f"{plain}:poet"


async def test_with_a_soft_prompt_a_prompts_own_tokens_are_scored_and_counted_alone(gateway):
    bodies = [
        {"model": model, "prompt": [3, 4, 5], "max_tokens": 1, "echo": True, "logprobs": 1}
        for model in (gateway.model, f"{gateway.model}:polite")
    ]
    plain, polite = [(await gateway.http.post("/v1/completions", json=body)).json() for body in bodies]
    assert polite["usage"] == plain["usage"]
    scores = [answer["choices"][0]["logprobs"]["token_logprobs"] for answer in (plain, polite)]
    assert [len(found) for found in scores] == [4, 4]
    assert scores[0] != scores[1]
    refused = await gateway.http.post(
        "/v1/embeddings", json={"model": f"{gateway.model}:polite", "input": "a"}
    )
    assert refused.status_code == 400


async def test_an_adapter_that_nobody_serves_is_told_and_no_path_is_looked_at(gateway, tmp_path):
    refused = await gateway.chat(model=f"{gateway.model}:nobody")
    assert refused.status_code == 404
    assert "the adapter nobody: there is pirate, poet, polite" in refused.json()["error"]["message"]
    refused = await gateway.chat(model=f"{tmp_path}:pirate")
    assert refused.status_code == 404
    assert "no model" in refused.json()["error"]["message"]
