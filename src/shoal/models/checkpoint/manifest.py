"""A model's manifest: everything that makes it the model that it is. Its sha256 is the model's digest.

It holds the config, and the name, size and hash of each *item*: the text files that decide what goes into a
model and when an answer ends (tokenizer, chat templates, generation config), and the tensors. The hash of an
item is the sha256 of the sha256s of its chunks of 1 MiB, so who knows the digest can check any chunk by
itself, whoever sends it. How tensors are spread over files does not matter.

Digests of the first version covered neither text files nor chunks. A model that is recorded with one is
hashed again when it is next used, and peers that announce one serve another model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import ITEM_SIZE, MAX_DIMENSIONS, MAX_TENSORS
from shoal.models.untrusted.bounded_json import parse
from shoal.types import SHA256, Digest

VERSION = 2
CHUNK = 1 << 20
"""Bytes that are hashed, and sent, by themselves; the last chunk of an item is shorter."""
HASH = 32
"""Bytes of a sha256."""
MAX_MANIFEST = 32 << 20
"""Bytes. A tensor takes some 150."""
MAX_VALUES = 2_000_000
MAX_NAME = 512
MAX_ITEM = 1 << 43
"""Bytes: 8 TiB in one tensor are a lie."""
MAX_MODEL = 1 << 42
"""Bytes of all items: 4 TiB, twice the largest models in bf16. The hashes of their chunks take 128 MiB."""
MAX_TEXT = 64 << 20
"""Bytes of a text file; the largest tokenizers take 35 MB."""
TOKENIZER = "tokenizer.json"
TEXT_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tekken.json",
    TOKENIZER,
    "tokenizer_config.json",
)
"""Those of a model's folder that are read beside ``config.json`` and the weights."""
VOCABULARY_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""What a tokenizer is made of where there is no ``tokenizer.json``; where there is one they do not count."""
MODULES = "modules.json"
EMBEDDING_FILES = (MODULES, "sentence_bert_config.json")
"""What sentence-transformers writes beside a model that gives embeddings."""
POOLING = "[0-9]_Pooling/config.json"
"""The same, of how its last hidden states become one vector; the pattern of a path."""
PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")
"""How pictures become numbers, of a model that looks at them; the second is how newer programs write it."""
TEMPLATES = "additional_chat_templates"
_TEXT_FILE = re.compile(
    rf"{'|'.join(map(re.escape, TEXT_FILES + VOCABULARY_FILES + EMBEDDING_FILES + PICTURE_FILES))}"
    rf"|{POOLING.replace('.', '[.]')}|[\w-][\w.-]{{0,63}}\.tiktoken"
    rf"|{TEMPLATES}/[\w-][\w.-]{{0,63}}\.jinja",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ManifestItem:
    """A text file, or a tensor."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of its chunks' sha256s, hexadecimal."""
    dtype: str = ""
    """A tensor's, as its file names it; empty for a text file."""
    shape: tuple[int, ...] = ()
    heads: int = 0
    less: float = 0.0
    """As those of a :class:`~shoal.models.checkpoint.headers.TensorEntry`."""

    @property
    def is_tensor(self) -> bool:
        return bool(self.dtype)

    @property
    def chunks(self) -> int:
        """How many it has; none if it is empty."""
        return -(-self.size // CHUNK)

    def chunk_size(self, index: int) -> int:
        """Bytes of its chunk ``index``."""
        return min(CHUNK, self.size - index * CHUNK)

    def fits(self, hashes: bytes) -> bool:
        """Whether these are the sha256s of its chunks, one after another."""
        return len(hashes) == HASH * self.chunks and hashlib.sha256(hashes).hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest, as its bytes say."""

    raw: bytes
    config: Mapping[str, Any]
    """``config.json`` without what only tells who wrote it."""
    items: tuple[ManifestItem, ...]
    """Text files, then tensors, each by name: what others call an item by is its place here."""
    first_chunks: tuple[int, ...] = field(repr=False)
    """The number of each item's first chunk, counted over all items; behind them, how many there are."""

    @property
    def digest(self) -> Digest:
        return digest_of(self.raw)


def digest_of(raw: bytes) -> Digest:
    """The digest of the model whose manifest ``raw`` is, well-formed or not."""
    return Digest(f"sha256:{hashlib.sha256(raw).hexdigest()}")


def write_manifest(config: Mapping[str, Any], items: Sequence[ManifestItem]) -> Manifest:
    """The manifest of a config and of items in any order.

    Raises:
        BadWeights: the config is nested too deeply.
    """
    files = sorted([item.name, item.size, item.sha256] for item in items if not item.is_tensor)
    tensors = sorted(_tensor_fields(item) for item in items if item.is_tensor)
    try:
        text = json.dumps(
            {"version": VERSION, "config": config, "files": files, "tensors": tensors},
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=True,
        )
    except RecursionError as error:
        raise BadWeights("config.json is nested too deeply") from error
    ordered = sorted(items, key=lambda item: (item.is_tensor, item.name))
    return _manifest(text.encode(), config, ordered)


def read_manifest(raw: bytes) -> Manifest:
    """Read a manifest that a stranger wrote.

    Raises:
        BadWeights: it is none, of another version, too large, or says what cannot be.
    """
    if len(raw) > MAX_MANIFEST:
        raise _bad(f"it has {len(raw)} bytes, more than the {MAX_MANIFEST} that are read")
    try:
        value = parse(raw, values=MAX_VALUES)
    except (ValueError, RecursionError) as error:
        raise _bad(f"not valid JSON ({error})") from error
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if fields.get("version") != VERSION:
        raise _bad(f"its version is {str(fields.get('version'))[:20]}, {VERSION} is read")
    config, files, tensors = fields.get("config"), fields.get("files"), fields.get("tensors")
    if not isinstance(config, dict) or not isinstance(files, list) or not isinstance(tensors, list):
        raise _bad("it has no config, files and tensors")
    files, tensors = cast("list[object]", files), cast("list[object]", tensors)
    if len(files) + len(tensors) >= MAX_TENSORS or not tensors:
        raise _bad(f"it has {len(tensors)} tensors and {len(files)} files")
    items = [*map(_text_file, files), *map(_tensor, tensors)]
    keys = [(item.is_tensor, item.name) for item in items]
    if any(before >= after for before, after in pairwise(keys)):
        raise _bad("its items are out of order, or one comes twice")
    if (total := sum(item.size for item in items)) > MAX_MODEL:
        raise _bad(f"its items have {total} bytes together, and {MAX_MODEL} are the most")
    return _manifest(raw, cast("dict[str, Any]", config), items)


def _manifest(raw: bytes, config: Mapping[str, Any], items: Sequence[ManifestItem]) -> Manifest:
    firsts = [0]
    for item in items:
        firsts.append(firsts[-1] + item.chunks)
    return Manifest(raw, config, tuple(items), tuple(firsts))


def _tensor_fields(item: ManifestItem) -> list[Any]:
    changed = [item.heads, item.less] if item.heads or item.less else []
    return [item.name, item.dtype, list(item.shape), item.sha256, *changed]


def _text_file(value: object) -> ManifestItem:
    fields = cast("list[Any]", value) if isinstance(value, list) else []
    name, size, sha256 = fields if len(fields) == 3 else (None, None, None)
    if not isinstance(name, str) or not is_text_file(name):
        raise _bad(f"{str(name)[:80]!r} is no file that a model has")
    if type(size) is not int or not 0 <= size <= MAX_TEXT:
        raise _bad(f"{name} has {str(size)[:20]} bytes")
    return ManifestItem(name, size, _sha256(name, sha256))


def is_text_file(name: str) -> bool:
    """Whether a manifest may name such a file: a known one, or a chat template, nowhere but in its folder."""
    return _TEXT_FILE.fullmatch(name) is not None


def _tensor(value: object) -> ManifestItem:
    fields = cast("list[Any]", value) if isinstance(value, list) else []
    if len(fields) not in (4, 6):
        raise _bad(f"{str(fields)[:80]} is no tensor")
    name, dtype, shape, sha256, heads, less = fields if len(fields) == 6 else [*fields, 0, 0.0]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not isinstance(dtype, str):
        raise _bad(f"{str(fields)[:80]} is no tensor")
    if name == "__metadata__":  # something else in a safetensors file's header
        raise _bad(f"{str(fields)[:80]} is no tensor")
    dims = _sizes(shape)
    if dims is None:
        raise _bad(f"tensor {name[:80]!r} has an impossible shape")
    size = _tensor_bytes(name, dtype, dims)
    # A vector in blocks cannot be put in another order.
    vector = len(dims) == 1 and dtype not in ITEM_SIZE
    if type(heads) is not int or heads < 0 or (heads and (not dims or dims[0] % (2 * heads) or vector)):
        raise _bad(f"tensor {name[:80]!r} has rows of {str(heads)[:20]} heads")
    if less not in (0.0, 1.0) or isinstance(less, bool):
        raise _bad(f"tensor {name[:80]!r} is stored with {str(less)[:20]} added")
    return ManifestItem(name, size, _sha256(name, sha256), dtype, dims, heads, float(less))


def _sizes(value: object) -> tuple[int, ...] | None:
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    sizes = tuple(item for item in items if type(item) is int and 0 <= item < 2**48)
    return sizes if len(sizes) == len(items) <= MAX_DIMENSIONS else None


def _tensor_bytes(name: str, dtype: str, dims: tuple[int, ...]) -> int:
    elements, size = 1, ITEM_SIZE.get(dtype, 0)
    if not size:
        from shoal.models.gguf.weights import block_size  # noqa: PLC0415 - the gguf package, which few need

        try:
            elements, size = block_size(dtype)
        except KeyError:
            raise _bad(f"tensor {name[:80]!r} is of type {dtype[:20]!r}") from None
        if not dims or dims[-1] % elements:
            raise _bad(f"tensor {name[:80]!r} has an impossible shape")
    total = math.prod(dims) // elements * size
    if total > MAX_ITEM:
        raise _bad(f"tensor {name[:80]!r} has {total} bytes")
    return total


def _sha256(name: str, value: object) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise _bad(f"{name[:80]!r} has no sha256")
    return value


def _bad(what: str) -> BadWeights:
    return BadWeights(f"a model's manifest: {what}", check="fetch the model from peers that you trust")
