"""Who leaves sampling open gets what the model's makers recommend; who asks for the likeliest gets that."""

from __future__ import annotations

from shoal.client.recommended import sampling_for
from shoal.client.sampling import Sampling
from shoal.models.store.local_model import SamplingDefaults

MAKERS = SamplingDefaults(temperature=0.2, top_p=0.9, repetition_penalty=1.1)


def test_what_is_left_open_is_as_the_makers_recommend():
    assert sampling_for(MAKERS, {"temperature": None}, 1.0) == Sampling(
        temperature=0.2, top_p=0.9, repetition_penalty=1.1
    )
    assert sampling_for(MAKERS, {"temperature": 0.7, "top_p": None, "seed": 3}, 1.0) == Sampling(
        temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=3
    )


def test_who_asks_for_the_likeliest_gets_nothing_else():
    assert sampling_for(MAKERS, {"temperature": 0, "top_p": None}, 1.0) == Sampling()
    assert sampling_for(MAKERS, {}, 1.0) == Sampling()
    assert sampling_for(MAKERS, {"top_p": 0.5}, 1.0) == Sampling(top_p=0.5)


def test_where_nobody_says_anything_there_is_a_temperature_to_fall_back_on():
    assert sampling_for(SamplingDefaults(), {"temperature": None}, 1.0) == Sampling(temperature=1.0)
    assert sampling_for(SamplingDefaults(temperature=0), {"temperature": None}, 1.0) == Sampling()
