"""The process that drives llama.cpp's library: JSON lines in, JSON lines out. Run as a file, never imported.

It calls ``llama_decode`` as llama.cpp's own ``llama-bench`` does, and takes the likeliest token of each row.
It imports nothing of Shoal: a library that crashes takes nothing with it.

llama.cpp's records of parameters grow with every release, always after the fields that are used here. So each
is declared as far as those go, with more room than any has had. That the fields are where they should be is
seen by their default values, and by asking the library afterwards.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import Any

import numpy as np

ROOM = 1024
"""Bytes for the fields of a record that are not used here."""
PIECE = 512
"""Tokens of one call of a prefill, as many as llama.cpp computes together by default."""
ROWS = 2048
"""The most rows of one call, llama.cpp's default."""
MORE = 64
"""Tokens of a session beyond what was asked for."""
ALL_LAYERS = 999
DEFAULTS = (512, 2048, 512, 1)
"""Of ``n_ctx``, ``n_batch``, ``n_ubatch`` and ``n_seq_max``."""
GPU_LAYERS = (-1, 0, 99, ALL_LAYERS)
"""What ``n_gpu_layers`` has been by default."""
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}
CPU, GPU, IGPU = range(3)
"""Kinds of a device."""
ERRORS = 4
"""The level of a message that tells of an error."""


class LibraryRefusal(Exception):
    """What was asked for cannot be done; its text says why."""


class ModelParams(ctypes.Structure):
    """``llama_model_params``."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("more", c_uint8 * ROOM),
    )


class ContextParams(ctypes.Structure):
    """``llama_context_params``."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("more", c_uint8 * ROOM),
    )


class QuantizeParams(ctypes.Structure):
    """``llama_model_quantize_params``."""

    _fields_ = (
        ("nthread", c_int32),
        ("ftype", c_int32),
        ("output_tensor_type", c_int32),
        ("token_embedding_type", c_int32),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("more", c_uint8 * ROOM),
    )


