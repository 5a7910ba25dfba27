"""The text of a picture: PP-OCRv6 of rapidocr (Apache-2.0), over the machines of a swarm. One graph finds the
lines, another reads them.

pip install 'shoal[graph]' scipy && pip install --no-deps rapidocr    # only its models are used
python graph_reading.py --model    # their files: shoal serve FILE, on some machines
python graph_reading.py PICTURE.png
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from scipy import ndimage

import shoal

LONGEST, MULTIPLE = 960, 32  # what a side is scaled down to, and what both are multiples of
INK, SURE = 0.3, 0.5  # what a pixel of a line has at least, and a line on average
LARGER = 1.6  # lines are found without their margins
HEIGHT = 48  # of a line that is read


def models() -> list[Path]:
    package = find_spec("rapidocr")
    if package is None or package.origin is None:
        sys.exit("pip install --no-deps rapidocr")
    folder = Path(package.origin).with_name("models")
    return [folder / "PP-OCRv6_det_small.onnx", folder / "PP-OCRv6_rec_small.onnx"]


def numbers(picture):
    """Blue, green and red from -1 to 1, with the channels first."""
    return (np.asarray(picture, np.float32)[None, ..., ::-1].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5


def lines_of(swarm, finds, page):
    """The boxes of the lines of a page, from top to bottom."""
    scale = min(1, LONGEST / max(page.size))
    width, height = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in page.size)
    (maps,) = swarm.run(str(finds), {"x": numbers(page.resize((width, height)))}).values()
    labels, _ = ndimage.label(maps[0, 0] > INK)
    boxes = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if maps[0, 0][rows, columns][labels[rows, columns] == index].mean() < SURE:
            continue
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        margin = high * wide * LARGER / (2 * (high + wide))
        left, top, right, bottom = (
            columns.start - margin,
            rows.start - margin,
            columns.stop + margin,
            rows.stop + margin,
        )
        across, down = page.width / width, page.height / height
        boxes.append((left * across, top * down, right * across, bottom * down))
    return sorted(boxes, key=lambda box: (round(box[1] / 8), box[0]))


def read(swarm, reads, characters, line):
    """The text of one line: at each place the likeliest character, repeated ones and blanks left out."""
    wide = max(HEIGHT, round(line.width * HEIGHT / line.height))
    (scores,) = swarm.run(str(reads), {"x": numbers(line.resize((wide, HEIGHT)))}).values()
    best = scores[0].argmax(-1)
    kept = best[(best != 0) & (np.diff(best, prepend=0) != 0)]
    return "".join(characters[place] for place in kept)


def main(swarm, picture):
    finds, reads = models()
    metadata = {entry.key: entry.value for entry in onnx.load(reads).metadata_props}
    characters = ["", *metadata["character"].split("\n"), " "]
    page = Image.open(picture).convert("RGB")
    for box in lines_of(swarm, finds, page):
        print(read(swarm, reads, characters, page.crop(tuple(map(round, box)))))


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--model"]):
        sys.exit("\n".join(map(str, models())))
    with shoal.connect() as connected:
        main(connected, sys.argv[1])
