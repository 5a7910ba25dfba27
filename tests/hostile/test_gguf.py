"""A GGUF file that a stranger wrote is read and converted in a process of its own, with bounds."""

from __future__ import annotations

import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from shoal.errors import BadWeights, ModelError, UnsupportedModel
from shoal.models.store import convert_apart
from shoal.models.store.convert_apart import GgufConverter
from shoal.models.store.store import ModelStore
from shoal.progress import silent


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def string(key: str, value: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", 8) + text(value)


def number(key: str, value: int) -> bytes:
    return text(key.encode()) + struct.pack("<II", 4, value)


def strings(key: str, values: list[bytes]) -> bytes:
    return text(key.encode()) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))


def numbers(key: str, values: list[int]) -> bytes:
    head = struct.pack("<IIQ", 9, 5, len(values))
    return text(key.encode()) + head + struct.pack(f"<{len(values)}i", *values)


MODEL = [
    string("general.architecture", b"llama"),
    *(number(f"llama.{key}", 1) for key in ("block_count", "attention.head_count")),
    number("llama.embedding_length", 4),
    *(number(f"llama.{key}", 64) for key in ("feed_forward_length", "context_length")),
    text(b"llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
]
TENSORS = {
    b"token_embd.weight": (4, 64),
    b"output_norm.weight": (4,),
    **{b"blk.0.%s.weight" % name: (4,) for name in (b"attn_norm", b"ffn_norm")},
    **{b"blk.0.attn_%s.weight" % name: (4, 4) for name in (b"q", b"k", b"v", b"output")},
    **{b"blk.0.ffn_%s.weight" % name: (4, 64) for name in (b"gate", b"up")},
    b"blk.0.ffn_down.weight": (64, 4),
}
"""All that a model of one block has, so that the tokenizer is come to."""
BYTE_LEVEL = [string("tokenizer.ggml.model", b"gpt2"), string("tokenizer.ggml.pre", b"gpt-2")]


def write(file: Path, pairs: list[bytes], tensors: dict[bytes, tuple[int, ...]] = TENSORS) -> Path:
    infos, end = list[bytes](), 0
    for name, shape in tensors.items():
        infos.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, end))
        end += math.prod(shape) * 4 + 31 & ~31
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    file.write_bytes(head + bytes(-len(head) % 32 + end))
    return file


def one_name_twice_among_many(file: Path) -> Path:
    """In two files, each of which has no name twice."""
    names = {b"%d" % index: (4,) for index in range(90_000)}
    file = file.with_name("x-00001-of-00002.gguf")
    count = number("split.count", 2)
    write(file, [*MODEL, count, number("split.no", 0)], names)
    write(file.with_name("x-00002-of-00002.gguf"), [count, number("split.no", 1)], {b"89999": (4,)})
    return file


def model(file: Path, tokens: list[bytes], *more: bytes) -> Path:
    words = strings("tokenizer.ggml.tokens", tokens)
    sizes = {b"token_embd.weight": (4, len(tokens))}
    return write(file, [*MODEL, *BYTE_LEVEL, words, *more], TENSORS | sizes)


def endless_template(file: Path) -> Path:
    """Of 40 MB, of which Python makes four times as much, and JSON as much again."""
    template = "\U0001f600".encode() + b'"' * 40_000_000
    return model(file, [b"%d" % index for index in range(64)], string("tokenizer.chat_template", template))


def many_control_words(file: Path) -> Path:
    """That are looked for in every text."""
    tokens = [b"<%032d>" % index for index in range(30_000)]
    return model(file, tokens, numbers("tokenizer.ggml.token_type", [3] * len(tokens)))


def many_merges(file: Path) -> Path:
    """Of tokens whose parts are all tokens."""
    tokens = [b"a" * length for length in range(1, 500)]
    merges = [b"a" * left + b" " + b"a" * right for left in range(1, 250) for right in range(1, 250)]
    return model(file, tokens, strings("tokenizer.ggml.merges", merges))


@contextmanager
def little_memory() -> Generator[None]:
    """What is done in this process takes no more than 100 MB."""
    own, largest, over = psutil.Process(), 0, threading.Event()
    before = own.memory_info().rss

    def watch() -> None:
        nonlocal largest
        while not over.wait(0.05):
            largest = max(largest, own.memory_info().rss)

    (thread := threading.Thread(target=watch)).start()
    yield
    over.set()
    thread.join()
    assert largest - before < 100 << 20, "it was read here"


@pytest.mark.parametrize("attack", [endless_template, many_control_words, many_merges])
def test_26_what_a_header_makes_of_its_tokenizer_is_made_elsewhere(
    attack: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = attack(tmp_path / "x.gguf")
    began = time.monotonic()
    with little_memory(), suppress(BadWeights):  # what is too large to be given to peers is refused
        ModelStore(tmp_path / "models").pull(str(file))
    assert time.monotonic() - began < convert_apart.SILENT_S


def test_26_what_a_header_claims_is_one_error_in_bounded_time_and_memory(tmp_path: Path) -> None:
    file = one_name_twice_among_many(tmp_path / "x.gguf")
    began = time.monotonic()
    with little_memory(), pytest.raises(ModelError) as caught:
        ModelStore(tmp_path / "models").pull(str(file))
    assert caught.value.check
    assert isinstance(caught.value, BadWeights | UnsupportedModel)
    assert time.monotonic() - began < convert_apart.SILENT_S
    assert not [path for path in (tmp_path / "models").glob("*") if path.name != ".locks"]


@pytest.fixture
def honest(tmp_path: Path) -> Generator[GgufConverter]:
    tokens = strings("tokenizer.ggml.tokens", [b"%d" % index for index in range(64)])
    with closing(GgufConverter(write(tmp_path / "x.gguf", [*MODEL, *BYTE_LEVEL, tokens]))) as converter:
        yield converter


def test_26_a_conversion_that_dies_or_hangs_is_an_error_of_the_file(
    honest: GgufConverter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("SILENT_S", 1.0), ("BYTES_S", 1e9)):
        monkeypatch.setattr(convert_apart, name, seconds)
    for killed, said in ((True, "it crashed"), (False, "did not end within 1 s")):
        assert honest.size() >= 0
        child = honest._child.pid
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        if killed:
            threading.Timer(0.2, os.kill, (child, signal.SIGKILL)).start()
        with pytest.raises(BadWeights, match=said):
            honest.convert(tmp_path / "out", silent)


def test_26_a_conversion_ends_with_who_started_it(honest: GgufConverter) -> None:
    script = (
        "import sys, pathlib; from shoal.models.store.convert_apart import GgufConverter;"
        "converter = GgufConverter(pathlib.Path(sys.argv[1])); converter.size();"
        "print(converter._child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(honest._file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(10)


def test_an_interrupt_while_it_tells_of_progress_ends_it(honest: GgufConverter, tmp_path: Path) -> None:
    def interrupted(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        honest.convert(tmp_path / "out", interrupted)
    assert honest._child.pid is None
