"""Boosted trees beside a small network, trained on made-up payments and written by skl2onnx."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shoal.testing.graphs import NamedArrays


def write_trees(file: Path) -> NamedArrays:
    """Write a classifier of two classes; what to ask it with."""
    made: Any = make_classification(2000, 20, n_informative=8, weights=[0.95], random_state=0)
    rows, fraud = np.asarray(made[0], np.float32), made[1]
    trees = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    network = MLPClassifier((32, 16), max_iter=40, random_state=0)
    both = VotingClassifier([("trees", trees), ("network", network)], voting="soft", flatten_transform=False)
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # it need not be any good
        model = make_pipeline(StandardScaler(), both).fit(rows, fraud)
    graph: Any = to_onnx(model, rows[:1], options={"zipmap": False})
    file.write_bytes(graph.SerializeToString())
    return {"X": rows[:64]}
