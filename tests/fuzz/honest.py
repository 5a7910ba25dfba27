"""Honest input of each fuzz target, to make others of."""

from __future__ import annotations

import io
import json
import math
import struct
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from shoal.executor.encrypted.ckks import EncryptedMap, SecretKey
from shoal.executor.encrypted.parameters import PARAMETERS
from shoal.models.checkpoint.manifest import ManifestItem, write_manifest
from shoal.models.graph.manifest import (
    GraphManifest,
    GraphSegment,
    GraphValue,
    GraphWeight,
    LinearMap,
    write_graph_manifest,
)
from shoal.net.identity import Identity
from shoal.net.reach import control
from shoal.net.reach.reachability import RelayOffer, encode_offer
from shoal.swarm import anti_entropy, membership
from shoal.swarm.announcement import Announcement, Served, seal
from shoal.swarm.invite import write_invite
from shoal.testing.byhand import a_step, framed, rows
from shoal.testing.tee.intel import FakeMachine
from shoal.testing.tee.nitro import FakeEnclave
from shoal.testing.tee.snp import FakeChip
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    PlannedMember,
    RoundPlan,
    Said,
    TermsStatement,
    sign_statement,
)
from shoal.training.federated.terms import FederatedTerms
from shoal.trust.answer import (
    HopReceipts,
    KeptAnswer,
    KeptWindow,
)
from shoal.trust.attestation.evidence import Binding
from shoal.trust.operator import OperatorFile, state
from shoal.trust.receipt import sign_windows
from shoal.trust.rows import RowLog
from shoal.wire.cache_names import CacheName, KeepCache
from shoal.wire.federating import (
    FederatedStatement,
    RunWanted,
    SecretList,
    SecretShare,
    SecretShown,
    StateGiven,
    StateNotGiven,
    StateWanted,
    UpdatePart,
)
from shoal.wire.fetching import Fetch, Fetched, NotFetched
from shoal.wire.fields import NextHop
from shoal.wire.inferring import ArraySpec, Infer, InferEncrypted, Inferred, InferredEncrypted
from shoal.wire.messages import (
    Attest,
    Attested,
    Close,
    Failed,
    GetReceipts,
    Hello,
    HopTime,
    Locate,
    Message,
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
    encode,
    payload_bytes,
)
from shoal.wire.paying import Acknowledged, Paid, PaymentDue, PaymentOffer, ShownCredit
from shoal.wire.proofs import Prove, Proved
from shoal.wire.training import NotTrained, Train, Trained, TunedLayer

NOW = 1_700_000_000.0
SIZE_OF_GGUF = 104

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
        credit=ShownCredit("me", NOW + 60, b"s" * 64, (b"word",)),
        payment=PaymentOffer(5, 31337, b"c" * 20, b"terms", b"s" * 65),
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
    Prove(S, b"n" * 16, 40, 1, 0, 3),
    Proved(S, 1, 3, 0, "not int8"),
    Close(S),
    KeepCache(S, (CacheName(64, b"k" * 16),)),
    Infer(S, 4, (ArraySpec(2, "float32", (1, 3)), ArraySpec(5, "bool", ()))),
    Inferred(S, 4, (ArraySpec(9, "int64", (0, 2)),), 12, 3),
    InferEncrypted(S, 4, PARAMETERS, (3, 2)),
    InferredEncrypted(S, 4, (5,), -2, 12, 3),
    Fetch(7, "sha256:" + "a" * 64, "chunk", 3, 1),
    Fetched(7, 0),
    NotFetched(7, "busy", "later"),
    Attest(8, b"n" * 32),
    Attested(8, 0, "no hardware"),
    Train(
        5, "sha256:" + "a" * 64, 0, 2, True, 1, (1,), "model.layers", 1, 2.0, (TunedLayer("mlp.up", 1, 1),)
    ),
    Trained(5, 0, 12),
    NotTrained(5, "busy", "later"),
    RunWanted(b"r" * 32),
    FederatedStatement(b"r" * 32, b"statement"),
    UpdatePart(b"r" * 32, 3, b"p" * 32, 1, "mean", 4, (("12D3", "NaN"),)),
    SecretShare(b"r" * 32, 3, b"p" * 32, b"s" * 64),
    SecretList(b"r" * 32, 3, b"p" * 32, "among", (0, 2)),
    SecretShown(b"r" * 32, 3, b"p" * 32, ((1, b"s" * 32),)),
    StateWanted(b"r" * 32, 4, b"d" * 32),
    StateGiven(b"r" * 32, 4, 8),
    StateNotGiven(b"r" * 32, 4),
    Acknowledged(b"word"),
    PaymentDue(b"i" * 32, b"\x05", b"", True, "stale"),
    Paid(b"voucher"),
    Ping(9),
]

_IDENTITY = Identity.ephemeral()
_SERVED = Served("fish", "sha256:" + "a" * 64, 6, 64, 512, 300, 0, 6, "fp32", 64, 64, 0, 2.5)
_STATEMENT = state(_IDENTITY.peer, _IDENTITY.peer, NOW, 1, _IDENTITY.sign)
_OURS = msgspec.structs.replace(_SERVED, operator=_STATEMENT)
_SAID = Announcement(_IDENTITY.peer, 1, NOW, NOW + 30, ("/ip4/1.2.3.4/tcp/1",), (), _OURS, "shoal/0.1")
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


def _image(format: str, mode: str) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new(mode, (24, 16), 9).save(file, format, exif=exif)
    return file.getvalue()


def _framed(message: Message) -> bytes:
    return framed(encode(message), rows(64) if message.__class__ is Step else bytes(payload_bytes(message)))


