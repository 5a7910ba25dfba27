"""Which payments to look at: boosted trees beside a small network, over the machines of a swarm.

pip install 'shoal[graph]' scikit-learn skl2onnx
python graph_fraud.py write     # trains on made-up payments, and writes fraud.onnx
shoal serve fraud.onnx          # on some machines
python graph_fraud.py
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import shoal

GRAPH = Path("fraud.onnx")
SHOWN = 20


def payments():
    """Payments and which are fraud, one in twenty: the last 1,000 were never trained on."""
    rows, fraud = make_classification(
        4000, 20, n_informative=10, weights=[0.95], flip_y=0.005, class_sep=1.5, random_state=0
    )
    return rows.astype(np.float32), fraud


def write():
    rows, fraud = (values[:-1000] for values in payments())
    trees = HistGradientBoostingClassifier(max_iter=80, random_state=0)
    network = MLPClassifier((32, 16), max_iter=60, random_state=0)
    both = VotingClassifier([("trees", trees), ("network", network)], voting="soft", flatten_transform=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged
        model = make_pipeline(StandardScaler(), both).fit(rows, fraud)
        graph = to_onnx(model, rows[:1], options={"zipmap": False})  # a map is no tensor
    GRAPH.write_bytes(graph.SerializeToString())


def main(swarm):
    rows, fraud = (values[-1000:] for values in payments())
    scores = swarm.run(str(GRAPH), {"X": rows})["probabilities"][:, 1]
    first = np.argsort(-scores)[:SHOWN]
    for place in first[:5]:
        print(f"payment {place}: {scores[place]:.1%}")
    print(f"{fraud[first].sum()} of the {SHOWN} likeliest are fraud, as are {fraud.sum()} of {len(rows)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    else:
        with shoal.connect() as connected:
            main(connected)
