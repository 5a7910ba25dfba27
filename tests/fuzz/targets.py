"""What is fuzzed: every reader of bytes that a stranger may send or write. Each may only refuse them."""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from shoal.client.seq2seq.sound import read_recording
from shoal.client.vision.picture_files import open_picture
from shoal.errors import BadInvite, BadWeights, ModelError, RemoteProtocolError, StepFailed, UsageError
from shoal.executor.encrypted.ckks import Ckks
from shoal.gateway.api.inference import read_infer
from shoal.gateway.errors import BadRequest, BodyTooLarge
from shoal.ledger.vouchers.voucher import escrow_domain
from shoal.ledger.x402.messages import read_payment, terms_of
from shoal.ledger.x402.refusals import PaymentNotTaken
from shoal.models.adapters.adapter import MAX_RANK
from shoal.models.adapters.files import MOST, read_adapter_manifest
from shoal.models.adapters.peft_config import CONFIG as PEFT_CONFIG
from shoal.models.adapters.peft_config import read_scale
from shoal.models.adapters.read import WEIGHTS, read_adapter
from shoal.models.adapters.soft_prompt import read_soft_prompt
from shoal.models.checkpoint import headers
from shoal.models.checkpoint.checkpoint import INDEX, SINGLE, open_checkpoint
from shoal.models.checkpoint.llama_config import read_llama_config
from shoal.models.checkpoint.manifest import read_manifest
from shoal.models.checkpoint.parts import layout
from shoal.models.gguf import header as gguf
from shoal.models.gguf import index as gguf_index
from shoal.models.graph.manifest import (
    MAX_CROSSING,
    read_graph_manifest,
)
from shoal.models.quantized.entry import QuantizedEntry
from shoal.models.quantized.reader import read_quantized
from shoal.models.store.generation import read_generation_config, sampling_defaults, token_ids
from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer.decoders import harmless
from shoal.models.text.tokenizer.files import CONFIG, TOKENIZER, read_files
from shoal.models.untrusted.bounded_json import MAX_DEPTH, parse
from shoal.net.identity import verify
from shoal.net.reach import control
from shoal.net.reach.reachability import decode_offer
from shoal.swarm import anti_entropy
from shoal.swarm import invite as invite_codes
from shoal.swarm.announcement import unseal
from shoal.swarm.failure import suspicion
from shoal.swarm.invite import read_invite
from shoal.training.federated.demo.coefficients import coefficient_bytes, read_coefficients
from shoal.training.federated.demo.transform import CHUNK
from shoal.training.federated.int8 import unpack_int8
from shoal.training.federated.statements import read_statement
from shoal.trust.answer import (
    check_answer,
    find_contradiction,
    read_kept_answer,
)
from shoal.trust.attestation.evidence import AttestationRefused, read_evidence
from shoal.trust.attestation.verify import verify_quote
from shoal.trust.operator import read_operator_statement
from shoal.types import Span
from shoal.wire.framing import Assembler
from shoal.wire.messages import (
    decode,
)
from tests.fuzz.honest import HONEST_CONFIG, HONEST_PEFT, NOW, PIECES, QUANTISED, SIZE_OF_GGUF, weights_of
from tests.fuzz.honest import safetensors as honest_safetensors


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


def federated(data: bytes) -> None:
    """What members of a federated run sign, and what they send of their updates."""
    with suppress(RemoteProtocolError):
        read_statement(data, verify)
    for kept in (1, 16):
        payload = data[: coefficient_bytes(CHUNK, kept)].ljust(coefficient_bytes(CHUNK, kept), b"\1")
        read_coefficients(payload, CHUNK, kept)
    unpack_int8(data, max(0, len(data) - 4))


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
    (folder / SINGLE).write_bytes(weights_of(QUANTISED[method]))
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


def adapter(data: bytes) -> None:
    """An adapter's weights: what is let in are pairs of matrices for linear layers of blocks."""
    folder = _folder("adapter")
    (folder / WEIGHTS).write_bytes(data)
    with suppress(ModelError):
        for block in read_adapter(folder, "fuzz").blocks.values():
            for low in block.values():
                assert low.down.shape[0] == low.up.shape[1] <= MAX_RANK
                assert low.bytes <= 2 * len(data)


