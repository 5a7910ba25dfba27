"""The file that samples go into, one on each line. It is all that a run needs to go on after a kill.

A line is written as a whole and is on the disk before its sample counts as made. A run that was killed leaves
at most one line cut off, which is removed when the next one begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct

from shoal.client.rollouts.prompts import RolloutPrompt
from shoal.client.sampling import sample_seed
from shoal.errors import UsageError

MAX_SAMPLE = 64 << 20
"""Bytes of a line; one of a million tokens has fewer."""


class RolloutSample(Struct, frozen=True, kw_only=True):
    """One answer to a prompt, with all that it takes to have it again."""

    prompt: int
    """The prompt's line, from 1."""
    id: str | None = None
    """Its name."""
    sample: int
    """From 0, of those of its prompt."""
    seed: int
    model: str
    digest: str
    adapter: str | None = None
    """The digest of the adapter that the nodes added."""
    numerics: str
    """By which the hops computed, as :class:`shoal.types.Numerics` is written."""
    sampling: dict[str, Any]
    """The fields of :class:`shoal.client.sampling.Sampling` but the seed."""
    max_tokens: int
    stop: list[str] = []
    prompt_token_ids: list[int]
    token_ids: list[int]
    """What was generated, the end token included."""
    logprobs: list[float]
    """Of each of them by the model's own logits: no temperature or limit changes what is reported."""
    text: str
    finish_reason: Literal["stop", "length"]
    protection: str = "fast"
    """What it has of the protection that was asked for."""
    faults: list[str] = []
    """What is wrong with what the hops have signed, or why it has less protection than was asked for."""
    receipts: str | None = None
    """The file of what the hops have signed, beside this one; ``None`` where they gave nothing, or were not
    asked."""

    @property
    def run(self) -> dict[str, Any]:
        """What is the same for all samples of a file."""
        return {
            "digest": self.digest,
            "adapter": self.adapter,
            "sampling": self.sampling,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
        }


_decode = msgspec.json.Decoder(RolloutSample)


def read_samples(path: Path) -> Iterator[tuple[int, RolloutSample]]:
    """The samples of a file, with the numbers of their lines from 1. Blocks: not on a loop.

    Raises:
        UsageError: a line is no sample.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_SAMPLE + 1):
            number += 1
            try:
                yield number, _decode.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(
                    f"{path}, line {number} is no sample ({error})",
                    check="remove the line, and its sample is made again; or name another file with --out",
                ) from error


class SampleFile:
    """A file of samples that a run adds to. To be closed in the end. Blocks: not on a loop.

    Raises:
        UsageError: another process adds to it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not of a thread: what opens the file and what closes it may run on two.
        name = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(name, blocking=False, thread_local=False)
        try:
            self._lock.acquire()
            self._stream = self._opened()
        except Timeout as error:
            raise UsageError(
                f"another process adds samples to {path}",
                check="wait for it, or name another file with --out",
            ) from error
        except OSError as error:
            self._lock.release()
            raise UsageError(
                f"{path} cannot be written: {error.strerror or error}", check="name another file with --out"
            ) from error

    def close(self) -> None:
        """Let others add to it. Closing twice is no error."""
        self._stream.close()
        self._lock.release()

    def made(self, prompts: Sequence[RolloutPrompt], run: dict[str, Any], seed: int) -> set[tuple[int, int]]:
        """The samples that are there, by their prompt's line and their number. What a kill has cut off is
        removed.

        Args:
            run: as :attr:`RolloutSample.run`.

        Raises:
            UsageError: a line is no sample, or one of another run, or is there twice.
        """
        self._repair()
        known = {prompt.line: prompt for prompt in prompts}
        found: set[tuple[int, int]] = set()
        for number, sample in read_samples(self.path):
            where = f"{self.path}, line {number}"
            other = [name for name, value in sample.run.items() if run[name] != value]
            prompt = known.get(sample.prompt)
            if prompt is not None and list(prompt.token_ids) != sample.prompt_token_ids:
                other.append("prompt")
            if sample.seed != sample_seed(seed, sample.prompt, sample.sample):
                other.append("seed")
            if other:
                raise UsageError(
                    f"{where} is a sample of another run: {', '.join(other)} differ",
                    check="name another file with --out, or give what that run was given",
                )
            if (sample.prompt, sample.sample) in found:
                raise UsageError(
                    f"{where}: sample {sample.sample} of prompt {sample.prompt} is there already",
                    check="remove the line",
                )
            found.add((sample.prompt, sample.sample))
        return found

    def add(self, samples: Sequence[RolloutSample]) -> None:
        """Write samples. On return they are on the disk.

        Raises:
            OSError: they could not be written, and none of them is there.
        """
        end = self._stream.seek(0, os.SEEK_END)
        try:
            left = memoryview(b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))
            while left:  # a disk that is nearly full takes a part, and says no the next time
                left = left[self._stream.write(left) :]
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(end)
            raise

    def _opened(self) -> FileIO:
        # Unbuffered: what was not written must not be written later.
        return self.path.open("r+b" if self.path.exists() else "x+b", buffering=0)

    def _repair(self) -> None:
        """Remove what follows the last line's end."""
        end = self._stream.seek(0, os.SEEK_END)
        whole = end
        while whole:
            start = max(0, whole - (1 << 16))
            self._stream.seek(start)
            at = self._stream.read(whole - start).rfind(b"\n")
            whole = start if at < 0 else start + at + 1
            if at >= 0:
                break
        if whole < end:
            self._stream.truncate(whole)
            os.fsync(self._stream.fileno())
