"""A GGUF file's tensors come in float32 by the names of the model, and each is told of."""

from __future__ import annotations

from pathlib import Path

import torch

from shoal.models.seam.config import AutoConfig
from shoal.models.seam.gguf import read_tensors
from shoal.models.seam.logging import quiet
from shoal.models.seam.tokenizer import AutoTokenizer
from tests.models.ggufs import write_gguf


def test_config_tokenizer_and_tensors_are_read_from_the_file(tmp_path: Path) -> None:
    meant = write_gguf(tmp_path / "model.gguf", tmp_path / "scratch")
    seen: list[tuple[int, int]] = []
    with quiet():
        config = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        found = read_tensors(tmp_path / "model.gguf", config, lambda done, total: seen.append((done, total)))
    assert (config.model_type, config.num_hidden_layers) == ("llama", 6)
    assert tokenizer.encode("fish")
    assert found.keys() == meant.keys()
    for name, tensor in found.items():
        assert torch.as_tensor(tensor).dtype == torch.float32 and torch.equal(
            torch.as_tensor(tensor), meant[name]
        )
    assert seen == [(done, len(meant)) for done in range(len(meant))]
