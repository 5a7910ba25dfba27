"""Which models' rotary frequencies depend on the sequence's length is read from their configs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import transformers
from transformers import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shoal.models.build.rope_scaling import RECOMPUTED, RopeScaling, rope_scaling
from shoal.models.store.describe import context_of
from shoal.testing.checkpoints import BASE

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (lambda: transformers.LlamaConfig(**BASE), RopeScaling()),
        (transformers.GPT2Config, RopeScaling()),
        (lambda: transformers.LlamaConfig(**BASE, rope_parameters=LONGROPE), RopeScaling(switches=(64,))),
        (lambda: transformers.LlamaConfig(**BASE, rope_parameters=DYNAMIC), RopeScaling(stretches=(256,))),
        (
            lambda: transformers.Gemma3TextConfig(
                **BASE,
                rope_parameters={
                    "full_attention": DYNAMIC,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
            RopeScaling(stretches=(256,)),
        ),
    ],
)
def test_the_config_says_it(config, expected):
    found = rope_scaling(config())
    assert found == expected
    assert bool(found) == bool(expected.switches or expected.stretches)


def test_dynamic_scaling_stretches_the_context():
    assert context_of(transformers.LlamaConfig(**BASE, rope_parameters=DYNAMIC)) == 4 * 256
    assert context_of(transformers.LlamaConfig(**BASE, rope_parameters=LONGROPE)) == 256


@pytest.mark.models
def test_the_families_that_compute_their_keys_again_are_those_of_transformers():
    """What their ``generate`` does is nowhere in a config: it is in their code.

    Only files that have the word, or import from one that does, are imported: all would take half a minute.
    """
    word = "original_max_position_embeddings"
    assert word not in inspect.getsource(GenerationMixin.prepare_inputs_for_generation)
    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    code = {path.stem: path.read_text("utf-8") for path in files}
    have = [f".{name} import" for name, text in code.items() if word in text]
    near = [text for text in code.values() if word in text or any(name in text for name in have)]
    classes = {name for text in near for name in re.findall(r"^class (\w+)", text, re.MULTILINE)}
    found = set()
    for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in classes.intersection(names if isinstance(names, tuple) else (names,)):
            if word in inspect.getsource(getattr(transformers, name).prepare_inputs_for_generation):
                found.add(kind)
    assert found == RECOMPUTED
