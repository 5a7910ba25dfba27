"""How ONNX Runtime is set up: the same way wherever a graph runs, as the bits depend on it.

Importing this imports the runtime. Only the processes that import or run graphs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from shoal.types import ARRAY_BYTES, ArrayType

RUNTIME = f"onnxruntime {ort.__version__}"
"""Part of a graph's identity: another version may add up in another order."""
PROVIDERS = ["CPUExecutionProvider"]
_CALLED = {"float32": "float", "float64": "double"}  # others as numpy calls them
ELEMENTS: dict[str, ArrayType] = {f"tensor({_CALLED.get(dtype, dtype)})": dtype for dtype in ARRAY_BYTES}
"""The types that travel, by the runtime's names."""


def optimise(model: bytes, saved: Path, threads: int) -> None:
    """Fold constants and fuse operators, once, and save what comes of it for any CPU."""
    # Layouts of one CPU's vectors are beyond this level.
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, threads)
    options.optimized_model_filepath = str(saved)
    ort.InferenceSession(model, options, providers=PROVIDERS)


def session(model: bytes, threads: int) -> ort.InferenceSession:
    """What runs a graph as it is: optimising a part of it once more would give other bits."""
    options = _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL, threads)
    return ort.InferenceSession(model, options, providers=PROVIDERS)


def fast_session(model: bytes, threads: int) -> ort.InferenceSession:
    """What runs a part of a graph, optimised by itself and for this machine: the bits are no others' then."""
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL, threads)
    return ort.InferenceSession(model, options, providers=PROVIDERS)


def run(session: ort.InferenceSession, outputs: Sequence[str], inputs: dict[str, Any]) -> list[Any]:
    """The outputs by their names."""
    return list(session.run(list(outputs), inputs))


def outputs_of(session: ort.InferenceSession) -> list[tuple[str, str, list[int | str | None]]]:
    """Name, type and shape of each output, as the runtime has found them out."""
    return [(value.name, value.type, list(value.shape)) for value in session.get_outputs()]


def _options(level: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Each segment would have an arena of its own, which keeps what its largest request took.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # what is wrong is raised
    return options
