"""What kind of file something is, by its bytes: Google's magika (Apache-2.0), over the machines of a swarm.

pip install 'shoal[graph]' && pip install --no-deps magika    # only its model is used
python graph_file_types.py --model    # its file: shoal serve FILE, on some machines
python graph_file_types.py FILE ...
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import shoal

SHOWN = 3


def model() -> Path:
    package = find_spec("magika")
    if package is None or package.origin is None:
        sys.exit("pip install --no-deps magika")
    return Path(package.origin).with_name("models") / "standard_v3_3/model.onnx"


def features(content: bytes, config: dict) -> list[int]:
    """The first and the last bytes, without the white space around them, and padded."""
    block, first, last = config["block_size"], config["beg_size"], config["end_size"]
    padding = [config["padding_token"]]
    begin, end = content[:block], content[-block:]
    begin = (begin.strip() if len(content) <= block else begin.lstrip())[:first]
    end = (end.strip() if len(content) <= block else end.rstrip())[-last:]
    return [*begin, *padding * (first - len(begin)), *padding * (last - len(end)), *end]


def main(swarm, files):
    config = json.loads(model().with_name("config.min.json").read_text())
    kinds = config["target_labels_space"]
    rows = np.array([features(Path(file).read_bytes(), config) for file in files], np.int32)
    for file, scores in zip(files, swarm.run(str(model()), {"bytes": rows})["target_label"], strict=True):
        best = np.argsort(-scores)[:SHOWN]
        print(file, *(f"{kinds[kind]} {scores[kind]:.1%}" for kind in best), sep="  ")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--model"]):
        sys.exit(str(model()))
    with shoal.connect() as connected:
        main(connected, sys.argv[1:])
