"""What is fuzzed: every reader of bytes that a stranger may send or write. Each may only refuse them."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import tempfile
import wave
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from shoal.client.seq2seq.sound import read_recording
from shoal.errors import BadInvite, BadWeights, ModelError, RemoteProtocolError, UsageError
from shoal.gateway.api.inference import read_infer
from shoal.gateway.errors import BadRequest, BodyTooLarge
from shoal.models.checkpoint import headers
from shoal.models.checkpoint.checkpoint import INDEX, SINGLE, open_checkpoint
from shoal.models.checkpoint.llama_config import read_llama_config
from shoal.models.checkpoint.manifest import ManifestItem, read_manifest, write_manifest
from shoal.models.checkpoint.parts import layout
from shoal.models.gguf import header as gguf
from shoal.models.gguf import index as gguf_index
from shoal.models.graph.manifest import (
    MAX_CROSSING,
    GraphManifest,
    GraphSegment,
    GraphValue,
    GraphWeight,
    read_graph_manifest,
    write_graph_manifest,
)
from shoal.models.quantized.entry import QuantizedEntry
from shoal.models.quantized.reader import read_quantized
from shoal.models.store.generation import read_generation_config, sampling_defaults, token_ids
from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer.decoders import harmless
from shoal.models.text.tokenizer.files import CONFIG, TOKENIZER, read_files
from shoal.models.untrusted.bounded_json import MAX_DEPTH, parse
from shoal.net.identity import Identity, verify
from shoal.net.reach import control
from shoal.net.reach.reachability import RelayOffer, decode_offer, encode_offer
from shoal.swarm import anti_entropy, membership
from shoal.swarm import invite as invite_codes
from shoal.swarm.announcement import Announcement, Served, seal, unseal
from shoal.swarm.failure import suspicion
from shoal.swarm.invite import read_invite, write_invite
from shoal.testing.byhand import a_step, framed, rows
from shoal.testing.tee.intel import FakeMachine
from shoal.testing.tee.nitro import FakeEnclave
from shoal.testing.tee.snp import FakeChip
from shoal.trust.answer import (
    HopReceipts,
    KeptAnswer,
    KeptWindow,
    check_answer,
    find_contradiction,
    read_kept_answer,
)
from shoal.trust.attestation.evidence import AttestationRefused, Binding, read_evidence
from shoal.trust.attestation.verify import verify_quote
from shoal.trust.receipt import sign_windows
from shoal.trust.rows import RowLog
from shoal.types import Span
from shoal.wire.arrays import ArraySpec
from shoal.wire.framing import Assembler
from shoal.wire.messages import (
    Attest,
    Attested,
    Close,
    Failed,
    Fetch,
    Fetched,
    GetReceipts,
    Hello,
    HopTime,
    Infer,
    Inferred,
    Locate,
    Message,
    NextHop,
    NotFetched,
    Open,
    Opened,
    Ping,
    Receipts,
    Refused,
    Reroute,
    Reveal,
    Revealed,
    SignedWindow,
    Step,
    decode,
    encode,
    payload_bytes,
)

NOW = 1_700_000_000.0
SIZE_OF_GGUF = 104


def header(data: bytes) -> None:
    """A message's header, with the payload's size in the last two bytes."""
    with suppress(RemoteProtocolError):
        decode(data[:-2], int.from_bytes(data[-2:], "big"))


def frames(data: bytes) -> None:
    """A pipe's bytes, cut anywhere: what is held never exceeds what came."""
    assembler = Assembler(limit=1 << 16)
    cut = data[0] + 1 if data else 1
    with suppress(RemoteProtocolError):
        for start in range(0, len(data), cut):
            for _ in assembler.feed(data[start : start + cut]):
                pass
            assert assembler.held <= start + cut


def announcement(data: bytes) -> None:
    """A gossiped announcement."""
    with suppress(RemoteProtocolError):
        unseal(data, NOW, verify)


def directory(data: bytes) -> None:
    """Questions and answers between directories, and suspicions."""
    for read in (anti_entropy.read_query, anti_entropy.read_difference, suspicion.decode_suspicion):
        with suppress(RemoteProtocolError):
            read(data)


def invite(data: bytes) -> None:
    """An invite, as letters, and as what is in a code whose checksum is right."""
    with suppress(BadInvite):
        read_invite(data.decode("utf-8", "replace"))
    if len(data) < 1 << 16:
        with suppress(BadInvite):
            read_invite(_code(data))