class LlamaBatch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
ADD_SERVER = ctypes.CFUNCTYPE(c_void_p, c_char_p)
START_SERVER = ctypes.CFUNCTYPE(None, c_char_p, c_char_p, c_size_t, c_size_t, POINTER(c_void_p))

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG, c_void_p)),
    "llama_print_system_info": (c_char_p, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_quantize_default_params": (QuantizeParams, ()),
    "llama_model_quantize": (c_uint32, (c_char_p, c_char_p, POINTER(QuantizeParams))),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_desc": (c_int32, (c_void_p, c_char_p, c_size_t)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_n_seq_max": (c_uint32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_batch_init": (LlamaBatch, (c_int32, c_int32, c_int32)),
    "llama_decode": (c_int32, (c_void_p, LlamaBatch)),
    "llama_get_logits_ith": (POINTER(c_float), (c_void_p, c_int32)),
    "ggml_backend_load_all_from_path": (None, (c_char_p,)),
    "ggml_backend_dev_count": (c_size_t, ()),
    "ggml_backend_dev_get": (c_void_p, (c_size_t,)),
    "ggml_backend_dev_type": (c_int, (c_void_p,)),
    "ggml_backend_dev_description": (c_char_p, (c_void_p,)),
    "ggml_backend_reg_by_name": (c_void_p, (c_char_p,)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_reg_dev_count": (c_size_t, (c_void_p,)),
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_register": (None, (c_void_p,)),
}
"""What each function that is called gives and takes."""

Row = tuple[int, int, int, bool]
"""A token, its position and its session, and whether its logits are asked for."""


class Library:
    """libllama in a folder, with its backends."""

    def __init__(self, folder: Path) -> None:
        file = library_in(folder)
        try:
            self._loaded = ctypes.CDLL(str(file))
        except OSError as error:
            raise LibraryRefusal(f"{file.name} cannot be loaded: {error}") from error
        self.last_error = ""
        self._listening = LOG(self._hear)  # for as long as the library may call it
        for name, (gives, takes) in SIGNATURES.items():
            function = getattr(self._loaded, name, None)
            if function is None:
                raise LibraryRefusal(f"{file.name} has no {name}: it is too old, or too new")
            function.restype, function.argtypes = gives, takes
        self.call("llama_log_set", self._listening, None)
        # Backends may be libraries of their own, one for each kind of CPU: the best is taken.
        self.call("ggml_backend_load_all_from_path", str(folder).encode())
        self.call("llama_backend_init")
        asked = self.call("llama_context_default_params")
        if (asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max) != DEFAULTS:
            raise LibraryRefusal(f"{file.name} has parameters in another order than is known here")
        if self.call("llama_model_default_params").n_gpu_layers not in GPU_LAYERS:
            raise LibraryRefusal(f"{file.name} has a model's parameters in another order than is known here")

    def call(self, name: str, *arguments: object) -> Any:
        """Call one of ``SIGNATURES``."""
        return getattr(self._loaded, name)(*arguments)

    def devices(self, kinds: Sequence[int]) -> list[int]:
        """The devices of such kinds."""
        found = [self.call("ggml_backend_dev_get", n) for n in range(self.call("ggml_backend_dev_count"))]
        return [device for device in found if self.call("ggml_backend_dev_type", device) in kinds]

    def rpc(self, name: str) -> int | None:
        """The address of a function of the RPC backend, where there is one."""
        backend = self.call("ggml_backend_reg_by_name", b"RPC")
        return backend and self.call("ggml_backend_reg_get_proc_address", backend, name.encode())

    def _hear(self, level: int, text: bytes, _: object) -> None:
        if level == ERRORS:
            self.last_error = text.decode(errors="replace").strip()[:400]


def library_in(folder: Path) -> Path:
    """The file of libllama in ``folder``."""
    for pattern in ("libllama.so", "libllama.dylib", "libllama.*so*", "libllama.*dylib"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise LibraryRefusal(f"{folder} has no libllama")


class Model:
    """One GGUF file, and the contexts in which it is measured."""

    def __init__(self, library: Library, request: dict[str, Any]) -> None:
        self._library = library
        self._threads = int(request["threads"])
        devices = self._remote(request["rpc"]) if request["rpc"] else []
        if request["gpu"]:
            devices = library.devices((GPU, IGPU))
            if not devices:
                raise LibraryRefusal("this build of llama.cpp finds no GPU")
        params = library.call("llama_model_default_params")
        chosen = (c_void_p * (len(devices) + 1))(*devices, None)
        params.devices = ctypes.addressof(chosen)
        params.n_gpu_layers = ALL_LAYERS if devices else 0
        self._model = library.call("llama_model_load_from_file", str(request["file"]).encode(), params)
        if not self._model:
            raise LibraryRefusal(f"the model cannot be loaded: {library.last_error}")
        vocab = library.call("llama_model_get_vocab", self._model)
        self._vocab = library.call("llama_vocab_n_tokens", vocab)
        self._batch = library.call("llama_batch_init", ROWS, 0, 1)
        self._contexts: dict[tuple[int, int], int] = {}
        self._filled: dict[int, int] = {}

    @property
    def described(self) -> str:
        """Its kind, size and type, as llama.cpp names them."""
        text = ctypes.create_string_buffer(128)
        self._library.call("llama_model_desc", self._model, text, len(text))
        return text.value.decode(errors="replace")

    def decode(self, sessions: int, depth: int, steps: int, longest_s: float) -> float:
        """Tokens in a second over so many sessions, each decoding up to ``steps`` tokens."""
        context = self._empty(sessions, depth + steps)
        prompts = [
            ((7 * s + j) % self._vocab, j, s, j == depth - 1) for s in range(sessions) for j in range(depth)
        ]
        return self._timed(context, depth, self._run(context, prompts), steps, longest_s)

    def fill(self, tokens: int, tell: Callable[[int, int], None]) -> None:
        """Make a session with so many tokens cached, for :meth:`decode_after`."""
        if tokens not in self._filled:
            context = self._empty(1, tokens + MORE, kept=False)
            self._prefill(context, tokens, tell)
            self._filled[tokens] = context

    def decode_after(self, tokens: int, steps: int, longest_s: float) -> float:
        """Tokens in a second of one session that has so many cached."""
        if tokens not in self._filled:
            raise LibraryRefusal(f"no session has {tokens} tokens")
        context = self._filled[tokens]
        memory = self._library.call("llama_get_memory", context)
        if not self._library.call("llama_memory_seq_rm", memory, 0, tokens, -1):
            raise LibraryRefusal("its cache cannot be rolled back")
        return self._timed(context, tokens, [1], steps, longest_s)

    def prefill(self, tokens: int) -> float:
        """Tokens in a second of a prompt of so many, to its last token's logits."""
        context = self._empty(1, tokens)
        began = time.perf_counter()
        self._prefill(context, tokens, lambda done, total: None)
        return tokens / (time.perf_counter() - began)

    def requests(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Tokens in a second over sessions that open at once and each answer with ``tokens`` tokens."""
        context = self._empty(len(prompts), max(map(len, prompts)) + tokens)
        began = time.perf_counter()
        chosen: list[int] = []
        for session, prompt in enumerate(prompts):
            last = len(prompt) - 1
            chosen += self._run(context, [(t, i, session, i == last) for i, t in enumerate(prompt)])
        for step in range(tokens - 1):
            rows = [(t, len(prompts[s]) + step, s, True) for s, t in enumerate(chosen)]
            chosen = self._run(context, rows)
        return len(prompts) * tokens / (time.perf_counter() - began)

    def _remote(self, addresses: Sequence[str]) -> list[int]:
        """The devices of RPC servers."""
        found = self._library.rpc("ggml_backend_rpc_add_server")
        if not found:
            raise LibraryRefusal("this build of llama.cpp has no RPC")
        devices: list[int] = []
        for address in addresses:
            server = ADD_SERVER(found)(address.encode())
            if not server:
                raise LibraryRefusal(f"{address} is no RPC server: {self._library.last_error}")
            self._library.call("ggml_backend_register", server)
            count = self._library.call("ggml_backend_reg_dev_count", server)
            devices += [self._library.call("ggml_backend_reg_dev_get", server, n) for n in range(count)]
        return devices

    def _empty(self, sessions: int, tokens: int, *, kept: bool = True) -> int:
        """A context of empty sessions; ``kept`` for the next one of that size."""
        key = (sessions, tokens)
        context = self._contexts.get(key) if kept else None
        if context is None:
            context = self._open(sessions, tokens)
            if kept:
                self._contexts[key] = context
        self._library.call("llama_memory_clear", self._library.call("llama_get_memory", context), True)
        return context

    def _open(self, sessions: int, tokens: int) -> int:
        params = self._library.call("llama_context_default_params")
        params.n_ctx, params.n_seq_max = sessions * (tokens + MORE), sessions
        context = self._library.call("llama_init_from_model", self._model, params)
        if not context:
            raise LibraryRefusal(
                f"no room for {sessions} sessions of {tokens} tokens: {self._library.last_error}"
            )
        has = [self._library.call(name, context) for name in ("llama_n_ctx", "llama_n_seq_max")]
        if has[0] < params.n_ctx or has[1] != sessions:
            raise LibraryRefusal(
                "it does not take its parameters: they are in another order than is known here"
            )
        self._library.call("llama_set_n_threads", context, self._threads, self._threads)
        return context

    def _prefill(self, context: int, tokens: int, tell: Callable[[int, int], None]) -> None:
        for start in range(0, tokens, PIECE):
            tell(start, tokens)
            end = min(tokens, start + PIECE)
            rows = [((11 * i) % self._vocab, i, 0, i == tokens - 1) for i in range(start, end)]
            self._run(context, rows)

    def _timed(self, context: int, position: int, tokens: list[int], steps: int, longest_s: float) -> float:
        began, done = time.perf_counter(), 0
        while done < steps and (done < 2 or time.perf_counter() - began < longest_s):
            rows = [(token, position + done, session, True) for session, token in enumerate(tokens)]
            tokens = self._run(context, rows)
            done += 1
        return len(tokens) * done / (time.perf_counter() - began)

    def _run(self, context: int, rows: Sequence[Row]) -> list[int]:
        """Compute ``rows``; the likeliest token after each whose logits are asked for."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for place, (token, position, session, asked) in enumerate(rows):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.logits[place] = 1, asked
            batch.seq_id[place][0] = session
        if code := self._library.call("llama_decode", context, batch):
            raise LibraryRefusal(f"llama_decode gave {code}: {self._library.last_error}")
        found: list[int] = []
        for place, row in enumerate(rows):
            if row[3]:
                logits = self._library.call("llama_get_logits_ith", context, place)
                found.append(int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax()))
        return found


def quantize(library: Library, request: dict[str, Any]) -> None:
    """Write a GGUF file in another type."""
    kind = request["type"]
    params = library.call("llama_model_quantize_default_params")
    if not params.quantize_output_tensor or params.pure or params.only_copy:
        raise LibraryRefusal("parameters to quantize are in another order than is known here")
    params.nthread, params.ftype = int(request["threads"]), FILE_TYPES[kind]
    params.pure = not kind.endswith("_M")  # a mixture is that of several types
    files = [str(request[name]).encode() for name in ("file", "into")]
    if library.call("llama_model_quantize", *files, ctypes.byref(params)):
        raise LibraryRefusal(f"{kind} cannot be written: {library.last_error}")


def serve(library: Library, address: str, threads: int) -> None:
    """Be an RPC server with this machine's CPU; does not return."""
    found = library.rpc("ggml_backend_rpc_start_server")
    if not found:
        raise LibraryRefusal("this build of llama.cpp has no RPC")
    devices = library.devices((CPU,))[:1]
    START_SERVER(found)(address.encode(), None, threads, len(devices), (c_void_p * len(devices))(*devices))


class Driver:
    """Answers requests about one library and one model."""

    def __init__(self, library: Library, tell: Callable[[int, int], None]) -> None:
        self._library = library
        self._tell = tell
        self._model: Model | None = None

    def answer(self, request: dict[str, Any]) -> Any:
        """What ``request`` asks for, as JSON can hold it."""
        what = request.pop("do")
        if what == "describe":
            gpus = self._library.devices((GPU, IGPU))
            return {
                "system": self._library.call("llama_print_system_info").decode(errors="replace"),
                "rpc": bool(self._library.rpc("ggml_backend_rpc_add_server")),
                "gpus": [self._library.call("ggml_backend_dev_description", gpu).decode() for gpu in gpus],
            }
        if what == "quantize":
            return quantize(self._library, request)
        if what == "load":
            self._model = Model(self._library, request)
            return self._model.described
        if self._model is None:
            raise LibraryRefusal("no model is loaded")
        if what == "fill":
            return self._model.fill(**request, tell=self._tell)
        if what in ("decode", "decode_after", "prefill", "requests"):
            return getattr(self._model, what)(**request)
        raise LibraryRefusal(f"{what} is not known here")


def main() -> None:
    """Answer the requests of stdin, or serve: arguments: a folder, then ``serve``, an address and threads."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the library may print
    folder = Path(sys.argv[1])
    if sys.argv[2:3] == ["serve"]:
        try:
            serve(Library(folder), sys.argv[3], int(sys.argv[4]))
        except LibraryRefusal as why:
            sys.exit(str(why))
        return

    def say(line: str) -> None:
        answers.write(line + "\n")
        answers.flush()

    driver: Driver | None = None
    for line in sys.stdin:
        try:
            if driver is None:
                driver = Driver(Library(folder), lambda done, total: say(f"+{done} {total}"))
            said: dict[str, Any] = {"ok": driver.answer(json.loads(line))}
        except LibraryRefusal as why:
            said = {"error": str(why)}
        say(json.dumps(said))


if __name__ == "__main__":
    main()
