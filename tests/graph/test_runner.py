"""The process that computes segments: it may be slow, take all memory, or die, and the node lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from onnx import TensorProto, helper

from shoal.client.graph.inputs import graph_inputs
from shoal.errors import BadWeights, RemoteProtocolError, StepFailed
from shoal.executor.arrays import Array
from shoal.executor.graph.arrays import pack_arrays, unpack_arrays
from shoal.executor.graph.child import SegmentWorker
from shoal.executor.graph.frames import (
    LONGEST_PAYLOAD,
    LoadSegments,
    RunSegments,
    SegmentsFault,
    read_frame,
    write_frame,
)
from shoal.executor.graph.runner import PROGRAM, GraphRunner
from shoal.executor.graph.segments import KEPT_SPANS, FastSegments, LoadedSegments, load_segments
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.models.graph.items import graph_parts
from shoal.testing.graph_bits import same, whole
from shoal.testing.graphs import GraphWriter, floats, inputs_of
from shoal.types import Span
from shoal.wire.inferring import ArraySpec

from .conftest import Imported


def asked(runner: GraphRunner, graph: LocalGraph, inputs: dict[str, Array]) -> dict[str, Array]:
    """All segments, over the process."""
    manifest = graph.manifest
    given = {value: inputs[manifest.values[value].name] for value in manifest.inputs}
    made = unpack_arrays(*runner.run(runner.span, *pack_arrays(given)))
    return {manifest.values[value].name: made[value] for value in manifest.outputs}


@pytest.fixture(scope="module")
def runner(imported: Imported) -> Iterator[GraphRunner]:
    graph = imported("mlp")
    found = GraphRunner(graph, Span(0, 8), memory=512 << 20, within_s=60)
    yield found
    found.close()


def test_segments_in_a_process_give_the_bits_of_the_whole(runner: GraphRunner, imported: Imported) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    assert same(asked(runner, graph, inputs), whole(graph, inputs))


def test_what_the_graph_cannot_use_fails_alone(runner: GraphRunner, imported: Imported) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    with pytest.raises(StepFailed, match="segments 0:8"):
        asked(runner, graph, inputs | {"offset": np.zeros((5, 32), np.float32)})
    before = runner.pid
    assert same(asked(runner, graph, inputs), whole(graph, inputs))
    assert runner.pid == before


def test_a_process_that_dies_is_started_again(runner: GraphRunner, imported: Imported) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    runner.load()
    before = runner.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert same(asked(runner, graph, inputs), whole(graph, inputs))
    assert runner.pid != before


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> LocalGraph:
    """A graph that makes a matrix of the size that its input names, and multiplies it with itself."""
    folder = tmp_path_factory.mktemp("greedy")
    at = GraphWriter()
    sides = at.add("Concat", "side", "side", axis=0)
    matrix = at.add("Expand", at.constant(np.ones((1, 1), np.float32)), sides)
    at.add("ReduceSum", at.add("MatMul", matrix, matrix), output="total", keepdims=0)
    side = helper.make_tensor_value_info("side", TensorProto.INT64, [1])
    file = at.write(folder / "greedy.onnx", [side], [floats("total")])
    return GraphStore(folder / "store").resolve(str(file))


def test_a_request_may_take_neither_all_memory_nor_all_time(greedy: LocalGraph) -> None:
    span = Span(0, len(greedy.manifest.segments))
    runner = GraphRunner(greedy, span, memory=1 << 30, within_s=1.0)
    try:
        assert asked(runner, greedy, {"side": np.array([8])})["total"] == 8**3
        with pytest.raises(StepFailed, match=r"alloc|memory"):
            asked(runner, greedy, {"side": np.array([1 << 17])})
        with pytest.raises(StepFailed, match="took longer than 1 s"):
            asked(runner, greedy, {"side": np.array([5000])})
        assert asked(runner, greedy, {"side": np.array([8])})["total"] == 8**3
    finally:
        runner.close()
    with pytest.raises(StepFailed, match="has ended"):
        asked(runner, greedy, {"side": np.array([8])})


def test_a_node_that_is_gone_leaves_no_process_that_computes(greedy: LocalGraph) -> None:
    span = Span(0, len(greedy.manifest.segments))
    command = [sys.executable, "-I", "-m", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        write_frame(process.stdin, LoadSegments(str(greedy.folder), span.start, span.end, 2 << 30))
        assert read_frame(process.stdout) is not None
        (side,) = greedy.manifest.takes(span)
        arrays, payload = pack_arrays({side: np.array([5000])})
        write_frame(process.stdin, RunSegments(span.start, span.end, arrays), payload)
        process.stdin.close()
        # Had it computed to the end, it would have answered and ended well.
        assert process.wait(60) == 1
        assert process.stdout.read() == b""


def test_an_answer_that_is_not_sent_is_refused_before_it_is_copied() -> None:
    class Large:
        def run(self, span: Span, taken: object) -> dict[int, Array]:
            return {0: np.broadcast_to(np.float32(0), (LONGEST_PAYLOAD // 4 + 1,))}  # of no memory

    worker = SegmentWorker(cast(LoadedSegments, Large()))
    reply, made = worker.answer(RunSegments(0, 1, ()), bytearray())
    assert isinstance(reply, SegmentsFault)
    assert f"they give {LONGEST_PAYLOAD + 4} bytes" in reply.message
    assert made == b""


def test_weights_that_are_not_what_the_manifest_says_are_not_loaded(
    imported: Imported, tmp_path: Path
) -> None:
    graph = imported("mlp")
    copy = LocalGraph("mlp", tmp_path / "copy", graph.raw)
    copy.folder.mkdir()
    for file in graph.folder.iterdir():
        (copy.folder / file.name).write_bytes(file.read_bytes())
    file = copy.folder / graph_parts(graph.manifest)[-1].file
    weights = bytearray(file.read_bytes())
    weights[-5] ^= 1
    file.write_bytes(weights)
    runner = GraphRunner(copy, Span(0, 8), memory=512 << 20, within_s=10)
    with pytest.raises(BadWeights, match="is not what the manifest says"):
        runner.load()


def test_arrays_are_packed_and_unpacked_bit_for_bit() -> None:
    arrays: dict[int, Array] = {
        3: np.arange(6, dtype=np.float16).reshape(2, 3).T,
        1: np.array(7, np.int64),
        2: np.array([True, False]),
        5: np.zeros((0, 4), np.uint8),
    }
    specs, payload = pack_arrays(arrays)
    found = unpack_arrays(specs, payload)
    assert list(found) == [3, 1, 2, 5]
    assert all(np.array_equal(found[key], array) for key, array in arrays.items())
    with pytest.raises(RemoteProtocolError, match="bytes of tensors"):
        unpack_arrays(specs, payload[:-1])


def test_a_truth_that_is_neither_0_nor_1_becomes_one() -> None:
    (found,) = unpack_arrays([ArraySpec(0, "bool", (3,))], b"\x00\x07\x01").values()
    assert found.tobytes() == b"\x00\x01\x01"


def test_a_fast_span_keeps_few_parts_of_itself_beside_its_own(imported: Imported) -> None:
    graph, inputs = imported("mlp"), inputs_of("mlp")
    fast = load_segments(graph.folder, Span(0, 8), fast=True)
    assert isinstance(fast, FastSegments)
    manifest = graph.manifest
    there = graph_inputs(manifest, inputs)
    for end in range(1, 8):
        made = fast.run(Span(0, end), there)
        rest = fast.run(Span(end, 8), there | made)
        assert rest.keys() == set(manifest.outputs)
        assert len(fast._sessions) == KEPT_SPANS  # pyright: ignore[reportPrivateUsage]
        assert Span(0, 8) in fast._sessions  # pyright: ignore[reportPrivateUsage]


def test_the_process_computes_a_fast_span(imported: Imported) -> None:
    graph, inputs = imported("cnn"), inputs_of("cnn")
    count = len(graph.manifest.segments)
    runner = GraphRunner(graph, Span(0, count), memory=512 << 20, within_s=60, fast=True)
    try:
        given = pack_arrays(graph_inputs(graph.manifest, inputs))
        made = unpack_arrays(*runner.run(Span(0, count), *given))
    finally:
        runner.close()
    (probabilities,) = made.values()
    assert np.allclose(probabilities, whole(graph, inputs)["probabilities"], rtol=1e-4)
