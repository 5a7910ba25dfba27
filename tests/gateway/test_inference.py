"""The open inference protocol: an unmodified tritonclient, and whatever else callers send."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import tritonclient.http as triton
from anyio.from_thread import start_blocking_portal
from starlette.datastructures import Headers
from tritonclient.utils import InferenceServerException

from shoal.gateway.access.keys import Caller, KeyLimits, create, revoke
from shoal.gateway.access.large_bodies import LargeBodies
from shoal.gateway.app import Options, open_gateway
from shoal.gateway.errors import LimitReached
from shoal.gateway.inference import InferenceRoutes
from shoal.gateway.serve import serve
from shoal.models.graph.graph_store import GraphStore
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import equal_spans, graph_swarm
from shoal.testing.graphs import inputs_of, write_mlp

from .conftest import ELSEWHERE, kept_in

HEADER = "inference-header-content-length"


@asynccontextmanager
async def graph_gateway(home):
    graph = await trio.to_thread.run_sync(
        GraphStore(home / "data/graphs").resolve, str(write_mlp(home / "mlp.onnx"))
    )
    async with graph_swarm(home, graph, equal_spans(8, 3)) as swarm, trio.open_nursery() as nursery:
        options = Options("SmolLM2-135M-Instruct", kept_in(home), "home", lambda: ELSEWHERE, list)
        async with open_gateway(swarm.client, options) as gateway:
            with trio.fail_after(10):
                while len(swarm.client.announcements()) < 3:
                    await swarm.client.member.wait_changed()
            url = await nursery.start(partial(serve, gateway.app, "127.0.0.1", 0))
            yield url, gateway, graph, kept_in(home)
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A gateway before three nodes that serve a graph, in a thread of its own."""
    with pytest.MonkeyPatch.context() as patch, start_blocking_portal("trio") as portal:

        async def nothing(self):
            """No language model is to be had ready."""

        patch.setattr("shoal.gateway.models.Models.load", nothing)
        patch.setattr("shoal.gateway.models.Models.prepare", nothing)
        with portal.wrap_async_context_manager(graph_gateway(tmp_path_factory.mktemp("gateway"))) as found:
            yield found


@pytest.fixture
def client(standing):
    found = triton.InferenceServerClient(standing[0].removeprefix("http://"))
    yield found
    found.close()


def triton_inputs(inputs, *, binary):
    found = []
    for name, array in inputs.items():
        found.append(triton.InferInput(name, array.shape, "FP32"))
        found[-1].set_data_from_numpy(array, binary_data=binary)
    return found


def test_health_and_metadata(client, standing):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    said = client.get_model_metadata("mlp")
    assert said["inputs"] == [
        {"name": "features", "datatype": "FP32", "shape": [-1, 32]},
        {"name": "offset", "datatype": "FP32", "shape": [-1, 32]},
    ]
    assert [output["datatype"] for output in said["outputs"]] == ["FP32", "INT64"]
    assert client.get_model_metadata(standing[2].digest) == said


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("back", [True, False])
def test_tensors_come_back_bit_for_bit(client, standing, binary, back):
    inputs = inputs_of("mlp")
    asked = [triton.InferRequestedOutput(name, binary_data=back) for name in ("best", "scores")]
    answer = client.infer("mlp", triton_inputs(inputs, binary=binary), outputs=asked, request_id="mine")
    assert answer.get_response()["id"] == "mine"
    found = {name: answer.as_numpy(name) for name in ("scores", "best")}
    assert same(found, whole(standing[2], inputs))


def test_all_outputs_come_where_none_is_named(client, standing):
    inputs = inputs_of("mlp", 2)
    answer = client.infer("mlp", triton_inputs(inputs, binary=True), model_version="1")
    assert same({n: answer.as_numpy(n) for n in ("scores", "best")}, whole(standing[2], inputs))


def test_what_is_wrong_is_said_in_the_protocols_words(client):
    inputs = triton_inputs(inputs_of("mlp"), binary=True)
    for call, why in [
        (lambda: client.infer("nothing", inputs), "no graph is known as 'nothing'"),
        (lambda: client.infer("../../etc/passwd.onnx", inputs), "no route|no graph"),
        (lambda: client.infer("/tmp/graph.onnx", inputs), "no route|no graph"),
        (lambda: client.infer("mlp", inputs[:1]), "the input 'offset' is missing"),
        (lambda: client.infer("mlp", inputs, model_version="2"), "has the version 1 alone"),
        (
            lambda: client.infer("mlp", inputs, outputs=[triton.InferRequestedOutput("none")]),
            "no output 'none'",
        ),
    ]:
        with pytest.raises(InferenceServerException, match=why):
            call()
    assert not client.is_model_ready("nothing")


