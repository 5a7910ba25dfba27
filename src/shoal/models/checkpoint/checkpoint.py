"""A checkpoint: a folder with ``config.json`` and safetensors or GGUF files; nothing of it is run."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Generator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder, encoder_decoder
from shoal.models.checkpoint.headers import MAX_TENSORS, TensorEntry, read_safetensors_header
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.models.checkpoint.manifest import Manifest
from shoal.models.checkpoint.mrope import MROPE_SECTIONS
from shoal.models.checkpoint.multimodal import (
    TowerPart,
    has_tower,
    is_nested,
    sections_fit,
    text_config,
    text_tensors,
    tower_tensors,
)
from shoal.models.checkpoint.parts import part_entries, read_pulled
from shoal.models.store.lookalikes import no_model

if TYPE_CHECKING:
    from shoal.models.quantized.settings import SchemeSettings

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EPSILON = re.compile(r"(^|_)eps(ilon)?$")
"""Names of fields with what a norm adds below its root: ``rms_norm_eps``, ``layer_norm_epsilon``."""
COUNTED = "layer|expert|block|head|group|state|label"
COUNTS = re.compile(rf"(^|_)(({COUNTED})s?|depth)$|^(n|num)_\w*({COUNTED})")
"""Names of fields that say how many there are of something: ``encoder_layers``, ``num_experts_per_tok``.
Those that only have such a word in them, as ``vocab_size_per_layer_input`` or ``block_size``, are sizes."""
LAYERS = re.compile("layer|block|depth")
MAX_LAYERS = 4096
"""Honest models have up to 200. Of 100,000 some configs of transformers make lists for hours."""
QUANTIZATION = ("quantization_config", "compression_config")
"""Where configs say how their weights are quantised; the latter is compressed-tensors' first name for it."""

CONFIG = SizeLimit(8 << 20, 100_000)
"""Honest configs have a hundred values; the largest, with 21,841 labels, which are named twice, 44,000."""
LONG_LIST = SizeLimit(64 << 20, 400_000)
"""An index, which has one for each of up to :data:`MAX_TENSORS` tensors. The largest of today take 15 MB."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder holds: the parsed ``config.json`` and where each tensor lies.

    Of a model that does more than text these are the text part's config and tensors, by the names that it has
    as a model of its own; an entry has the name in the file.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]
    quantization: Mapping[str, Any] | None = None
    """The config's ``quantization_config``, which ``config`` leaves out: ``tensors`` are those of the plain
    model, of which some are made up of several in the files."""
    manifest: Manifest | None = None
    """Of a model that came from peers; parts of its tensors may not be here."""
    tower: TowerPart | None = None
    """What looks at pictures, of a model whose client can run it."""

    @property
    def stored(self) -> list[TensorEntry]:
        """The tensors as they are in the files, the tower's among them."""
        entries = [*self.tensors.values(), *(self.tower.tensors.values() if self.tower else ())]
        return [stored for entry in entries for stored in entry.stored]

    @property
    def files(self) -> list[Path]:
        """The files with the weights, sorted."""
        return sorted({entry.file for entry in self.stored})


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's config and headers. Takes milliseconds: no tensor is read.

    Raises:
        UnknownModel: the folder has no ``config.json``.
        BadWeights: a file cannot be read, is missing, truncated or dishonest.
        UnsupportedModel: the weights are pickled, or quantised in a way that is not read.
    """
    config, quantization = _read_configs(folder)
    if (manifest := _pulled(folder)) is not None:
        tensors = part_entries(folder, manifest)
    elif _is_gguf(folder):
        from shoal.models.gguf.index import read_index  # noqa: PLC0415 - the gguf package, which few need

        return Checkpoint(folder, config, read_index(folder))
    else:
        tensors = _read_headers(folder)
    said: Mapping[str, Any] | None = None
    if quantization is not None:
        from shoal.models.quantized.schemes import plain_tensors  # noqa: PLC0415 - numpy, and few need it

        tensors, said = plain_tensors(quantization, tensors), quantization.values
    elif (entry := next((e for e in tensors.values() if e.dtype.startswith("F8")), None)) is not None:
        raise BadWeights(
            f"{entry.file}: tensor {entry.name[:80]!r} is {entry.dtype}, and the config says no scales of it",
            check="check that config.json, with its quantization_config, is the one of these weights",
        )
    if is_nested(config):
        seeing = tower_tensors(tensors) if has_tower(config) else {}
        tower, text = TowerPart(config, seeing) if seeing else None, text_config(config)
        if not sections_fit(text):
            raise BadWeights(
                f"{folder}: the sections of its rotary positions ({MROPE_SECTIONS}) are "
                f"{str(text[MROPE_SECTIONS])[:80]}, which are not those of half a head",
                check="check that the model comes from a source you trust",
            )
        return Checkpoint(folder, text, text_tensors(tensors), said, manifest, tower)
    return Checkpoint(folder, config, tensors, said, manifest)


def _read_headers(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the safetensors files."""
    tensors: dict[str, TensorEntry] = {}
    for file, wanted in _files(folder):
        entries = read_safetensors_header(file)
        found = {entry.name for entry in entries}
        if missing := next((name for name in wanted if name not in found), None):
            raise BadWeights(
                f"{file}: tensor {missing[:80]!r}, which {INDEX} promises, is not in it",
                check="check that all files in the folder are from the same version of the model",
            )
        for entry in entries:
            if wanted and entry.name not in wanted:
                continue
            if entry.name in tensors:
                raise BadWeights(f"{file}: tensor {entry.name[:80]!r} is in another file too")
            tensors[entry.name] = entry
    return tensors


