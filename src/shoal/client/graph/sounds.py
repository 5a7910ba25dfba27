"""Sounds as the numbers that a graph takes."""

from __future__ import annotations

from pathlib import Path

from shoal.client.seq2seq.sound import read_wav
from shoal.errors import UsageError
from shoal.executor.arrays import Array
from shoal.models.graph.manifest import GraphValue, sizes_text
from shoal.models.graph.preprocess import MAX_RATE, Preprocess

SOUNDS = (".wav",)
MAX_BYTES = 256 << 20
"""Of samples: what goes in one message. They may be of whatever a graph measures, and last for as long."""
RATES = range(1, MAX_RATE + 1)


def sound_array(file: Path, how: Preprocess, value: GraphValue) -> Array:
    """A sound as one of a graph's inputs: one channel of samples from -1 to 1, in its last size.

    Raises:
        UsageError: it cannot be read, or has another rate than ``how`` says, or the input takes no sound.
    """
    try:
        with file.open("rb") as stream:
            sound = read_wav(stream, str(file), rates=RATES, most_seconds=MAX_BYTES, most_bytes=MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}", check="check the path of the sound") from error
    if how.rate is not None and sound.rate != how.rate:
        raise UsageError(
            f"{file} has {sound.rate} samples a second, and the graph wants {how.rate}",
            check=f"convert it first: ffmpeg -i {file.name} -ar {how.rate} converted.wav",
        )
    shape = value.shape if value.shape is not None else (-1,)
    if not shape or any(size > 1 for size in shape[:-1]):
        raise UsageError(
            f"the input {value.name[:80]!r} takes no sound: it is {sizes_text(shape)}",
            check="give it an array, as .npy, .npz or .json",
        )
    return sound.samples.reshape((1,) * (len(shape) - 1) + sound.samples.shape)