def _code(body: bytes) -> str:
    """A code with just this in it, whose length and checksum are right."""
    data = len(body).to_bytes(2, "big") + body
    letters = base64.b32encode(data + invite_codes._checksum(data)).decode().rstrip("=")
    return invite_codes._PREFIX + letters.translate(invite_codes._TO_CROCKFORD)


def config(data: bytes) -> None:
    """A model's config, and what its makers say of generating."""
    folder = _folder()
    (folder / "config.json").write_bytes(data)
    with suppress(ModelError):
        found = open_checkpoint(folder)
        if read_llama_config(found.config) is not None:
            assert found.config["model_type"]
    (folder / "generation_config.json").write_bytes(data)
    with suppress(BadWeights):
        said = read_generation_config(folder)
        sampling_defaults(said)
        token_ids(said.get("eos_token_id"), 300)


def quantization(data: bytes) -> None:
    """What a config says of how its weights are quantised, beside weights that are quantised so."""
    folder = _folder("quantised")
    (folder / "config.json").write_bytes(b'{"model_type": "llama", "quantization_config": ' + data + b"}")
    method = next((name for name in QUANTISED if name.encode() in data), "gptq")
    (folder / SINGLE).write_bytes(_weights(QUANTISED[method]))
    with suppress(ModelError):
        for entry in open_checkpoint(folder).tensors.values():
            if isinstance(entry, QuantizedEntry):
                assert read_quantized(entry).shape == entry.shape


def relay(data: bytes) -> None:
    """What is said to a relay and by one, and what a peer says of itself."""
    with suppress(RemoteProtocolError):
        control.decode_control(data)
    with suppress(RemoteProtocolError):
        decode_offer(data)


def index(data: bytes) -> None:
    """Which tensor is in which file, safetensors or GGUF."""
    folder = _folder()
    (folder / "config.json").write_bytes(HONEST_CONFIG)
    (folder / INDEX).write_bytes(data)
    try:
        with suppress(ModelError):
            open_checkpoint(folder)
    finally:
        (folder / INDEX).unlink()
    of_gguf = _folder("gguf")
    (of_gguf / gguf_index.INDEX).write_bytes(data)
    (of_gguf / "fuzz.gguf").write_bytes(bytes(SIZE_OF_GGUF))
    with suppress(BadWeights):
        found = gguf_index.read_index(of_gguf).values()
        assert all(entry.begin + entry.size <= SIZE_OF_GGUF for entry in found)


def safetensors(data: bytes) -> None:
    """A header of weights: what is let in lies in the file, without overlaps."""
    file = _folder() / "fuzz.safetensors"
    file.write_bytes(data)
    with suppress(BadWeights):
        found = headers.read_safetensors_header(file)
        assert sum(entry.size for entry in found) <= len(data)


def manifest(data: bytes) -> None:
    """What a peer says that a model is made of."""
    with suppress(BadWeights):
        found = read_manifest(data)
        assert all("/" not in part.file and part.size < 1 << 62 for part in layout(found))


def graph_manifest(data: bytes) -> None:
    """A graph's manifest; what is let in gives every span its values."""
    with suppress(BadWeights):
        read = read_graph_manifest(data)
        for end in range(1, len(read.segments) + 1):
            assert len(read.takes(Span(0, end))) <= MAX_CROSSING
            assert len(read.gives(Span(end - 1, end))) <= MAX_CROSSING


def inference(data: bytes) -> None:
    """A body of the open inference protocol: how much of it is JSON, and the rest."""
    with suppress(BadRequest, BodyTooLarge):
        _, tensors = read_infer(data[2:], int.from_bytes(data[:2], "big"))
        assert sum(array.nbytes for array in tensors.values()) <= 8 * len(data)


def gguf_header(data: bytes) -> None:
    """A header of a GGUF file."""
    file = _folder() / "fuzz.gguf"
    file.write_bytes(data)
    with suppress(ModelError):
        found = gguf.read_gguf_header(file)
        assert all(tensor.begin + tensor.size <= len(data) for tensor in found.tensors)


def bounded(data: bytes) -> None:
    """JSON: what is let in is what Python reads, and is not deep."""
    try:
        found = parse(data, values=1000)
    except ValueError:
        return
    assert repr(found) == repr(json.loads(data))
    assert _depth(found) <= MAX_DEPTH


