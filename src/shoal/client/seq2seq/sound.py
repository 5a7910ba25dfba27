"""Sound: a WAV file, read and cut into windows as long as a model listens to at once.

Only PCM is read, by the standard library. Other rates become the model's window by window, in the frequency
domain, with a second of what is before and behind each: so nothing is heard of where it was cut.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from shoal.errors import UsageError
from shoal.executor.arrays import Floats

RATE = 16000
"""Samples a second, as models of speech take them."""
RATES = range(4000, 192_001)
CHANNELS = range(1, 9)
MAX_SECONDS = 4 * 3600
MAX_BYTES = 1 << 31
"""Of samples as they are in a file."""
MARGIN_S = 1
CONVERT = "ffmpeg -i RECORDING -ac 1 -ar 16000 recording.wav"

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples between -1 and 1, of one channel."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def windows(self, seconds: int) -> Iterator[Floats]:
        """What follows each other, ``[16000 × seconds]`` each; the last may be shorter."""
        for begin in range(0, len(self.samples), seconds * self.rate):
            yield self._window(begin, seconds)

    def _window(self, begin: int, seconds: int) -> Floats:
        end = min(begin + seconds * self.rate, len(self.samples))
        if self.rate == RATE:
            return self.samples[begin:end]
        margin = MARGIN_S * self.rate
        around = np.zeros((seconds + 2 * MARGIN_S) * self.rate, np.float32)
        first, last = max(begin - margin, 0), min(begin + seconds * self.rate + margin, len(self.samples))
        around[first - begin + margin : last - begin + margin] = self.samples[first:last]
        kept = round((end - begin) * RATE / self.rate)
        return _resampled(around, (seconds + 2 * MARGIN_S) * RATE)[MARGIN_S * RATE :][:kept]


def read_recording(data: bytes, most_seconds: int = MAX_SECONDS) -> Sound:
    """A WAV file's sound; of several channels, their mean.

    Raises:
        UsageError: it is none, not PCM, empty, or too long.
    """
    return read_wav(io.BytesIO(data), "the recording", most_seconds=most_seconds)


def read_wav(
    stream: BinaryIO,
    name: str,
    *,
    rates: range = RATES,
    most_seconds: int = MAX_SECONDS,
    most_bytes: int = MAX_BYTES,
) -> Sound:
    """A WAV file's sound; of several channels, their mean.

    What its header says of its length is not counted on: whoever writes into a pipe cannot know it.

    Args:
        name: of the file, for errors.
        rates: samples a second that it may have.
        most_bytes: of its samples.

    Raises:
        UsageError: it is none, not PCM, empty, or too long.
    """
    try:
        with wave.open(stream) as opened:
            channels, width, rate = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
            if channels not in CHANNELS or rate not in rates or width not in (1, 2, 3, 4):
                raise _unread(name, f"{channels} channels of {8 * width} bits at {rate} Hz")
            most = min(most_seconds * rate, most_bytes // (channels * width))
            raw = opened.readframes(most + 1)
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:  # the last: of a size that cannot be
        raise _unread(name, str(error) or "it ends too early") from error
    raw = raw[: len(raw) - len(raw) % (channels * width)]
    if not raw:
        raise _unread(name, "it is silent: there are no samples in it")
    if len(raw) > most * channels * width:
        raise UsageError(
            f"{name} is longer than {most / rate:.0f} seconds", check="cut it into several first"
        )
    return Sound(_samples(raw, width).reshape(-1, channels).mean(1, dtype=np.float32), rate)


def _samples(raw: bytes, width: int) -> Samples:
    """Integers of so many bytes as samples of -1 to 1; WAV files have single bytes without a sign."""
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.float32) * np.float32(1 / 128) - np.float32(1)
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) * np.float32(2.0 ** (1 - 8 * width))


def _resampled(samples: Samples, count: int) -> Samples:
    """The same in ``count`` samples: what is too high for them is left out."""
    spectrum = np.fft.rfft(samples)
    spectrum = spectrum[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def _unread(name: str, what: str) -> UsageError:
    return UsageError(
        f"{name} cannot be read: {what}",
        check="give PCM in a WAV file; other recordings become one by ffmpeg",
        next_command=CONVERT,
    )