def _statements() -> list[Said]:
    run, peer = b"r" * 32, _IDENTITY.peer
    terms = FederatedTerms(
        "fish", "sha256:" + "a" * 64, 4, 8.0, ("q_proj",), 0, 100, b"l" * 32, 9, 20, "trimmed", 1.5
    )
    return [
        TermsStatement(bytes(32), peer, terms),
        MemberCard(run, peer, ("/ip4/1.2.3.4/tcp/1",), (), 7),
        MemberStanding(run, peer, 3, b"d" * 32, True, 40, 7, b"k" * 32),
        RoundPlan(run, peer, 3, b"d" * 32, (PlannedMember(peer, 40), PlannedMember("12D3", 1))),
    ]


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf() -> bytes:
    pair = _string("general.architecture") + struct.pack("<I", 8) + _string("llama")
    listed = _string("tokens") + struct.pack("<IIQ", 9, 8, 2) + _string("a") + _string("b")
    tensor = _string("x") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + pair + listed + tensor
    return head + bytes(-len(head) % 32) + bytes(32)


def _graph(linear: LinearMap | None = None) -> bytes:
    weight = GraphWeight("w", "float32", (4, 4), "ab" * 32)
    values = tuple(
        GraphValue(name, "float32", shape) for name, shape in [("x", (-1, 4)), ("h", None), ("y", ())]
    )
    segments = (GraphSegment(0, 2, 10, 64, (0,), (1,), (0,)), GraphSegment(2, 3, 5, 0, (0, 1), (2,)))
    manifest = GraphManifest(
        2, "graph", "onnxruntime 1", 1, "cd" * 32, (weight,), values, (0,), (2,), segments, "", 9, linear
    )
    return write_graph_manifest(manifest)


def _ciphertexts() -> list[bytes]:
    """One of a request, and one of an answer."""
    with TemporaryDirectory() as folder:
        sent = SecretKey(Path(folder)).encrypt(np.full((3, 1), 0.5))
        return sent + EncryptedMap(np.ones((1, 1)), Path(folder))(sent)


def _inference() -> bytes:
    body = (
        b'{"id": "a", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[0.5, 1]]},'
        b'{"name": "b", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}],'
        b'"outputs": [{"name": "y", "parameters": {"binary_data": true}}]}'
    )
    return len(body).to_bytes(2, "big") + body + bytes(2)


HONEST_PEFT = json.dumps(
    {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "use_rslora": True,
        "target_modules": ["up_proj"],
        "modules_to_save": None,
    }
).encode()


def safetensors() -> bytes:
    return weights_of({"a": ("F32", [2, 2]), "b": ("BF16", [4])})


def weights_of(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
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


def _payment(kind: str) -> bytes:
    address, word = "0x" + "ab" * 20, "0x" + "cd" * 32
    signature = "0x" + "ef" * 65
    terms = {
        **dict.fromkeys(("payer", "payerAuthorizer", "receiver", "receiverAuthorizer", "token"), address),
        **{"withdrawDelay": 86400, "salt": word},
    }
    taking = {"validAfter": "0", "validBefore": "9", "salt": word, "signature": signature}
    payload = {
        "type": kind,
        "channelConfig": terms,
        "voucher": {"channelId": word, "maxClaimableAmount": "128", "signature": signature},
        "deposit": {"amount": "1000", "authorization": {"erc3009Authorization": taking}},
        "amount": "7",
    }
    accepted = {"scheme": "batch-settlement", "network": "eip155:1337", "asset": address, "payTo": address}
    return msgspec.json.encode(
        {"x402Version": 2, "accepted": accepted | {"amount": "128"}, "payload": payload}
    )


SEEDS: dict[str, list[bytes]] = {
    "image": [_image("PNG", "RGB"), _image("PNG", "P"), _image("JPEG", "L"), _image("JPEG", "RGB")],
    "recording": [_recording(1, 1), _recording(2, 2), _recording(3, 1), _recording(4, 8)],
    "header": [encode(m) + payload_bytes(m).to_bytes(2, "big") for m in HONEST],
    "frames": [_framed(m) for m in HONEST],
    "announcement": [seal(_SAID, _IDENTITY.sign)],
    "directory": [anti_entropy.encode(anti_entropy.DirectoryQuery(anti_entropy.EVERYONE, {b"k" * 8: 3}))],
    "federated": [sign_statement(said, _IDENTITY.sign) for said in _statements()],
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
    "safetensors": [safetensors()],
    "adapter": [
        weights_of(
            {
                f"base_model.model.model.layers.{block}.mlp.up_proj.lora_{half}.weight": (dtype, shape)
                for block in range(2)
                for half, dtype, shape in (("A", "F32", [2, 4]), ("B", "BF16", [8, 2]))
            }
        )
    ],
    "adapter_config": [HONEST_PEFT],
    "manifest": [
        write_manifest(
            {"model_type": "llama"},
            [
                ManifestItem("tokenizer.json", 3, "ab" * 32),
                ManifestItem("model.layers.3.w", 40, "cd" * 32, "Q4_1", (2, 32), 1, 1.0),
            ],
        ).raw,
        json.dumps(
            {
                "adapter": f"sha256:{'ab' * 32}",
                "files": [
                    ["adapter_config.json", 300, "ab" * 32],
                    ["adapter_model.safetensors", 9000, "cd" * 32],
                ],
                "version": 1,
            }
        ).encode(),
    ],
    "graph_manifest": [_graph(), _graph(LinearMap(3, 1, (("sigmoid",),)))],
    "ciphertext": _ciphertexts(),
    "inference": [_inference()],
    "evidence": _evidence(),
    "payment": [_payment("voucher"), _payment("deposit"), _payment("refund")],
    "receipts": [_receipts(), OperatorFile.of(_IDENTITY.peer, _STATEMENT).encoded()],
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
