"""What a model's makers say of generating with it, and what of that is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.errors import BadWeights
from shoal.models.store.generation import read_generation_config, sampling_defaults, token_ids
from shoal.models.store.local_model import SamplingDefaults


def test_what_is_recommended_is_kept() -> None:
    said = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    assert sampling_defaults(said | {"do_sample": True, "max_length": 20}) == SamplingDefaults(**said)  # type: ignore[arg-type]
    assert sampling_defaults({"eos_token_id": 2}) == SamplingDefaults()


def test_who_recommends_not_to_sample_means_the_likeliest_token() -> None:
    said = {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}
    assert sampling_defaults(said) == SamplingDefaults(temperature=0, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", 1e9),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", [0.5]),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 10**400),
        ("min_p", "much"),
        ("repetition_penalty", 0.001),
    ],
)
def test_what_cannot_be_meant_is_ignored_and_said(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert sampling_defaults({name: value, "top_p": 0.9} | {name: value}) in (
        SamplingDefaults(top_p=0.9),
        SamplingDefaults(),
    )
    assert name in caplog.text


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (2, {2}),
        ([2, 3], {2, 3}),
        (2.0, {2}),
        ("2", {2}),
        ([[2], ["3", 4.0], None], {2, 3, 4}),
        (None, set()),
        (-1, set()),
        (300, set()),
        (2.5, set()),
        (True, set()),
        ("</s>", set()),
        ({"a": 2}, set()),
    ],
)
def test_ids_are_read_however_they_are_written(value: Any, ids: set[int]) -> None:
    assert token_ids(value, 300) == ids


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    file.write_bytes(b'\xef\xbb\xbf{"top_k": 5}')
    assert read_generation_config(tmp_path) == {"top_k": 5}
    for damaged in (b"[]", b"{", b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(BadWeights, match="generation_config"):
            read_generation_config(tmp_path)
