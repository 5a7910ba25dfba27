"""Weights as they are published: read where they lie, and served by the values that the file means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shoal.executor.ends import EndsRunner
from shoal.executor.kernels import c_kernels
from shoal.executor.load import holds_published, load_ends_runner, load_runner
from shoal.executor.runner import Runner, SessionRows
from shoal.models.checkpoint.sizes import block_bytes, weight_bytes
from shoal.models.gguf.groups import LAYOUTS
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Format, Kernels, Span

from ..models.ggufs import read_folder, write_family

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
TOKENS = [1, 5, 40, 3, 7, 260, 11, 12, 13, 90]

built = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")
WITH: tuple[Kernels, ...] = ("torch",) if c_kernels.library() is None else ("auto", "torch")


def dequantised(model: LocalModel, folder: Path) -> LocalModel:
    """The same model as float32 safetensors."""
    folder.mkdir()
    save_file(read_folder(model.path), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model.path / name).read_bytes())
    return ModelStore(folder / "store").resolve(str(folder))


class Spans:
    """A model through three spans, in one session."""

    def __init__(self, model: LocalModel, format: Format, cache: Path, kernels: Kernels = "auto") -> None:
        self.ends: EndsRunner = load_ends_runner(model, format, threads=1, cache=cache, kernels=kernels)
        self.runners: list[Runner] = [
            load_runner(model, span, format, kv="auto", threads=1, cache=cache, kernels=kernels)
            for span in THIRDS
        ]
        self._states = [runner.open(runner.span, runner.make_pool(64).promise(64)) for runner in self.runners]
        self._position = 0

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits ``[tokens, vocab]`` of the next tokens."""
        hidden = self.ends.embed(tokens, self._position)
        for runner, state in zip(self.runners, self._states, strict=True):
            (out,) = runner.forward([SessionRows(state, self._position, hidden, 64)])
            assert isinstance(out, np.ndarray), out
            hidden = out
        (out,) = self.ends.heads([hidden])
        assert isinstance(out, np.ndarray)
        self._position += len(tokens)
        return out

    def greedy(self, steps: int) -> list[int]:
        """The likeliest tokens after TOKENS, one after another."""
        found = [int(self.logits(TOKENS)[-1].argmax())]
        while len(found) < steps:
            found.append(int(self.logits(found[-1:])[-1].argmax()))
        return found


def logits(model: LocalModel, format: Format, cache: Path, kernels: Kernels = "auto") -> np.ndarray:
    """Logits ``[tokens, vocab]`` through three spans: most of the tokens, then the others one by one."""
    spans = Spans(model, format, cache, kernels)
    pieces = (TOKENS[:6], *([token] for token in TOKENS[6:]))
    return np.concatenate([spans.logits(piece) for piece in pieces])


@pytest.mark.parametrize(
    ("family", "formats"),
    [
        ("llama", ("bf16", "int4")),
        ("llama_untied", ("fp32", "int8")),
        ("gemma3", ("fp32", "int4")),
        ("phi3", ("int8",)),
    ],
)
def test_a_gguf_file_read_in_place_gives_the_bits_of_its_float32_copy(
    family: str, formats: tuple[Format, ...], tmp_path: Path
) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", family)
    model = ModelStore(tmp_path / "store").resolve(str(tmp_path / "m.gguf"))
    copy = dequantised(model, tmp_path / "copy")
    assert model.dtype == "Q4_1"
    assert model.digest != copy.digest
    for format in formats:
        found = logits(model, format, tmp_path / "cache")
        expected = logits(copy, format, tmp_path / "cache")
        if format == "fp32":  # torch's: the last bit depends on where in memory a matrix begins
            assert np.abs(found - expected).max() < 1e-5
        else:
            assert np.array_equal(found, expected)
        assert np.isfinite(found).all()
        assert torch.from_numpy(found).std() > 0


# ---- the integers as they are ----

WIDE: dict[str, int] = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
"""Whole blocks of every type."""
MIXED = {"": "Q4_K", "v_proj": "Q6_K", "down_proj": "Q6_K", "up_proj": "Q5_0"}
"""Matrices that are held together in different types, as files of llama.cpp's have them."""
MODELS: tuple[dict[str, str], ...] = (
    MIXED,
    {"": "Q4_1", "o_proj": "Q4_0", "down_proj": "Q8_0", "gate_proj": "Q5_1", "up_proj": "Q5_1"},
    {"": "Q2_K", "o_proj": "Q3_K", "down_proj": "Q5_K", "gate_proj": "Q3_K", "up_proj": "Q4_0"},
    {"": "IQ4_NL", "o_proj": "IQ4_XS", "down_proj": "MXFP4", "k_proj": "Q4_1"},
)