def decoder(data: bytes) -> None:
    """What a tokenizer states of its decoder: one that is used in this process decodes anything."""
    try:
        stated = parse(data, values=1000)
    except ValueError:
        return
    made = harmless(stated)
    if made is not None:
        for pieces in ([], [""], PIECES, PIECES[::-1], ["▁" * 40, "a" * 40]):
            assert len(made(pieces)) <= 2 * sum(map(len, pieces)) + len(pieces)


def beside(data: bytes) -> None:
    """What lies beside a tokenizer."""
    folder = _folder("beside")
    (folder / CONFIG).write_bytes(data)
    with suppress(BadWeights):
        found = read_files(folder)
        found.named({})
        found.extra()
        found.added()


def tokenizer(data: bytes) -> None:
    """A tokenizer, in the process that is made for it."""
    folder = _folder("tokenizer")
    (folder / TOKENIZER).write_bytes(data)
    (folder / CONFIG).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with suppress(BadWeights):
        codec = TextCodec.load(folder)
        for text in ("", "hello <|im_end|> é漢 aab", "a" * 100):
            with suppress(BadWeights, UsageError):
                ids = codec.prompt([{"role": "user", "content": text}]).token_ids
                codec.decode(ids + codec.encode(text))
        codec.all_bytes()


def evidence(data: bytes) -> None:
    """What a peer shows to run on."""
    with suppress(RemoteProtocolError, AttestationRefused):
        verify_quote(read_evidence(data), NOW)


def receipts(data: bytes) -> None:
    """An answer with receipts, as somebody hands it on."""
    with suppress(UsageError):
        answer = read_kept_answer(data, "answer.json")
        if len(answer.hops) * answer.tokens < 1 << 16:
            check_answer(answer, verify)
            assert find_contradiction(answer, answer, verify) is None


def recording(data: bytes) -> None:
    """A WAV file: its samples are numbers between -1 and 1, and no more than its bytes."""
    with suppress(UsageError):
        found = read_recording(data)
        assert 0 < len(found.samples) <= len(data)
        assert float(abs(found.samples).max()) <= 1


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        header,
        frames,
        announcement,
        directory,
        invite,
        config,
        quantization,
        relay,
        index,
        safetensors,
        manifest,
        graph_manifest,
        inference,
        gguf_header,
        bounded,
        decoder,
        beside,
        tokenizer,
        evidence,
        receipts,
        recording,
    )
}
SLOW = frozenset({"tokenizer"})
"""Start a process for each input."""

S = b"s" * 16
HONEST: list[Message] = [
    Hello(3, "shoal/0.1"),
    Open(
        S,
        "sha256:" + "a" * 64,
        "fp32",
        0,
        6,
        32,
        0,
        "me",
        NextHop("you", ("/ip4/1.2.3.4/tcp/1",)),
        "n1/int8/auto/rows",
    ),
    Opened(S, 7),
    Refused(S, "busy", "no room", 2.5, 3),
    msgspec.structs.replace(a_step(64, S), times=(HopTime(0, 1, 2),)),
    Failed(S, 3, 0, "step_failed", "NaN"),
    Reroute(S, 1, "me", None, 12, 2),
    Locate(S),
    GetReceipts(S, b"n" * 16, 40),
    Receipts(S, 0, (SignedWindow(7, b"i" * 32, b"o" * 32, b"s" * 64),)),
    Reveal(S, 0, 40),
    Revealed(S, 8, 0, 0, "not kept"),
    Close(S),
    Infer(S, 4, (ArraySpec(2, "float32", (1, 3)), ArraySpec(5, "bool", ()))),
    Inferred(S, 4, (ArraySpec(9, "int64", (0, 2)),), 12, 3),
    Fetch(7, "sha256:" + "a" * 64, "chunk", 3, 1),
    Fetched(7, 0),
    NotFetched(7, "busy", "later"),
    Attest(8, b"n" * 32),
    Attested(8, 0, "no hardware"),
    Ping(9),
]

_IDENTITY = Identity.ephemeral()
_SERVED = Served("fish", "sha256:" + "a" * 64, 6, 64, 512, 300, 0, 6, "fp32", 64, 64, 0, 2.5)
_SAID = Announcement(_IDENTITY.peer, 1, NOW, NOW + 30, ("/ip4/1.2.3.4/tcp/1",), (), _SERVED, "shoal/0.1")
PIECES = ["▁a", "<0xC3>", "<0xA9>", "##b", "Ġc", "", " ", "▁", "Ã", "©", "n't", "<0xFF>"]
HONEST_CONFIG = (
    b'{"model_type": "llama", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 6, "rope_scaling":'
    b'{"rope_type": "linear", "factor": 2.0}, "eos_token_id": [2, 3], "temperature": 0.6, "do_sample": true}'
)


