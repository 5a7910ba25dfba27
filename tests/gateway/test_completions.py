"""`POST /v1/completions`, as evaluations use it: scores of the prompt, batches, token ids."""

from __future__ import annotations

import pytest
import torch

from tests.one_process import OneProcess

from .conftest import user
from .test_chat import events

PROMPT = [5, 9, 60, 61, 62, 70]


@pytest.fixture(scope="module")
def logprobs(tmp_path_factory, checkpoint):
    """Log probabilities after each token of PROMPT, from the whole model."""
    (logits,) = OneProcess(tmp_path_factory.mktemp("whole"), checkpoint).logits([PROMPT])
    return torch.log_softmax(torch.from_numpy(logits), -1)


async def test_a_prompt_of_token_ids_is_scored_as_the_whole_model_scores_it(shared, logprobs):
    answered = await shared.post("/v1/completions", prompt=PROMPT, max_tokens=1, logprobs=1, echo=True)
    scores = answered.json()["choices"][0]["logprobs"]
    expected = [float(logprobs[i, token]) for i, token in enumerate(PROMPT[1:])]
    assert scores["token_logprobs"][0] is None
    assert scores["token_logprobs"][1:6] == pytest.approx(expected, abs=1e-5)
    assert [max(top.values()) for top in scores["top_logprobs"][1:6]] == pytest.approx(
        [float(row.max()) for row in logprobs[:5]], abs=1e-5
    )
    assert len(scores["tokens"]) == len(PROMPT) + 1
    assert scores["text_offset"][0] == 0


async def test_a_prompt_may_be_scored_alone(shared):
    answered = await shared.post("/v1/completions", prompt=PROMPT, max_tokens=0, logprobs=0, echo=True)
    choice = answered.json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT)
    assert choice["finish_reason"] == "length"
    assert answered.json()["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("prompt", [["one", "two"], [[5, 6, 7], [8, 9]]])
async def test_a_batch_is_answered_in_its_order(shared, prompt):
    whole = (await shared.post("/v1/completions", prompt=prompt, n=2)).json()
    alone = [(await shared.post("/v1/completions", prompt=one)).json() for one in prompt]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in whole["choices"]] == [a["choices"][0]["text"] for a in alone for _ in range(2)]


@pytest.mark.parametrize("fields", [{"n": 3}, {"echo": True, "logprobs": 0}, {"echo": True, "n": 2}])
async def test_what_an_answer_computed_itself_is_no_find_in_a_cache(gateway, fields):
    usage = (await gateway.post("/v1/completions", prompt=[PROMPT, PROMPT], **fields)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    told = (await gateway.http.get("/metrics")).text.splitlines()
    counts = [line.split()[-1] for line in told if "prefix_cache_hits_total{" in line]
    assert counts == ["0.0"]


async def test_several_choices_find_the_last_turn_once(gateway):
    messages = [user("a conversation that is long enough to be worth keeping")]
    for n in (1, 3):
        usage = (await gateway.chat(messages=messages, n=n)).json()["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


async def test_a_stream_says_the_same(shared):
    asked = {"prompt": "the sea", "logprobs": 2, "echo": True}
    whole = (await shared.post("/v1/completions", **asked)).json()["choices"][0]
    chunks, done = events((await shared.post("/v1/completions", **asked, stream=True)).text)
    assert done
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert whole["text"].startswith("the sea")
    for name in ("tokens", "token_logprobs", "text_offset"):
        streamed = [x for c in chunks for x in (c["choices"][0]["logprobs"] or {name: []})[name]]
        assert streamed == whole["logprobs"][name]


async def test_a_conversation_is_tokenized_as_it_is_answered(shared):
    """With the calls, their results and the roles' other names: what a client budgets is what it sends."""
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        {"role": "developer", "content": "Be short."},
        user("Rome?"),
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "content": "sun", "tool_call_id": "c1", "name": "get_weather"},
    ]
    count = (await shared.post("/tokenize", messages=messages)).json()["count"]
    answered = (await shared.chat(messages=messages)).json()
    assert count == answered["usage"]["prompt_tokens"]


async def test_tokens_and_text_are_turned_into_each_other(shared):
    tokens = (await shared.post("/tokenize", prompt="hello world")).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert tokens["max_model_len"] == 2048
    assert (await shared.post("/detokenize", tokens=tokens["tokens"])).json() == {"prompt": "hello world"}
    chat = await shared.post("/tokenize", messages=[{"role": "user", "content": "hello"}])
    assert chat.json()["count"] > 5
