"""Sounds as the numbers that a graph takes."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from shoal.client.seq2seq.sound import wav_samples
from shoal.errors import UsageError
from shoal.executor.arrays import Array
from shoal.models.graph.manifest import GraphValue, sizes_text
from shoal.models.graph.preprocess import Preprocess

SOUNDS = (".wav",)
MAX_BYTES = 256 << 20
"""Of samples: what goes in one message."""


def sound_array(file: Path, how: Preprocess, value: GraphValue) -> Array:
    """A sound as one of a graph's inputs: one channel of samples from -1 to 1, in its last size.

    Raises:
        UsageError: it cannot be read, or has another rate than ``how`` says, or the input takes no sound.
    """
    samples, rate = read_wav(file)
    if how.rate is not None and rate != how.rate:
        raise UsageError(
            f"{file} has {rate} samples a second, and the graph wants {how.rate}",
            check=f"convert it first: ffmpeg -i {file.name} -ar {how.rate} converted.wav",
        )
    shape = value.shape if value.shape is not None else (-1,)
    if not shape or any(size > 1 for size in shape[:-1]):
        raise UsageError(
            f"the input {value.name[:80]!r} takes no sound: it is {sizes_text(shape)}",
            check="give it an array, as .npy, .npz or .json",
        )
    return samples.reshape((1,) * (len(shape) - 1) + samples.shape)


def read_wav(file: Path) -> tuple[Array, int]:
    """The samples of a file, its channels averaged, and how many there are in a second.

    Raises:
        UsageError: it is no WAV file of integers, or is too long.
    """
    try:
        with wave.open(str(file), "rb") as opened:
            channels, width, rate = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
            if opened.getnframes() * channels * width > MAX_BYTES:
                raise UsageError(
                    f"{file} has more than {MAX_BYTES >> 20} MiB of samples", check="cut it first"
                )
            raw = opened.readframes(opened.getnframes())
    except (OSError, EOFError, RuntimeError, wave.Error) as error:
        raise UsageError(
            f"{file} cannot be read as a sound: {error}",
            check=f"convert it first: ffmpeg -i {file.name} -c:a pcm_s16le converted.wav",
        ) from error
    whole = raw[: len(raw) // (channels * width) * channels * width]
    return wav_samples(whole, width).reshape(-1, channels).mean(1, dtype=np.float32), rate
