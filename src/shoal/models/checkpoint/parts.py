"""A model that came from peers, of which only parts may be here: its manifest, and a file for each block.

All tensors are known from the manifest, and so is where each lies. The file of a part that has not come whole
is not there yet; what has come of it lies beside the place (:mod:`shoal.sharing.partial_file`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import ITEM_SIZE, TensorEntry
from shoal.models.checkpoint.manifest import MAX_MANIFEST, Manifest, ManifestItem, digest_of, read_manifest
from shoal.models.checkpoint.multimodal import has_tower, is_of_language
from shoal.types import Digest

NUMBERED = re.compile(r"^(?P<list>.*?[^\d.])\.?(?P<index>\d+)\.")
"""A tensor of a list's element: the list's name and the index, for example ``model.layers`` and ``12``."""
READ_ON_OPENING = re.compile(
    r"\.quant_state\.bitsandbytes__\w+$|\.weight_format$|(^|\.)relative_attention_bias\.weight$"
)
"""Tensors that say how others are to be read, without which a checkpoint cannot be opened, and tables that
every block is computed with, wherever they stand."""
MAX_READ_ON_OPENING = 1 << 14
"""Bytes of one. Honest ones have up to 300."""
MANIFEST = "shoal-manifest.json"
CHUNKS = "shoal-chunks"
"""The sha256s of all chunks of all items, one after another; zeros where they are not known."""
TOWER = ("", 1)
"""The part of what looks at pictures: a client wants all of it, a node none."""
ALIGNMENT = 64
"""Bytes; of a part's first tensor, and of each of a GGUF file's types."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """Some tensors in one file: those of one block, those outside of all blocks, those of a tower, or those
    read on opening."""

    file: str
    """Its name: safetensors, or the tensors' bytes alone where they are of a GGUF file's types."""
    header: bytes
    """What comes before the first tensor."""
    items: tuple[int, ...]
    """Its tensors, by their places in the manifest, in the order of their bytes."""
    begins: tuple[int, ...]
    """The first byte of each."""
    size: int
    """Bytes of the whole file."""


def layout(manifest: Manifest) -> list[ModelPart]:
    """How a model's tensors are spread over files: the same for everybody who has the manifest."""
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    seeing = has_tower(manifest.config)
    for number, item in enumerate(manifest.items):
        if _is_read_on_opening(item):
            groups[("", -1)].append(number)
        elif seeing and item.is_tensor and not is_of_language(item.name):
            groups[TOWER].append(number)
        elif item.is_tensor:
            found = NUMBERED.match(item.name)
            groups[(found["list"], int(found["index"])) if found else ("", 0)].append(number)
    plain = all(_is_plain(item) for item in manifest.items if item.is_tensor)
    return [_part(number, groups[key], manifest.items, plain) for number, key in enumerate(sorted(groups))]


def opening_items(manifest: Manifest) -> list[int]:
    """What of a model has to be here before it can be opened, by its place: text files, and some tensors."""
    return [n for n, item in enumerate(manifest.items) if not item.is_tensor or _is_read_on_opening(item)]


def read_pulled(folder: Path) -> Manifest | None:
    """The manifest of a folder that holds a model which came from peers; ``None`` if it holds none.

    Raises:
        BadWeights: it cannot be read, or is no manifest.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise BadWeights(f"{file}: it cannot be read ({error.strerror})", check="check the disk") from error
    return read_manifest(raw)


def pulled_digest(folder: Path) -> Digest | None:
    """Of which model a folder holds parts, well or not; ``None`` if it holds those of none."""
    file = folder / MANIFEST
    return digest_of(file.read_bytes()) if file.is_file() else None


def part_entries(folder: Path, manifest: Manifest) -> dict[str, TensorEntry]:
    """Every tensor of a model that came from peers, whether its part is here or not."""
    return {
        (item := manifest.items[number]).name: TensorEntry(
            item.name, item.dtype, item.shape, folder / part.file, begin, item.size, item.heads, item.less
        )
        for part in layout(manifest)
        for number, begin in zip(part.items, part.begins, strict=True)
    }


def missing_parts(entries: Iterable[TensorEntry]) -> set[Path]:
    """The files of such tensors that are not here."""
    return {file for file in {entry.file for entry in entries} if not file.is_file()}


def _is_read_on_opening(item: ManifestItem) -> bool:
    small = item.size <= MAX_READ_ON_OPENING
    return item.is_tensor and small and READ_ON_OPENING.search(item.name) is not None


def _is_plain(item: ManifestItem) -> bool:
    return item.dtype in ITEM_SIZE and not item.heads and not item.less


def _part(number: int, members: list[int], items: tuple[ManifestItem, ...], plain: bool) -> ModelPart:
    # The widest elements first, so that all are aligned although nothing lies between them.
    members.sort(key=lambda member: (-ITEM_SIZE.get(items[member].dtype, 0), items[member].name))
    step = 1 if plain else ALIGNMENT
    offsets = [0]
    for member in members:
        offsets.append(offsets[-1] + -(-items[member].size // step) * step)
    header = _safetensors_header([items[member] for member in members], offsets) if plain else b""
    begins = tuple(len(header) + offset for offset in offsets[:-1])
    name = f"part-{number:05}.{'safetensors' if plain else 'gguf'}"
    return ModelPart(name, header, tuple(members), begins, len(header) + offsets[-1])


def _safetensors_header(items: list[ManifestItem], offsets: list[int]) -> bytes:
    fields: Mapping[str, object] = {
        item.name: {
            "dtype": item.dtype,
            "shape": list(item.shape),
            "data_offsets": [offset, offset + item.size],
        }
        for item, offset in zip(items, offsets, strict=False)
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
