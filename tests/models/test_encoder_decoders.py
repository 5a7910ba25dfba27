"""Encoders with a decoder in spans: the bits of the whole model, both caches, and what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, WhisperForConditionalGeneration

from shoal.errors import BadWeights, CannotRollBack, PositionGap, StepFailed, UnsupportedModel, UsageError
from shoal.executor.modules import ModuleRunner
from shoal.models.build.load import build_span_module, load_ends_module, load_span_module
from shoal.models.build.skeleton import causal_class, read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.encoder_decoders import encoder_decoder
from shoal.models.checkpoint.manifest import ManifestItem, write_manifest
from shoal.models.checkpoint.parts import opening_items
from shoal.models.checkpoint.sizes import block_bytes, block_tensors
from shoal.models.store.describe import describe
from shoal.models.store.local_model import LocalModel
from shoal.node.speed import measure_speed
from shoal.testing.seq2seq import TEXT_FAMILIES, write_speech_to_text, write_text_to_text
from shoal.types import Digest, ModelShape, Span

IDS = [*range(20, 60), 2]
PREFIX = [280, 281, 284, 287]


def local(folder, n_blocks=12):
    """A model that nobody has described."""
    shape = ModelShape(folder.name, Digest("sha256:0"), n_blocks, 64, 192, 300)
    return LocalModel(folder.name, folder, shape.digest, shape, 0, "F32", f"folder:{folder}")


def through(parts, hidden, position=0):
    """What comes out of spans, each with its cache."""
    for part, cache in parts:
        hidden = part.forward(hidden, cache, position)
    return hidden


def parts_of(model, *spans, whole=None):
    whole = whole or {span: load_span_module(model, span) for span in spans}
    parts = [whole[span].part(span) for span in spans]
    return [(part, part.new_cache()) for part in parts]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_text_to_text(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return write_speech_to_text(tmp_path_factory.mktemp("whisper") / "whisper", max_source_positions=60)


@pytest.mark.parametrize("family", sorted(TEXT_FAMILIES))
@torch.inference_mode()
def test_spans_give_the_bits_of_the_whole_model(tmp_path, family):
    folder = write_text_to_text(tmp_path / family, family)
    ends = load_ends_module(local(folder))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = parts_of(local(folder), Span(0, 2), Span(2, 6))
    given = ends.source.last_hidden(through(encoder, ends.source.embed(IDS, 0)))
    assert torch.equal(given, model.get_encoder()(input_ids=torch.tensor([IDS])).last_hidden_state)
    decoder = parts_of(local(folder), Span(6, 7), Span(7, 10), Span(10, 12))
    assert torch.equal(through(decoder, given), given)
    hidden = through(decoder, ends.embed([0, 7, 9], 0), len(IDS))
    asked = torch.tensor([[0, 7, 9]])
    whole = model(encoder_outputs=(given,), decoder_input_ids=asked)
    assert torch.equal(ends.head(hidden), whole.logits)


@torch.inference_mode()
def test_a_model_of_speech_gives_the_bits_of_the_whole_one(whisper):
    ends = load_ends_module(local(whisper, 8))
    model = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).eval()
    features = torch.randn((1, 80, 120), generator=torch.Generator().manual_seed(5))
    encoder = parts_of(local(whisper, 8), Span(0, 1), Span(1, 4))
    given = ends.source.last_hidden(through(encoder, ends.source.hear(features)))
    assert torch.equal(given, model.get_encoder()(features).last_hidden_state)
    decoder = parts_of(local(whisper, 8), Span(4, 7), Span(7, 8))
    through(decoder, given)
    hidden = through(decoder, ends.embed(PREFIX, 0), 60)
    whole = model(encoder_outputs=(given,), decoder_input_ids=torch.tensor([PREFIX]))
    assert torch.equal(ends.head(hidden), whole.logits)
    with pytest.raises(UsageError, match="features of shape"):
        ends.source.hear(features[:, :, :100])
    with pytest.raises(UnsupportedModel, match="reads no text"):
        ends.source.embed(IDS, 0)


def test_parts_of_one_span_share_its_weights_and_give_the_same_bits(t5):
    whole, ends = load_span_module(local(t5), Span(0, 12)), load_ends_module(local(t5))
    spans = [Span(6, 8), Span(8, 12)]
    loaded, shared = (parts_of(local(t5), *spans, whole=w) for w in (None, dict.fromkeys(spans, whole)))
    given = torch.randn((1, 9, 64), generator=torch.Generator().manual_seed(5))
    for parts in (loaded, shared):
        through(parts, given)
    token = ends.embed([0], 0)
    assert torch.equal(through(loaded, token, 9), through(shared, token, 9))
    with pytest.raises(UsageError, match="a session has one"):
        whole.part(Span(5, 7))
    with pytest.raises(UsageError, match="not inside"):
        load_span_module(local(t5), Span(0, 6)).part(Span(6, 7))


def test_tokens_are_taken_back_and_what_the_encoder_gave_is_not(t5):
    ((part, cache),) = parts_of(local(t5), Span(6, 12))
    ends = load_ends_module(local(t5))
    given = torch.randn((1, 9, 64), generator=torch.Generator().manual_seed(5))
    part.forward(given, cache, 0)
    first = part.forward(ends.embed([0], 0), cache, 9)
    second = part.forward(ends.embed([7], 1), cache, 10)
    assert torch.equal(part.forward(ends.embed([0], 0), cache, 9), first)
    assert torch.equal(part.forward(ends.embed([7], 1), cache, 10), second)
    for position in (1, 8):
        with pytest.raises(CannotRollBack, match="9 rows of an encoder"):
            part.forward(ends.embed([7], 1), cache, position)
    with pytest.raises(PositionGap):
        part.forward(ends.embed([7], 1), cache, 12)
    # From the beginning another text may come.
    part.forward(given[:, :4], cache, 0)
    assert cache.length == 4
    assert not torch.equal(part.forward(ends.embed([0], 0), cache, 4), first)
    with pytest.raises(StepFailed, match="193 rows of an encoder that gives 192"):
        part.forward(torch.zeros((1, 193, 64)), cache, 0)


def test_a_forward_that_failed_half_way_leaves_nothing_behind(t5, monkeypatch):
    ((part, cache),) = parts_of(local(t5), Span(6, 12))
    ends = load_ends_module(local(t5))
    given = torch.randn((1, 9, 64), generator=torch.Generator().manual_seed(5))
    part.forward(given, cache, 0)
    block = part.blocks.modules[3]
    with monkeypatch.context() as patched:
        patched.setattr(block, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            part.forward(ends.embed([0], 0), cache, 9)
    after = part.forward(ends.embed([0], 0), cache, 9)
    ((fresh, other),) = parts_of(local(t5), Span(6, 12))
    fresh.forward(given, other, 0)
    assert torch.equal(after, fresh.forward(ends.embed([0], 0), other, 9))


def test_a_cache_takes_as_much_for_a_row_of_the_encoder_as_for_a_token(t5):
    joined = load_span_module(local(t5), Span(4, 8))
    # Two blocks' keys and values, and the row itself, of 64 floats each.
    assert joined.kv_bytes(10) == 10 * (2 * 2 + 1) * 64 * 4
    assert load_span_module(local(t5), Span(0, 6)).kv_bytes(10) == 0
    runner, seen = ModuleRunner(joined, exact=True), []
    forward = runner.forward
    runner.forward = lambda batch: seen.extend(forward(batch)) or seen
    speed = measure_speed(runner, runner.make_pool(1024))
    assert speed.step_s > 0
    assert {type(out) for out in seen} == {np.ndarray}


def test_blocks_are_numbered_through_both_sides(t5, whisper):
    model, _ = describe(t5, "t5", "folder:x", lambda *_: None)
    assert (model.shape.n_blocks, model.shape.context) == (12, 192)
    assert describe(whisper, "w", "folder:x", lambda *_: None)[0].shape.context == 124
    blocks = block_tensors(open_checkpoint(t5), 12)
    assert {entry.name.split(".")[0] for block in blocks[:6] for entry in block} == {"encoder"}
    assert {entry.name.split(".")[0] for block in blocks[6:] for entry in block} == {"decoder"}
    assert len(block_bytes(local(whisper, 8), "int8")) == 8


def test_a_node_that_gets_its_weights_from_peers_has_the_biases_of_positions_from_the_first(t5):
    entries = open_checkpoint(t5).tensors.values()
    items = [ManifestItem(e.name, e.size, "0" * 64, e.dtype, e.shape) for e in entries]
    manifest = write_manifest({}, items)
    names = [manifest.items[number].name for number in opening_items(manifest)]
    assert [name.split(".")[0] for name in names] == ["decoder", "encoder"]
    assert all(
        name.endswith("block.0.layer.0.SelfAttention.relative_attention_bias.weight") for name in names
    )


def test_what_makes_no_sense_is_refused(t5, tmp_path):
    with pytest.raises(UsageError, match="not split over processes"):
        build_span_module(local(t5), Span(0, 2))
    with pytest.raises(UnsupportedModel, match="an encoder and a decoder"):
        causal_class(read_model_config(open_checkpoint(t5)))
    said = json.loads((t5 / "config.json").read_text())
    for fields in (
        {"num_layers": 0},
        {"num_decoder_layers": 5000},
        {"n_positions": "x"},
        {"num_layers": True},
    ):
        with pytest.raises(BadWeights, match="not a number in"):
            encoder_decoder(said | fields)
    with pytest.raises(BadWeights, match="not a token"):
        encoder_decoder(said | {"decoder_start_token_id": -1})
    assert encoder_decoder(said | {"model_type": "bart"}) is None
