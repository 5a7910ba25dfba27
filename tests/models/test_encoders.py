"""Encoders in spans: the bits of the whole model, and a refusal where those cannot be had."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from shoal.errors import BadWeights, StepFailed, UnsupportedModel, UsageError
from shoal.executor.modules import ModuleRunner
from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.sizes import block_tensors
from shoal.models.embedding.pooling import pool, unit
from shoal.models.embedding.settings import embedding_settings, encodes_only
from shoal.models.store.describe import describe
from shoal.models.store.local_model import LocalModel
from shoal.node.speed import measure_speed
from shoal.sharing.peer_weights import span_tensors
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.encoders import ENCODER_FAMILIES, write_encoder, write_pooling
from shoal.types import Digest, ModelShape, Span

SPANS = [Span(0, 2), Span(2, 3), Span(3, 6)]
IDS = [1, *range(20, 60), 2]
"""More than a window of ModernBERT's."""


def local(folder, context=128):
    """A model that nobody has described: that starts processes, and takes longer than all else here."""
    shape = ModelShape(folder.name, Digest("sha256:0"), 6, 64, context, 300)
    return LocalModel(folder.name, folder, shape.digest, shape, 0, "F32", f"folder:{folder}")


def through_spans(folder, ids, spans=SPANS):
    model = local(folder)
    ends = load_ends_module(model)
    hidden = ends.embed(ids, 0)
    for span in spans:
        module = load_span_module(model, span)
        hidden = module.forward(hidden, module.new_cache(), 0)
    return ends.last_hidden(hidden)


def reference(folder, ids):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state


@pytest.mark.parametrize("family", sorted(ENCODER_FAMILIES))
def test_spans_give_the_bits_of_the_whole_model(tmp_path, family):
    folder = write_encoder(tmp_path / family, family)
    assert torch.equal(through_spans(folder, IDS), reference(folder, IDS))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_checkpoint_with_the_head_that_it_was_trained_with_is_one_too(tmp_path, family):
    folder = write_encoder(tmp_path / family, family, whole=True)
    assert torch.equal(through_spans(folder, IDS), reference(folder, IDS))


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_part_of_a_span_shares_its_weights_and_gives_the_same_bits(tmp_path, family):
    folder = write_encoder(tmp_path / family, family)
    whole = load_span_module(local(folder), Span(0, 6))
    ends = load_ends_module(local(folder))
    hidden = ends.embed(IDS, 0)
    for span in SPANS:
        part = whole.part(span)
        hidden = part.forward(hidden, part.new_cache(), 0)
    assert torch.equal(ends.last_hidden(hidden), reference(folder, IDS))
    assert whole.kv_bytes(100) == 0
    assert whole.stateless
    assert whole.rolls_back


