"""Reads an adapter's folder without trusting it: JSON and safetensors, no pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shoal.errors import BadWeights, UnsupportedModel, UsageError
from shoal.models.adapters.adapter import (
    LIKE_DIGEST,
    MAX_RANK,
    NAME,
    Adapter,
    Factor,
    LowRank,
    adapter_digest,
)
from shoal.models.adapters.peft_config import read_scale
from shoal.models.checkpoint.finite import check_finite
from shoal.models.checkpoint.headers import TensorEntry, read_safetensors_header
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.types import DIGEST, Digest

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
BASE_FILE = "shoal.json"
"""Beside PEFT's files, in folders that we write: the digest of the model that the adapter was made for."""
MAX_BYTES = 4 << 30
"""Of the weights. Rank 64 on every linear layer of a model with 70 billion weights takes 3 GB in float32."""
MAX_TENSORS = 1 << 15
MAX_BLOCK = 1 << 14
PREFIX = "base_model.model."
TENSOR = re.compile(
    r"(?P<list>[^.]+(?:\.[^.0-9][^.]*)*)\.(?P<block>\d{1,5})\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight"
)
DTYPES: dict[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_adapter(path: str | Path, name: str = "") -> Adapter:
    """The adapter in a folder as PEFT writes it.

    Args:
        name: how it is to be called; by default as its folder.

    Raises:
        UsageError: the name cannot be one.
        BadWeights: files are missing, damaged, too large or do not fit each other.
        UnsupportedModel: it is of a kind that is not computed here; names what.
    """
    folder = Path(path).expanduser()
    name = checked_name(folder, name)
    scale = read_scale(folder)
    list_name, blocks = _read_blocks(weights_file(folder))
    digest = adapter_digest(scale, list_name, blocks)
    return Adapter(name, digest, scale, list_name, blocks, read_base(folder), folder)


def checked_name(folder: Path, name: str) -> str:
    """The name, or that of the folder. Raises UsageError: nothing can be called so."""
    name = name or folder.resolve().name
    if NAME.fullmatch(name) is None:
        raise UsageError(
            f"an adapter cannot be called {name[:80]!r}",
            check="give it a name of letters, digits, dots, dashes and underscores: NAME=PATH",
        )
    if LIKE_DIGEST.fullmatch(name):
        raise UsageError(
            f"an adapter cannot be called {name}: that is how the beginning of a digest looks",
            check="give it another name: NAME=PATH",
        )
    return name


def named_path(text: str) -> tuple[str, str]:
    """The name, empty where none is given, and the folder of ``[NAME=]PATH``."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and NAME.fullmatch(name) and not Path(text).exists() else ("", text)


def weights_file(folder: Path) -> Path:
    """The tensors of a folder of PEFT's. Raises BadWeights: they are not there, or too large."""
    file = folder / WEIGHTS
    if not file.exists():
        pickled = (folder / PICKLE).exists()
        raise BadWeights(
            f"{folder}: {WEIGHTS} is missing"
            + (f", and {PICKLE}, which is there, is never read" if pickled else ""),
            check="have PEFT write safetensors: save_pretrained does unless it is told not to",
        )
    if file.stat().st_size > MAX_BYTES:
        raise BadWeights(f"{file}: larger than the {MAX_BYTES >> 30} GiB that an adapter may take")
    return file


def _read_blocks(file: Path) -> tuple[str, Mapping[int, Mapping[str, LowRank]]]:
    entries = read_safetensors_header(file)
    if not 0 < len(entries) <= MAX_TENSORS:
        raise BadWeights(f"{file}: {len(entries)} tensors, where an adapter has 1 to {MAX_TENSORS}")
    lists: set[str] = set()
    halves: dict[tuple[int, str], dict[str, TensorEntry]] = {}
    for entry in entries:
        found = TENSOR.fullmatch(entry.name.removeprefix(PREFIX))
        if found is None or int(found["block"]) >= MAX_BLOCK:
            raise UnsupportedModel(
                f"{file}: {entry.name[:120]!r} changes no linear layer of a block, and nothing else is "
                "supported",
                check="train the adapter with target_modules that are linear layers of the blocks, without "
                "modules_to_save",
            )
        lists.add(found["list"])
        halves.setdefault((int(found["block"]), found["layer"]), {})[found["half"]] = entry
    if len(lists) > 1:
        raise UnsupportedModel(
            f"{file}: it changes more than one list of blocks: {', '.join(sorted(lists))[:200]}"
        )
    blocks: dict[int, dict[str, LowRank]] = {}
    for (block, layer), pair in halves.items():
        blocks.setdefault(block, {})[layer] = _low_rank(file, f"{block}.{layer}", pair)
    return lists.pop(), blocks


def _low_rank(file: Path, name: str, pair: Mapping[str, TensorEntry]) -> LowRank:
    down, up = pair.get("A"), pair.get("B")
    if down is None or up is None:
        raise BadWeights(
            f"{file}: of {name[:120]} it has but one of lora_A and lora_B", check="fetch it again"
        )
    if (
        len(down.shape) != 2
        or len(up.shape) != 2
        or down.shape[0] != up.shape[1]
        or 0 in (*down.shape, *up.shape)
    ):
        raise BadWeights(
            f"{file}: of {name[:120]} lora_A is {list(down.shape)} and lora_B "
            f"{list(up.shape)}: they do not fit",
            check="fetch it again",
        )
    if down.shape[0] > MAX_RANK:
        raise UnsupportedModel(f"{file}: {name[:120]} has rank {down.shape[0]}, above {MAX_RANK}")
    return LowRank(read_factor(down), read_factor(up))


def read_factor(entry: TensorEntry) -> Factor:
    """A tensor in float32.

    Raises:
        UnsupportedModel: it is in another format.
        BadWeights: it cannot be read, or has NaN or infinite numbers.
    """
    if entry.dtype not in DTYPES:
        raise UnsupportedModel(
            f"{entry.file}: {entry.name[:120]!r} is in {entry.dtype}, not in F32, F16 or BF16"
        )
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.begin)
            raw = stream.read(entry.size)
    except OSError as error:
        raise BadWeights(f"{entry.file}: it cannot be read ({error.strerror})") from error
    if len(raw) != entry.size:
        raise BadWeights(f"{entry.file}: it ends within {entry.name[:120]!r}", check="fetch it again")
    check_finite(entry, memoryview(raw))
    stored = np.frombuffer(raw, DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def read_base(folder: Path) -> Digest | None:
    """The model that a folder is for, if it says so. Raises BadWeights: what it says is no digest."""
    path = folder / BASE_FILE
    if not path.exists():
        return None
    base = read_object(path, SizeLimit(1 << 16, 100)).get("base")
    if not isinstance(base, str) or DIGEST.fullmatch(base) is None:
        raise BadWeights(f"{path}: base is no digest of a model", check="remove the file, or fetch it again")
    return Digest(base)