def tower_bytes(folder: Path) -> int:
    """Bytes of what a client looks at images with, as stored; 0 where the model takes none.

    Raises:
        UnknownModel, BadWeights, UnsupportedModel: see :func:`open_checkpoint`.
    """
    tower = open_checkpoint(folder).tower
    return 0 if tower is None else sum(entry.size for entry in tower.tensors.values())


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``, or the text part of it, if it is one that we may run.

    Raises:
        UnknownModel, BadWeights, UnsupportedModel: there is none: what the folder is instead.
        BadWeights: it is not a JSON object, or has no ``model_type``.
        UnsupportedModel: it is quantised in a way that is not read.
    """
    config, _ = _read_configs(folder)
    return text_config(config) if is_nested(config) else config


def read_encoder_decoder(folder: Path) -> EncoderDecoder | None:
    """The sides of a folder's model; ``None`` if it has not both. Raises as :func:`read_config`."""
    return encoder_decoder(read_config(folder))


def _read_configs(folder: Path) -> tuple[dict[str, Any], SchemeSettings | None]:
    """The config without what it says of its weights' quantisation, and that."""
    path = folder / "config.json"
    if not path.is_file():
        raise no_model(folder)
    config = read_object(path, CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise BadWeights(
            f"{path}: it has no model_type", check="check that this is a language model's config.json"
        )
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx:
        raise UnsupportedModel(
            f"{folder}: its weights are quantised by MLX (quantization), which only MLX reads",
            check="take the model that it was made of, or a GGUF file, which is converted",
        )
    if (absurd := _absurd(config)) is not None:
        name, value = absurd
        raise BadWeights(
            f"{path}: {name[:80]} is {str(value)[:40]}",
            check="check that the model comes from a source you trust",
        )
    return _without_quantization(folder, config)


def _without_quantization(
    folder: Path, config: dict[str, Any]
) -> tuple[dict[str, Any], SchemeSettings | None]:
    """The config of the plain model. What it leaves out may stand in the text part of a nested one."""
    plain = {name: value for name, value in config.items() if name not in QUANTIZATION}
    values = [config[name] for name in QUANTIZATION if config.get(name) is not None]
    text = config.get("text_config")
    if isinstance(text, dict):
        text = cast("dict[str, Any]", text)
        plain["text_config"] = {name: value for name, value in text.items() if name not in QUANTIZATION}
        values += [text[name] for name in QUANTIZATION if text.get(name) is not None]
    if not values:
        return plain, None
    from shoal.models.quantized.schemes import read_settings  # noqa: PLC0415 - numpy, and few need it

    kind = text.get("model_type") if isinstance(text, dict) else None
    return plain, read_settings(folder, values[0], str(kind or config["model_type"]))


def _absurd(config: dict[str, Any]) -> tuple[str, float] | None:
    """A number that no honest model has: of which every answer would be NaN, or which would fill the memory.

    Blocks or experts may be so many that only building the model's lists would do that.
    """
    configs = [config]
    while configs:
        for name, value in configs.pop().items():
            if isinstance(value, dict):  # a config in a config, as text_config
                configs.append(cast("dict[str, Any]", value))
            elif isinstance(value, list):  # in which Mamba 2 has an infinity: no limit
                numbers = (v for v in cast("list[Any]", value) if isinstance(v, float))
                if (nan := next(filter(math.isnan, numbers), None)) is not None:
                    return name, nan
            elif isinstance(value, int | float) and not _plausible(name, value):
                return name, value
    return None


def _plausible(name: str, value: float) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if EPSILON.search(name):
        return 0 <= value <= 1
    return isinstance(value, float) or value <= _most(name)


def _most(name: str) -> int:
    if not COUNTS.search(name):
        return 2**31 - 1
    return MAX_LAYERS if LAYERS.search(name) else MAX_TENSORS


def _pulled(folder: Path) -> Manifest | None:
    """The manifest of a model that came from peers, if there is nothing else. Raises as ``read_pulled``."""
    others = (SINGLE, INDEX, "gguf.json")
    return None if any((folder / name).is_file() for name in others) else read_pulled(folder)


def _is_gguf(folder: Path) -> bool:
    """Whether the weights lie in GGUF files, and nowhere else."""
    return (folder / "gguf.json").is_file() and not any((folder / name).is_file() for name in (SINGLE, INDEX))


def _files(folder: Path) -> list[tuple[Path, Set[str]]]:
    """The safetensors files, each with the names that the index promises in it (none: whatever it holds)."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise no_model(folder)
        return [(folder / SINGLE, frozenset())]
    weight_map = read_object(index, LONG_LIST).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index}: it has no weight_map", check="fetch the file again")
    names = cast(dict[str, object], weight_map)
    if len(names) >= MAX_TENSORS:
        raise BadWeights(f"{index}: {len(names)} entries, {MAX_TENSORS} or more are refused")
    by_file: dict[str, set[str]] = {}
    for name, file in names.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise BadWeights(
                f"{index}: it points to {str(file)[:80]!r}, outside of the folder",
                check="check that you trust its source: an index may name only files in its own folder",
            )
        by_file.setdefault(file, set()).add(name)
    for file in by_file:
        try:
            is_there = (folder / file).is_file()
        except OSError as error:  # as a name that is too long
            raise BadWeights(
                f"{index}: {file[:80]!r}, which it names, cannot be read ({error.strerror})",
                check="check the folder's permissions, or fetch the model again",
            ) from error
        if not is_there:
            raise BadWeights(
                f"{index}: {file[:80]!r}, which it names, is missing", check="fetch the model again"
            )
    return [(folder / file, by_file[file]) for file in sorted(by_file)]


def _is_plain(name: str) -> bool:
    """Whether ``name`` is a safetensors file's name without any path."""
    return name.endswith(".safetensors") and not any(c in name for c in "/\\:\0") and not name.startswith(".")


@contextmanager
def plain_config(checkpoint: Checkpoint) -> Generator[Path]:
    """A folder whose ``config.json`` is UTF-8 without a byte order mark, as other libraries want it.

    It is the checkpoint's own unless its file is written otherwise, as Notepad and PowerShell do, or says
    more than the text part.
    """
    path = checkpoint.folder / "config.json"
    raw = path.read_bytes()
    plain = not raw.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if plain and b"\0" not in raw[:4] and read_object(path, CONFIG) == checkpoint.config:
        yield checkpoint.folder
        return
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(checkpoint.config), encoding="utf-8")
        yield Path(folder)