def test_a_text_is_taken_whole_and_leaves_nothing_for_the_next(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    module = load_span_module(local(folder), Span(0, 6))
    ends, cache = load_ends_module(local(folder)), module.new_cache()
    alone = module.forward(ends.embed(IDS, 0), cache, 0)
    module.forward(ends.embed(IDS[::-1], 0), cache, 0)
    assert torch.equal(module.forward(ends.embed(IDS, 0), cache, 0), alone)
    with pytest.raises(StepFailed, match="whole text"):
        module.forward(ends.embed(IDS, 0), cache, len(IDS))
    with pytest.raises(StepFailed, match="131 tokens: the model takes 130"):
        module.forward(torch.zeros(1, 131, 64), cache, 0)
    with pytest.raises(UnsupportedModel, match="vectors and no text"):
        ends.head(alone)


def test_a_bert_that_was_trained_to_generate_is_no_encoder(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    assert not load_span_module(local(folder), Span(0, 6)).stateless


def test_positions_that_come_before_the_first_are_not_in_the_context(tmp_path):
    contexts = {}
    for family in ("bert", "roberta"):
        model, _ = describe(write_encoder(tmp_path / family, family), family, "folder:x", lambda *_: None)
        contexts[family] = model.shape.context
    assert contexts == {"bert": 130, "roberta": 129}


def test_what_the_files_say_of_pooling_counts(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    assert embedding_settings(local(folder)).pooling == "mean"
    write_pooling(folder, "cls_token", normalize=True, max_seq_length=16, do_lower_case=True)
    found = embedding_settings(local(folder))
    assert (found.pooling, found.normalized, found.max_tokens, found.lower_case) == ("cls", True, 16, True)
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert embedding_settings(local(folder)).pooling == "last"


def test_a_decoder_gives_embeddings_only_where_its_files_say_how(tmp_path):
    folder = write_checkpoint(tmp_path / "llama")
    with pytest.raises(UsageError, match="gives no embeddings"):
        embedding_settings(local(folder))
    write_pooling(folder, "lasttoken", normalize=True)
    found = embedding_settings(local(folder))
    assert (found.encoder, found.pooling, found.normalized) == (False, "last", True)
    assert not encodes_only(local(folder))
    assert encodes_only(local(write_encoder(tmp_path / "bert")))


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")], "'Dense' in place 2"),
        ([("", "Transformer")], "no Pooling"),
        ([("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")], "'Transformer' in place 0"),
        ([("", "Transformer"), ("../elsewhere", "Pooling")], "not there"),
        ([("", "CLIPModel")], "'CLIPModel' in place 0"),
        ([], "no Pooling"),
    ],
)
def test_what_is_not_supported_is_refused_and_not_left_out(tmp_path, modules, said):
    folder = write_encoder(tmp_path / "bert")
    write_pooling(folder, "mean_tokens")
    listed = [{"path": path, "type": f"a.b.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(BadWeights, match=said):
        embedding_settings(local(folder))


def test_two_ways_of_pooling_at_once_are_refused(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    write_pooling(folder, "mean_tokens", "cls_token")
    with pytest.raises(BadWeights, match="asks for 2 ways"):
        embedding_settings(local(folder))


def test_each_way_of_pooling():
    hidden = torch.arange(6, dtype=torch.float32).reshape(3, 2).numpy()  # rows 0 1, 2 3, 4 5
    made = {
        name: pool(hidden, name).tolist()
        for name in ("cls", "last", "mean", "max", "weighted_mean", "mean_sqrt_len")
    }
    assert made["cls"] == [0, 1]
    assert made["last"] == made["max"] == [4, 5]
    assert made["mean"] == [2, 3]
    assert made["weighted_mean"] == pytest.approx([16 / 6, 22 / 6])
    assert made["mean_sqrt_len"] == pytest.approx([6 / 3**0.5, 9 / 3**0.5])
    assert unit(hidden[1]).tolist() == pytest.approx([2 / 13**0.5, 3 / 13**0.5])
    assert unit(hidden[0] * 0).tolist() == [0, 0]


def test_the_speed_of_a_span_is_measured_with_texts_from_their_beginning(tmp_path):
    module = load_span_module(local(write_encoder(tmp_path / "bert")), Span(0, 6))
    runner, seen = ModuleRunner(module, exact=True), []
    forward = runner.forward
    runner.forward = lambda batch: seen.extend(forward(batch)) or seen
    speed = measure_speed(runner, runner.make_pool(1024))
    assert speed.step_s > 0
    assert {type(out) for out in seen} == {np.ndarray}


def test_a_node_that_gets_its_weights_from_peers_asks_for_the_bias_of_positions_too(tmp_path):
    checkpoint = open_checkpoint(write_encoder(tmp_path / "mpnet", "mpnet"))
    blocks = block_tensors(checkpoint, 6)
    inside = {entry.name for block in blocks for entry in block}
    ends = [entry for name, entry in checkpoint.tensors.items() if name not in inside]
    names = {entry.name for entry in span_tensors(Span(2, 3), blocks, ends)}
    assert "encoder.relative_attention_bias.weight" in names
    assert {name.split(".")[2] for name in names} == {"2", "weight"}