def resolved(folder: Path, types: dict[str, str], family: str = "llama_untied") -> LocalModel:
    write_family(folder / "m.gguf", folder / "hf", family, types=types, **WIDE)
    return ModelStore(folder / "store").resolve(str(folder / "m.gguf"))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("types", MODELS, ids=lambda types: "+".join(types.values()))
def test_logits_of_published_integers_are_those_of_the_values_that_they_mean(
    types: dict[str, str], tmp_path: Path
) -> None:
    model = resolved(tmp_path, types)
    exact = logits(model, "fp32", tmp_path / "cache")
    for kernels in WITH:
        assert apart(logits(model, "published", tmp_path / "cache", kernels), exact) < 1e-2, kernels
    assert not (tmp_path / "cache" / "packed").exists(), "no second copy on the disk"


@built
def test_the_kernels_round_activations_alone_and_to_16_bits(tmp_path: Path) -> None:
    """What is left is mostly the cache of keys and values, in bfloat16 as with any format."""
    model = resolved(tmp_path, {})
    exact = logits(dequantised(model, tmp_path / "copy"), "fp32", tmp_path / "cache")
    found = apart(logits(model, "published", tmp_path / "cache"), exact)
    assert found < apart(logits(model, "bf16", tmp_path / "cache"), exact)
    assert found < apart(logits(model, "int8", tmp_path / "cache"), exact)


@built
@pytest.mark.parametrize(
    "types", [{"": "Q8_0"}, {"": "Q5_0", "down_proj": "Q5_1"}], ids=lambda types: "+".join(types.values())
)
def test_greedy_tokens_of_8_bits_are_those_of_float32(types: dict[str, str], tmp_path: Path) -> None:
    model = resolved(tmp_path, types)
    exact = Spans(model, "fp32", tmp_path / "cache").greedy(32)
    assert Spans(model, "published", tmp_path / "cache").greedy(32) == exact
    assert len(set(exact)) > 3


def test_every_type_is_in_one_of_these_models() -> None:
    assert {kind for types in MODELS for kind in types.values()} == set(LAYOUTS)


@built
@pytest.mark.parametrize("types", [{}, {"down_proj": "F16"}, MIXED], ids=str)
def test_what_blocks_take_in_memory_is_known_from_the_headers(
    types: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = resolved(tmp_path, types)
    runner = load_runner(model, Span(0, 6), "published", kv="auto", threads=1, cache=tmp_path)
    assert sum(block_bytes(model, "published")) == pytest.approx(runner.tensor_bytes, rel=0.01)
    assert weight_bytes(model, "published") < weight_bytes(model, "bf16")
    rounded = "blocks 0:6: matrices in F16 are rounded to bf16" in caplog.text
    assert rounded == ("F16" in types.values())


@built
async def test_nodes_keep_a_model_as_published_by_themselves_and_take_over_from_each_other(
    tmp_path: Path,
) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    model, halves = str(tmp_path / "m.gguf"), [Span(0, 3), Span(3, 6), Span(3, 6)]
    async with memory_swarm(tmp_path / "home", tmp_path / "m.gguf", halves, format="auto") as swarm:
        assert {node.engine.format for node in swarm.nodes} == {"published"}
        whole = swarm.client.generate(model, TOKENS, max_tokens=12)
        assert [delta async for delta in whole]
        answer = swarm.client.generate(model, TOKENS, max_tokens=12)
        async for _ in answer:
            if len(answer.token_ids) == 4:
                lost = answer.route[1].peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == lost))
        assert answer.token_ids == whole.token_ids
        assert len(answer.reroutes) == 1


def test_a_model_is_kept_as_published_where_its_integers_can_be_computed_with(tmp_path: Path) -> None:
    for name, types, family, kept in (
        ("q4", {}, "llama", True),
        ("mixed", MIXED, "qwen3", True),
        ("f16", {"": "F16"}, "llama", False),
        ("half", {"": "F16", "down_proj": "Q4_0"}, "llama", False),
    ):
        (tmp_path / name).mkdir()
        assert holds_published(resolved(tmp_path / name, types, family)) == kept, name
    plain = write_checkpoint(tmp_path / "plain")
    assert not holds_published(ModelStore(tmp_path / "store").resolve(str(plain)))
