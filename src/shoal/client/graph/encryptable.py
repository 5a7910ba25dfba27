"""Which graphs can be asked with encrypted inputs, and what is done here with what comes back. Pure."""

from __future__ import annotations

import math

import numpy as np

from shoal.client.graph.known_graph import KnownGraph
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.executor.arrays import Array, Doubles
from shoal.executor.encrypted.cost import encrypted_cost
from shoal.executor.encrypted.parameters import check_ckks
from shoal.models.graph.manifest import (
    MAX_COLUMNS,
    MAX_SCORES,
    FinalOperator,
    GraphManifest,
    LinearMap,
)


def check_encryptable(graph: KnownGraph, settings: Settings) -> LinearMap:
    """What a graph is that can be asked with encrypted inputs.

    Raises:
        UsageError: it is no small linear map, or settings ask for what cannot be had with it.
        IncompatibleLibrary: what encrypts is not installed here.
    """
    if settings.attested:
        raise no_attested_graphs()
    if graph.manifest.linear is None:
        raise not_encryptable(graph)
    if settings.own_blocks:
        raise UsageError(
            "private ends have no meaning with encrypted inputs: one node computes the whole graph",
            check="ask without one of the two",
        )
    check_ckks()
    return graph.manifest.linear


def not_encryptable(graph: KnownGraph) -> UsageError:
    """A graph is more than a linear map. Says what its weights alone would cost."""
    weights = sum(math.prod(weight.shape) for weight in graph.manifest.weights)
    return UsageError(
        f"{graph.name} cannot be run on encrypted inputs: only graphs that are one linear map of each row "
        f"can, of at most {MAX_COLUMNS} numbers to {MAX_SCORES}, with a sigmoid, softmax or argmax at the "
        f"end. {encrypted_cost(weights, 'row')}",
        check="run it without --encrypted on peers that you trust, or on your own machine",
        next_command=f"shoal models show {graph.name}",
    )


def no_encrypted_text(name: str) -> UsageError:
    """A language model is asked for with encrypted inputs."""
    return UsageError(
        f"{name} is a language model, which cannot be run on encrypted inputs. "
        f"{encrypted_cost(None, 'token')}",
        check="use peers that you trust, or private ends, which raise the cost of looking: docs/privacy.md",
        next_command=f"shoal run {name} --only PEER",
    )


def no_attested_graphs() -> UsageError:
    """Nodes of graphs do not show what they run on."""
    return UsageError(
        "attested-only: nodes of graphs do not show what they run on",
        check="run the graph without it, or ask a language model",
    )


def linear_outputs(manifest: GraphManifest, linear: LinearMap, scores: Doubles) -> dict[str, Array]:
    """The outputs of a linear graph by their names.

    Args:
        scores: rows × scores.
    """
    outputs: dict[str, Array] = {}
    for place, finals in zip(manifest.outputs, linear.outputs, strict=True):
        made = scores
        for final in finals:
            made = _final(final, made)
        value = manifest.values[place]
        outputs[value.name] = made.astype(value.dtype)
    return outputs


def _final(operator: FinalOperator, scores: Doubles) -> Doubles:
    match operator:
        case "sigmoid":
            return np.exp(-np.logaddexp(0.0, -scores))
        case "softmax":
            raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
            return raised / raised.sum(axis=-1, keepdims=True)
        case "l1":
            total = np.abs(scores).sum(axis=-1, keepdims=True)
            return scores / np.where(total == 0, 1.0, total)
        case "argmax":
            return scores.argmax(axis=-1).astype(np.float64)
        case "argmax_kept":
            return scores.argmax(axis=-1, keepdims=True).astype(np.float64)
