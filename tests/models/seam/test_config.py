"""Configs are read by their type, offline, and say how the family's layers can be split."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import T5Config

from shoal.models.seam.config import CONFIG_MAPPING, AutoConfig, GenerationConfig, PretrainedConfig
from shoal.testing.checkpoints import FAMILIES, write_checkpoint


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mamba", "mixtral"])
def test_a_folder_gives_the_config_of_its_type(family: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / family, family)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    assert config.model_type in CONFIG_MAPPING and type(config) is CONFIG_MAPPING[config.model_type]
    assert isinstance(config, PretrainedConfig)
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (6, 64, 300)


def test_a_type_that_is_not_known_is_not_in_the_mapping() -> None:
    assert "evil" not in CONFIG_MAPPING


def test_the_text_of_a_config_is_the_config_itself_unless_it_is_nested() -> None:
    for make in FAMILIES.values():
        config = make()
        assert config.get_text_config(decoder=True) is config and not config.is_encoder_decoder
    assert T5Config().is_encoder_decoder


def test_the_end_of_an_answer_is_in_the_generation_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "llama")
    assert GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id == 2
    config = FAMILIES["llama"]()
    assert GenerationConfig.from_model_config(config).eos_token_id == 2
