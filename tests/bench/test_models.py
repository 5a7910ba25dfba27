"""The random model: a real checkpoint, the same every time, that any program can be asked about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.bench.models import RANDOM, Shape, measured_model, write_random
from shoal.config import Settings
from shoal.models.store.local_model import LocalModel
from tests.bench.conftest import SMALL


def silent(label: str, done: int, total: int) -> None:
    pass


def test_transformers_loads_it_and_its_words_are_its_tokens(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w5 w7"}])["input_ids"] == [5, 7]


def test_it_has_the_shape_of_tinyllama() -> None:
    shape = Shape()
    per_block = shape.hidden * (2 * shape.hidden + 2 * shape.hidden // 8 + 3 * shape.ffn)
    assert 1.0e9 < shape.blocks * per_block + 2 * shape.vocab * shape.hidden < 1.2e9


def test_the_same_shape_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    write_random(tmp_path / "again", SMALL)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(names) == 3
    for name in names:
        ours, theirs = load_file(folder / name), load_file(tmp_path / "again" / name)
        assert all(ours[key].equal(theirs[key]) for key in ours)


def test_it_is_found_in_the_cache_and_other_models_where_they_are(
    settings: Settings, folder: Path, model: LocalModel
) -> None:
    same, found = measured_model(settings, silent)
    assert (same, found.digest) == (settings, model.digest)
    cached = settings.paths.cache / "bench" / RANDOM
    cached.parent.mkdir(parents=True)
    cached.symlink_to(folder)
    named, found = measured_model(replace(settings, model=RANDOM), silent)
    assert (named.model, found.digest) == (str(cached), model.digest)