def _recording(width: int, channels: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((channels, width, 16000, 0, "NONE", "not compressed"))
        opened.writeframes(bytes(range(24 * channels)))
    return file.getvalue()


def _framed(message: Message) -> bytes:
    return framed(encode(message), rows(64) if message.__class__ is Step else bytes(payload_bytes(message)))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf() -> bytes:
    pair = _string("general.architecture") + struct.pack("<I", 8) + _string("llama")
    listed = _string("tokens") + struct.pack("<IIQ", 9, 8, 2) + _string("a") + _string("b")
    tensor = _string("x") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + pair + listed + tensor
    return head + bytes(-len(head) % 32) + bytes(32)


def _graph() -> bytes:
    weight = GraphWeight("w", "float32", (4, 4), "ab" * 32)
    values = tuple(
        GraphValue(name, "float32", shape) for name, shape in [("x", (-1, 4)), ("h", None), ("y", ())]
    )
    segments = (GraphSegment(0, 2, 10, 64, (0,), (1,), (0,)), GraphSegment(2, 3, 5, 0, (0, 1), (2,)))
    manifest = GraphManifest(
        2, "graph", "onnxruntime 1", 1, "cd" * 32, (weight,), values, (0,), (2,), segments, structure_size=9
    )
    return write_graph_manifest(manifest)


def _inference() -> bytes:
    body = (
        b'{"id": "a", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[0.5, 1]]},'
        b'{"name": "b", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}],'
        b'"outputs": [{"name": "y", "parameters": {"binary_data": true}}]}'
    )
    return len(body).to_bytes(2, "big") + body + bytes(2)


def _safetensors() -> bytes:
    return _weights({"a": ("F32", [2, 2]), "b": ("BF16", [4])})


def _weights(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file of these tensors, each ``(dtype, shape)``: zeros, but for the shape of a layer."""
    listed: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape) in tensors.items():
        said = struct.pack("<2i", 64, 64) if name.endswith("weight_shape") else b""
        begin = len(body)
        body += said or bytes(math.prod(shape) * WIDTHS[dtype])
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(body)]}
    raw = json.dumps(listed).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def _tokenizer() -> bytes:
    cut = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "merges": [["a", "b"]]}
    added = {"id": 4, "content": "<|im_end|>", "single_word": False, "lstrip": False, "rstrip": False}
    whole = {
        "version": "1.0",
        "added_tokens": [added | {"normalized": False, "special": True}],
        "normalizer": {"type": "Replace", "pattern": {"String": "c"}, "content": "aa"},
        "pre_tokenizer": cut,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "decoder": {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        "model": model | {"unk_token": "<unk>", "continuing_subword_prefix": "", "fuse_unk": False},
    }
    return json.dumps(whole).encode()


CONTROL = (
    control.Welcome("/ip4/1.2.3.4/tcp/1", True),
    control.Reserve(),
    control.RelayRefusal(7, "full"),
    control.Call(7, "me", "meet", b"t" * control.TOKEN_BYTES, ("/ip4/1.2.3.4/tcp/1",), "cone"),
    control.CallAnswer(7, ("/ip4/1.2.3.4/tcp/1",)),
)
_encode = msgspec.msgpack.Encoder().encode

LAYER = "model.layers.0.self_attn.q_proj."
WIDTHS = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
QUANTISED: dict[str, dict[str, tuple[str, list[int]]]] = {
    "gptq": {
        LAYER + "qweight": ("I32", [8, 64]),
        LAYER + "qzeros": ("I32", [2, 8]),
        LAYER + "scales": ("F16", [2, 64]),
        LAYER + "g_idx": ("I32", [64]),
    },
    "awq": {
        LAYER + "qweight": ("I32", [64, 8]),
        LAYER + "qzeros": ("I32", [2, 8]),
        LAYER + "scales": ("F16", [2, 64]),
    },
    "fp8": {LAYER + "weight": ("F8_E4M3", [64, 64]), LAYER + "weight_scale_inv": ("F32", [2, 2])},
    "compressed-tensors": {
        LAYER + "weight_packed": ("I32", [64, 8]),
        LAYER + "weight_scale": ("BF16", [64, 2]),
        LAYER + "weight_shape": ("I32", [2]),
    },
}
"""One layer of 64 to 64 in each scheme, in groups of 32."""


def _evidence() -> list[bytes]:
    binding = Binding("a peer", bytes(32), "sha256:" + "0" * 64, "n1/int8/auto/rows", bytes(32))
    made = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    machines = (FakeMachine(made, "tdx"), FakeMachine(made, "sgx"), FakeChip(made))
    return [
        *(machine.evidence(binding).encoded() for machine in machines),
        FakeEnclave(made).evidence(binding, NOW).encoded(),
    ]


def _receipts() -> bytes:
    empty = KeptAnswer(
        model="fish",
        digest="sha256:" + "a" * 64,
        n_blocks=6,
        width=64,
        numerics="n1/int8/auto/rows",
        codec="float32",
        session=S,
        nonce=S,
        token_ids=(5, 6, 7),
        prompt_tokens=2,
        tokens=2,
        hops=(HopReceipts(_IDENTITY.peer, 0, 6, S, ()),),
    )
    (one,) = sign_windows(empty.work(0), 2, RowLog(b"i" * 64), RowLog(b"o" * 64), _IDENTITY.sign)
    kept = KeptWindow(one.sent, one.came, one.went, one.signature)
    hop = msgspec.structs.replace(empty.hops[0], receipts=(kept,))
    return msgspec.structs.replace(empty, hops=(hop,)).encoded()


SEEDS: dict[str, list[bytes]] = {
    "recording": [_recording(1, 1), _recording(2, 2), _recording(3, 1), _recording(4, 8)],
    "header": [encode(m) + payload_bytes(m).to_bytes(2, "big") for m in HONEST],
    "frames": [_framed(m) for m in HONEST],
    "announcement": [seal(_SAID, _IDENTITY.sign)],
    "directory": [anti_entropy.encode(anti_entropy.DirectoryQuery(anti_entropy.EVERYONE, {b"k" * 8: 3}))],
    "invite": [b"shoal1-00", write_invite(membership.create("home")).encode()],
    "config": [HONEST_CONFIG],
    "quantization": [
        b'{"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true, "sym": false}',
        b'{"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true}',
        b'{"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}',
        b'{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": {'
        b'"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": '
        b'"group", "group_size": 32}}}, "ignore": ["lm_head"]}',
    ],
    "relay": [encode_offer(RelayOffer(("/ip4/1.2.3.4/tcp/1",), True)), *map(_encode, CONTROL)],
    "index": [
        b'{"metadata": {"total_size": 24}, "weight_map": {"a": "fuzz.safetensors", "b": "b.safetensors"}}',
        b'{"tensors": {"a": {"type": "Q4_1", "shape": [4, 32], "file": "fuzz.gguf", "begin": 24, "heads": 2, '
        b'"less": 1.0}}}',
    ],
    "safetensors": [_safetensors()],
    "manifest": [
        write_manifest(
            {"model_type": "llama"},
            [
                ManifestItem("tokenizer.json", 3, "ab" * 32),
                ManifestItem("model.layers.3.w", 40, "cd" * 32, "Q4_1", (2, 32), 1, 1.0),
            ],
        ).raw
    ],
    "graph_manifest": [_graph()],
    "inference": [_inference()],
    "evidence": _evidence(),
    "receipts": [_receipts()],
    "gguf_header": [_gguf()],
    "bounded": [HONEST_CONFIG, b'["\\u00e9\\"{[", [1e9, -1, null]]'],
    "decoder": [
        b'{"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},'
        b'{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0'
        b"}]}",
        b'{"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}',
        b'{"type": "WordPiece", "prefix": "##", "cleanup": true}',
        b'{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}',
    ],
    "beside": [
        b'{"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>", "lstrip": false},'
        b'"eos_token": "</s>", "added_tokens_decoder": {"7": {"content": "<x>", "special": true}},'
        b'"chat_template": "{{ x }}", "additional_special_tokens": ["<y>"],'
        b'"extra_special_tokens": {"image_token": "<z>"}}'
    ],
    "tokenizer": [_tokenizer()],
}
"""Honest input of each target, to make others of."""


@cache
def _folder(name: str = "model") -> Path:
    """A folder of this process, in memory where there is such a place."""
    memory = Path("/dev/shm")
    root = tempfile.mkdtemp(prefix=f"shoal-fuzz-{name}-", dir=memory if memory.is_dir() else None)
    (Path(root) / SINGLE).write_bytes(_safetensors())
    if name == "beside":
        (Path(root) / "config.json").write_bytes(HONEST_CONFIG)
    return Path(root)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
