"""The self-test of privacy reads from hidden states what can be read, and says no more than it has found."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from shoal import config
from shoal.bench import privacy
from shoal.bench.privacy import LEARNED, TESTED, WINDOW, Attacker, attack
from shoal.cli.doctor import privacy as command
from shoal.cli.main import run
from shoal.executor.arrays import join

SILENT = partial(lambda *_: None)


@pytest.fixture
def settings(tmp_path):
    return config.load({"threads": 1}, {"SHOAL_HOME": str(tmp_path)})


@pytest.fixture
def book():
    """Texts of random words, in which half of the vocabulary is common."""
    chance = np.random.default_rng(0)
    words = chance.integers(0, 128, (LEARNED + TESTED + 4, WINDOW))
    return np.where(chance.random(words.shape) < 0.1, words + 128, words).tolist()


def test_whoever_has_the_public_weights_reads_every_token_at_every_depth(
    families, settings, book, monkeypatch
):
    monkeypatch.setattr(privacy, "MATCHING_S", 60.0)
    model = families("llama")
    leaks = attack(Attacker(model, "int8", [1, 4], settings), book, SILENT)
    assert [leak.depth for leak in leaks] == [1, 4]
    for leak in leaks:
        assert (leak.found, leak.recognised, leak.tokens) == (1.0, 1.0, WINDOW - 1)
        assert leak.ridge > 0.5 and leak.tries >= 1


def test_from_numbers_that_come_of_no_word_none_is_read(families, settings, book, monkeypatch):
    monkeypatch.setattr(privacy, "MATCHING_S", 60.0)
    attacker = Attacker(families("llama"), "int8", [1, 2], settings)
    noise = np.random.default_rng(1).normal(size=(WINDOW - 1, attacker.ends.embed([0], 0).shape[1]))
    order = np.tile(np.arange(256), (WINDOW - 1, 1))
    tried = privacy._match(attacker, 2, book[:1], [noise.astype(np.float32)], order, order[0])
    assert len(tried) == WINDOW - 1
    assert not any(one.found or one.recognised for one in tried)
    assert {one.tries for one in tried} == {256}


def test_tokens_for_which_there_is_no_time_are_not_counted(families, settings, book, monkeypatch):
    monkeypatch.setattr(privacy, "MATCHING_S", 0.0)
    [leak] = attack(Attacker(families("llama"), "int8", [2], settings), book, SILENT)
    assert (leak.tokens, leak.found) == (0, 0.0) and leak.ridge > 0.5


def test_where_the_position_is_in_the_embedding_it_is_taken_off(families, settings):
    attacker = Attacker(families("gpt2"), "int8", [1], settings)
    alone = join([attacker.ends.embed([word], 0) for word in range(100)])
    assert np.allclose(attacker.embeddings(range(100)), alone, atol=1e-6)


def test_a_model_that_is_not_here_is_named_with_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    assert run(["privacy", "SmolLM2-135M-Instruct"]) != 0
    assert "shoal models pull SmolLM2-135M-Instruct" in capsys.readouterr().err


def test_the_page_says_that_private_ends_are_no_encryption(capsys):
    from shoal.bench.privacy import DepthLeak, PrivacyReport
    from shoal.cli.output import emit

    leak = DepthLeak(depth=2, nearest=0.0, ridge=0.925, found=0.95, recognised=1.0, tokens=63, tries=86.3)
    report = PrivacyReport("tiny", "int8", 441, (leak,), 12.0)
    emit({}, False, lambda: command._shown(report))
    said = " ".join(capsys.readouterr().out.split())
    assert "92%" in said and "95%" in said and "100%" in said and "not encryption" in said
    assert command._fields(report)["depths"][0]["ridge"] == 0.925
