"""A scan classifier of which the first blocks stay at the clinic: the swarm runs the rest.

What leaves the clinic are hidden states, no pictures. That raises the cost of looking, and is no encryption:
docs/privacy.md says how much of them can be read.

pip install 'shoal[graph]' scikit-learn
python graph_scans.py write     # trains a small vision transformer on digits, and writes scans.onnx
shoal serve scans.onnx          # on some machines, none of which needs the first blocks
python graph_scans.py           # at the clinic
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import shoal

SIDE, PATCH, WIDTH, BLOCKS, KEPT = 8, 2, 32, 4, 2
EPOCHS = 12
GRAPH, CLINIC = Path("scans.onnx"), Path("clinic.npz")


class Rest(nn.Module):
    """What the swarm runs: the later blocks, and the head."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks, self.head = blocks, nn.Linear(WIDTH, 10)

    def forward(self, hidden):
        return self.head(self.blocks(hidden).mean(1))


class First(nn.Module):
    """What the clinic runs: patches, their places, and the first blocks."""

    def __init__(self, blocks):
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(1, (SIDE // PATCH) ** 2, WIDTH) * 0.02)
        self.blocks = blocks

    def forward(self, scans):
        return self.blocks(self.patches(scans).flatten(2).transpose(1, 2) + self.places)


def halves():
    blocks = [
        nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(BLOCKS)
    ]
    return First(nn.Sequential(*blocks[:KEPT])), Rest(nn.Sequential(*blocks[KEPT:]))


def scans():
    """Scans and what is on them: the last 200 were never trained on."""
    digits = load_digits()
    return torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)


def write(epochs=EPOCHS):
    """Train, export what the swarm runs, and keep the rest."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # of so small a network, sharing the work takes longer than doing it
    first, rest = halves()
    images, labels = (values[:-200] for values in scans())
    optimiser = torch.optim.AdamW([*first.parameters(), *rest.parameters()], 4e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(rest(first(images[batch])), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    np.savez(CLINIC, **{name: value.numpy() for name, value in first.state_dict().items()})
    names = {"input_names": ["hidden"], "output_names": ["scores"], "dynamic_axes": {"hidden": {0: "scans"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's other exporter needs onnxscript
        torch.onnx.export(rest.eval(), (first(images[:2]),), str(GRAPH), dynamo=False, **names)


def main(swarm):
    first, _ = halves()
    first.load_state_dict({name: torch.tensor(value) for name, value in np.load(CLINIC).items()})
    images, labels = (values[-200:] for values in scans())
    with torch.no_grad():
        hidden = first.eval()(images).numpy()
    scores = swarm.run(str(GRAPH), {"hidden": hidden})["scores"]
    right = (scores.argmax(1) == labels.numpy()).mean()
    print(f"{len(images)} scans, {right:.1%} right; {hidden.nbytes} bytes of hidden states left the clinic")


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    else:
        with shoal.connect() as connected:
            main(connected)