def tensor(**fields):
    return {"name": "features", "datatype": "FP32", "shape": [1, 32], "data": [0.5] * 32} | fields


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "not a request of the protocol"),
        ("[]", "not a request of the protocol"),
        ("[" * 100_000, "not a request of the protocol"),
        ({"inputs": [tensor(datatype="BYTES")]}, "is of type 'BYTES'"),
        ({"inputs": [tensor(data=[1])]}, "has 1 numbers, and its shape takes 32"),
        ({"inputs": [tensor(data=["a"] * 32)]}, "holds other things than FP32"),
        ({"inputs": [tensor(data=None)]}, "holds other things|has 1 numbers"),
        ({"inputs": [tensor(data=[[1], [1, 2]])]}, "holds no array"),
        ({"inputs": [tensor(shape=[-1])]}, "not a request of the protocol"),
        ({"inputs": [tensor(shape=[1 << 31] * 8)]}, "its shape takes"),
        ({"inputs": [tensor(shape=[0] + [1 << 31] * 7, data=[])]}, "has a shape that no array has"),
        (
            {"inputs": [tensor(shape=[0] + [1 << 31] * 7, parameters={"binary_data_size": 0})]},
            "has a shape that no array has",
        ),
        ({"inputs": [tensor(), tensor()]}, "comes twice"),
        ({"inputs": [tensor()], "parameters": {"encrypted": True}}, "do not go by a gateway"),
        ({"inputs": [tensor(datatype="INT8", data=[300] * 32)]}, "numbers that INT8 does not hold"),
        ({"inputs": [tensor(parameters={"binary_data_size": 99})]}, "says binary_data_size 99"),
        ({"inputs": [tensor(parameters={"binary_data_size": "x"})]}, "says binary_data_size x"),
        ({"inputs": []}, "the input 'features' is missing"),
    ],
)
async def test_bodies_that_are_wrong_are_refused(standing, body, why):
    async with httpx.AsyncClient(base_url=standing[0], timeout=30) as http:
        text = body if isinstance(body, str) else json.dumps(body)
        answer = await http.post("/v2/models/mlp/infer", content=text)
        assert answer.status_code == 400, answer.text
        assert any(part in answer.json()["error"] for part in why.split("|")), answer.text


async def test_a_header_that_lies_about_the_json_is_refused(standing):
    async with httpx.AsyncClient(base_url=standing[0], timeout=30) as http:
        for size, why in [
            ("999", "its header says 999"),
            ("x", "no number of bytes"),
            ("2", "not a request of the protocol"),
        ]:
            answer = await http.post("/v2/models/mlp/infer", content=b'{"inputs":[]}', headers={HEADER: size})
            assert (answer.status_code, why in answer.json()["error"]) == (400, True), answer.text
        answer = await http.post("/v2/models/mlp/infer", content=b'{"inputs":[]}..', headers={HEADER: "13"})
        assert "2 bytes follow that no input takes" in answer.json()["error"]


async def test_no_body_is_read_of_a_caller_beyond_its_limits(standing, monkeypatch):
    _, gateway, _, _ = standing
    ada = Caller("key_ada", "ada", KeyLimits(concurrency=1))
    (infer,) = (r for r in InferenceRoutes(gateway.desk, None).routes() if r.path.endswith("{name}/infer"))
    sent, asked = [], []

    async def receive():
        asked.append("body")
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message):
        sent.append(message)

    def scope(size):
        headers = [(b"content-length", size)] if size else []
        return {"type": "http", "method": "POST", "headers": headers, "caller": ada} | {
            "path": "/v2/models/mlp/infer",
            "query_string": b"",
            "path_params": {"name": "mlp"},
        }

    async with gateway.limits.admitted(ada):
        with pytest.raises(LimitReached, match="1 requests at once"):
            await infer.app(scope(b"1"), receive, send)
    assert asked == []


async def test_only_so_many_large_bodies_are_held():
    bodies, small = LargeBodies(10, at_once=2), Headers({"content-length": "9"})
    large = Headers({"content-length": "11"})

    async def six_bytes():
        return {"type": "http.request", "body": b"sixsix", "more_body": True}

    def held(headers=large):
        return bodies.held("ada", headers, six_bytes)

    with held(), held(Headers()) as unsaid, held(small):
        await unsaid()
        with held(Headers()) as other:  # neither is a large one yet
            await other()
            await other()
            with pytest.raises(LimitReached, match="2 bodies"):
                await unsaid()
            with pytest.raises(LimitReached, match="2 bodies"), held():
                pass
    with held(), held():
        pass


async def test_requests_are_counted_and_shown_by_hop(standing):
    async with httpx.AsyncClient(base_url=standing[0], timeout=30) as http:
        body = {"inputs": [tensor(), tensor(name="offset")]}
        assert (await http.post("/v2/models/mlp/infer", json=body)).status_code == 200
        (record, *_) = (await http.get("/api/requests")).json()
        assert (record["model"], record["state"]) == ("mlp", "done")
        assert [(hop["start"], hop["end"]) for hop in record["route"]] == [(0, 3), (3, 5), (5, 8)]
        assert len(record["hops"]) == 3
        assert 'path="/v2/models/NAME/infer"' in (await http.get("/metrics")).text


async def test_without_a_key_nothing_but_health_is_answered_once_there_are_keys(standing):
    url, gateway, _, database = standing
    key, _ = create(database, "somebody", KeyLimits(), admin=False)
    gateway.keys.refresh()
    try:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/v2/health/live")).status_code == 200
            refused = await http.get("/v2/models/mlp")
            assert refused.status_code == 401
            assert "API key" in refused.json()["error"]
            allowed = await http.get("/v2/models/mlp", headers={"authorization": f"Bearer {key}"})
            assert allowed.status_code == 200
    finally:
        revoke(database, "somebody")
        gateway.keys.refresh()
