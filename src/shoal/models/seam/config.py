"""A model's config, by its type: `config.json` as transformers reads it, and what a generation begins with.

Relied on: ``CONFIG_MAPPING`` knows the types; ``AutoConfig.from_pretrained`` reads a folder without the
network and runs no code of the model's; a config's fields are attributes; ``get_text_config(decoder=True)``
is the config itself where nothing is nested; ``base_model_tp_plan`` names the style in which each layer can
be split.
"""

from __future__ import annotations

from shoal.models.seam.contract import expect_members, relied_on

with relied_on("configs"):
    from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PretrainedConfig

    expect_members(
        PretrainedConfig, "get_text_config", "base_model_tp_plan", "from_pretrained", "is_encoder_decoder"
    )

__all__ = ["CONFIG_MAPPING", "AutoConfig", "GenerationConfig", "PretrainedConfig"]