def adapter_config(data: bytes) -> None:
    """What PEFT says of an adapter."""
    (_folder("config") / PEFT_CONFIG).write_bytes(data)
    with suppress(ModelError):
        assert 0 < read_scale(_folder("config")) < 1e6
    with suppress(ModelError):
        read_soft_prompt(_folder("config"), "fuzz")


def manifest(data: bytes) -> None:
    """What a peer says that a model, or an adapter, is made of."""
    with suppress(BadWeights):
        found = read_manifest(data)
        assert all("/" not in part.file and part.size < 1 << 62 for part in layout(found))
    with suppress(BadWeights):
        _, files = read_adapter_manifest(data)
        assert all(item.name in MOST and 0 < item.size <= MOST[item.name] for item in files.items)


def graph_manifest(data: bytes) -> None:
    """A graph's manifest; what is let in gives every span its values."""
    with suppress(BadWeights):
        read = read_graph_manifest(data)
        for end in range(1, len(read.segments) + 1):
            assert len(read.takes(Span(0, end))) <= MAX_CROSSING
            assert len(read.gives(Span(end - 1, end))) <= MAX_CROSSING


def ciphertext(data: bytes) -> None:
    """A ciphertext, of a request or of an answer: in a process of its own, as both sides read them. Of some
    SEAL aborts, which ends that process and nothing else."""
    ckks = _ckks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the child needs
        child = os.fork()
    if not child:
        faulthandler.disable()
        status = 1
        try:
            for computed in (False, True):
                with suppress(StepFailed):
                    ckks.read(data, computed=computed)
            status = 0
        except BaseException:  # noqa: BLE001  the traceback is all that is told of it
            traceback.print_exc()
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGABRT), ended


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
    """An answer with receipts, or an operator's statement, as somebody hands it on."""
    with suppress(UsageError):
        read_operator_statement(data, "operator.json", verify)
    with suppress(UsageError):
        answer = read_kept_answer(data, "answer.json")
        if len(answer.hops) * answer.tokens < 1 << 16:
            check_answer(answer, verify)
            assert find_contradiction(answer, answer, verify) is None


def payment(data: bytes) -> None:
    """What a client of x402 sends for an answer: what is read of it stands for a payment channel's terms."""
    with suppress(PaymentNotTaken):
        found = read_payment(base64.b64encode(data).decode())
        assert found.payload.voucher.amount < 1 << 128
        assert len(found.payload.voucher.signature_bytes) == 65
        assert len(terms_of(found).channel_id(escrow_domain(1337, bytes(20)))) == 32


def recording(data: bytes) -> None:
    """A WAV file: its samples are numbers between -1 and 1, and no more than its bytes."""
    with suppress(UsageError):
        found = read_recording(data)
        assert 0 < len(found.samples) <= len(data)
        assert float(abs(found.samples).max()) <= 1


def image(data: bytes) -> None:
    """A picture: no larger than it may be, however it was packed."""
    with suppress(UsageError):
        opened = open_picture(data, "image 0", 4096, "vision").convert("RGB")
        assert opened.width * opened.height <= 4096


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        header,
        frames,
        announcement,
        directory,
        federated,
        invite,
        config,
        quantization,
        relay,
        index,
        safetensors,
        adapter,
        adapter_config,
        manifest,
        graph_manifest,
        ciphertext,
        inference,
        gguf_header,
        bounded,
        decoder,
        beside,
        tokenizer,
        evidence,
        payment,
        receipts,
        recording,
        image,
    )
}
SLOW = frozenset({"tokenizer"})
"""Start a process for each input."""


@cache
def _ckks() -> Ckks:
    return Ckks(_folder("ciphertext"))


@cache
def _folder(name: str = "model") -> Path:
    """A folder of this process, in memory where there is such a place."""
    memory = Path("/dev/shm")
    root = tempfile.mkdtemp(prefix=f"shoal-fuzz-{name}-", dir=memory if memory.is_dir() else None)
    (Path(root) / SINGLE).write_bytes(honest_safetensors())
    if name == "adapter":
        (Path(root) / PEFT_CONFIG).write_bytes(HONEST_PEFT)
    if name == "beside":
        (Path(root) / "config.json").write_bytes(HONEST_CONFIG)
    return Path(root)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
