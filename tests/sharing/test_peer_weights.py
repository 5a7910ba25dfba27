"""Models from the peers of a swarm in memory, put into a store: by name or digest, whole or a span of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shoal import config
from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.checkpoint.manifest import ManifestItem, write_manifest
from shoal.models.checkpoint.parts import missing_parts
from shoal.models.gguf.index import write_index
from shoal.models.gguf.weights import block_size
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.models.text.codec import TextCodec
from shoal.sharing.peer_weights import PeerWeights
from shoal.sharing.pulled_folder import PulledFolder
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.weight_server import serve_weights
from shoal.swarm.announcement import Served
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.testing.memory import World
from shoal.types import Span

BLOCKS, WIDTH = 3, 256
Arrays = Mapping[str, NDArray[Any]]
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": BLOCKS,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
MATRICES = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the models has one, and to find that out would start a process for each."""

    def load(path: Path) -> TextCodec:
        raise BadWeights(f"{path} has no tokenizer")

    monkeypatch.setattr(TextCodec, "load", load)


def llama(matrix: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Llama's tensors, of which each matrix of a block is these, by what its name ends with."""
    found: dict[str, NDArray[Any]] = {
        "model.embed_tokens.weight": np.ones((32, WIDTH), np.float32),
        "model.norm.weight": np.ones(WIDTH, np.float32),
        "lm_head.weight": np.ones((32, WIDTH), np.float32),
    }
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{norm}.weight"] = np.full(WIDTH, block + 1, np.float32)
        for name in MATRICES:
            found |= {f"{prefix}{name}.{end}": np.array(value) for end, value in matrix.items()}
    return found


def write_model(folder: Path, tensors: Arrays, **fields: Any) -> Path:
    """A folder of a model in one file."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


def nf4() -> dict[str, NDArray[Any]]:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [WIDTH, WIDTH]}
    return {
        "weight": np.arange(WIDTH * WIDTH // 2, dtype=np.uint8)[:, None],
        "weight.absmax": np.ones(WIDTH * WIDTH // 64, np.float32),
        "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }


def int8() -> dict[str, NDArray[Any]]:
    return {
        "weight": np.ones((WIDTH, WIDTH), np.int8),
        "SCB": np.ones(WIDTH, np.float32),
        "weight_format": np.array(0, np.uint8),
    }


def write_plain(folder: Path) -> Path:
    return write_model(folder, llama({"weight": np.eye(WIDTH, dtype=np.float32)}))


def write_nf4(folder: Path) -> Path:
    return write_model(
        folder, llama(nf4()), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )


def write_int8(folder: Path) -> Path:
    return write_model(
        folder, llama(int8()), quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )


def write_gguf(folder: Path) -> Path:
    """As the store makes one of a GGUF file: its config, and where each tensor lies in the file."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    file, entries, begin = folder / "model.gguf", list[TensorEntry](), 128
    chance = np.random.default_rng(0)
    with file.open("wb") as stream:
        stream.write(bytes(begin))
        for name, array in llama({"weight": np.eye(WIDTH, dtype=np.float32)}).items():
            kind = "F32" if array.ndim == 1 else "Q4_K" if "_proj" in name else "Q8_0"
            each, size = block_size(kind) if kind != "F32" else (1, 4)
            raw = bytes(array.tobytes() if kind == "F32" else _blocks(chance, array.size // each, size))
            heads = 4 if name.endswith(("q_proj.weight", "k_proj.weight")) else 0
            entries.append(TensorEntry(name, kind, array.shape, file, begin, len(raw), heads))
            stream.write(raw)
            begin += len(raw)
    write_index(folder, entries)
    return folder


def _blocks(chance: np.random.Generator, count: int, size: int) -> bytes:
    """Blocks of codes: whatever they are, no scale is NaN or infinite."""
    return (chance.integers(0, 100, (count, size), np.uint8) & 0x3B).tobytes()


async def member_in(world: World, nursery: trio.Nursery) -> Member:
    network = world.network()
    first = next(iter(world.peers))
    bootstrap = [f"/memory/{first}/p2p/{first}"] if first != network.peer else []
    clock = Clock(trio.current_time, trio.current_time)
    member = Member(network, announce_s=10, expiry_s=30, bootstrap=bootstrap, clock=clock)
    await nursery.start(member.run)
    return member


@dataclass
class Giving:
    """A peer that serves a model under the name ``fish`` and gives its weights, and the world it is in."""

    world: World
    nursery: trio.Nursery
    model: LocalModel

    async def puller(self, home: Path, swarm: str = "home") -> PeerWeights:
        """One who has nothing but a home."""
        settings = config.load({"swarm": swarm}, {"SHOAL_HOME": str(home)})
        return PeerWeights(await member_in(self.world, self.nursery), settings, ModelStore(home / "models"))


@asynccontextmanager
async def giving(tmp_path: Path, folder: Path) -> AsyncGenerator[Giving]:
    store = ModelStore(tmp_path / "giver")
    model = await trio.to_thread.run_sync(store.resolve, str(folder))
    async with trio.open_nursery() as nursery:
        world = World()
        member = await member_in(world, nursery)
        shared = SharedModel.open(store, model)
        await nursery.start(partial(serve_weights, member.network, shared, 0))
        member.served = lambda: Served(
            "fish", model.digest, BLOCKS, WIDTH, 128, 32, 0, 3, "fp32", 64, 64, 0, 1.0
        )
        await member.announce()
        yield Giving(world, nursery, model)
        nursery.cancel_scope.cancel()


def stored_bytes(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is here of each tensor, as it is stored: its bytes, and what they are to mean."""
    found: dict[str, tuple[Any, ...]] = {}
    entries = open_checkpoint(folder).stored
    absent = missing_parts(entries)
    for entry in entries:
        if entry.file not in absent:
            with entry.file.open("rb") as stream:
                stream.seek(entry.begin)
                meaning = (entry.dtype, tuple(entry.shape), entry.heads, entry.less)
                found[entry.name] = (*meaning, stream.read(entry.size))
    return found


WRITERS = {"plain": write_plain, "gguf": write_gguf, "nf4": write_nf4, "bnb8": write_int8}


@pytest.mark.parametrize("kind", WRITERS)
async def test_a_span_comes_by_name_and_the_rest_later_as_it_is_in_the_file(
    kind: str, tmp_path: Path
) -> None:
    folder = WRITERS[kind](tmp_path / "fish")
    async with giving(tmp_path, folder) as g:
        weights = await g.puller(tmp_path / "home")
        model = await weights.resolve("fish")
        assert model.digest == g.model.digest
        await weights.fetch_span(model, Span(1, 2))
        whole = stored_bytes(folder)
        block = {name: kept for name, kept in whole.items() if name.startswith("model.layers.1.")}
        have = stored_bytes(model.path)
        assert block.items() <= have.items()
        other = sum(len(kept[-1]) for name, kept in have.items() if name not in block)
        assert other < 20_000, "what a checkpoint is opened with, and nothing else"
        await weights.fetch_all(model)
        assert stored_bytes(model.path) == whole
        assert weights.report.done == sum(len(kept[-1]) for kept in whole.values())


async def test_two_who_pull_the_same_model_at_once_bring_it_once(tmp_path: Path) -> None:
    async with giving(tmp_path, write_plain(tmp_path / "fish")) as g:
        one, two = [await g.puller(tmp_path / "home") for _ in range(2)]
        models: list[LocalModel] = []

        async def pull(weights: PeerWeights) -> None:
            model = await weights.resolve("fish")
            await weights.fetch_all(model)
            models.append(model)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, one)
            nursery.start_soon(pull, two)
        assert models[0].path == models[1].path
        size = sum(len(kept[-1]) for kept in stored_bytes(models[0].path).values())
        assert one.report.done + two.report.done == size


async def test_a_name_under_which_another_model_was_begun_gets_a_number(tmp_path: Path) -> None:
    async with giving(tmp_path, write_plain(tmp_path / "fish")) as g:
        other = write_manifest({}, [ManifestItem("a", 4, "0" * 64, "F32", (1,))])
        _, begun = ModelStore(tmp_path / "home/models").shared_folder("fish", other.digest)
        PulledFolder(begun, other)
        model = await (await g.puller(tmp_path / "home")).resolve("fish")
        assert (model.name, model.digest) == ("fish-2", g.model.digest)
        shared = open_checkpoint(model.path).manifest
        assert shared is not None
        with pytest.raises(BadWeights, match="another model is there"):
            PulledFolder(begun, shared)
