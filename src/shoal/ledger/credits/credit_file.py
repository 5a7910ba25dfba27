"""The credits of this machine in a swarm, in a file that its node and its clients share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from blake3 import blake3
from filelock import FileLock, Timeout
from msgspec import Struct

from shoal.errors import BadLedgerFile, Busy, OutOfResources
from shoal.ledger.credits.acknowledgement import MAX_SHOWN, Acknowledgement, PeerName
from shoal.ledger.credits.credit_book import MAX_PEERS, CreditBook
from shoal.types import PeerId
from shoal.whole_file import write_whole

LOCK_WITHIN_S = 5.0
MAX_FILE = 64 << 20
_CHECKSUM = 64


class KeptCredits(Struct, frozen=True):
    """What is in the file."""

    book: CreditBook = CreditBook()
    words: dict[PeerName, Acknowledgement] = {}
    """By debtor, the newest that was signed for this machine's node."""

    def with_word(self, word: Acknowledgement) -> KeptCredits:
        """With what a peer has signed for us; an older one changes nothing. Of too many the smallest goes."""
        before = self.words.get(word.debtor)
        if before is not None and before.units >= word.units:
            return self
        words = self.words | {word.debtor: word}
        if len(words) > MAX_PEERS:
            del words[min(words, key=lambda debtor: words[debtor].units)]
        return msgspec.structs.replace(self, words=words)

    def shown(self) -> tuple[Acknowledgement, ...]:
        """What to show to others: the words that say most."""
        return tuple(sorted(self.words.values(), key=lambda one: -one.units)[:MAX_SHOWN])


class CreditFile:
    """Reads and changes it. To be called from a thread: it waits for the disk, and for other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(KeptCredits)

    @classmethod
    def of(cls, folder: Path, swarm: str) -> CreditFile:
        """That of a swarm, by its name on this machine."""
        return cls(folder / f"{swarm}.credits")

    def read(self) -> KeptCredits:
        """What is kept; nothing where there is no file.

        Raises:
            BadLedgerFile: it is damaged.
            OutOfResources: it cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                data = stream.read(MAX_FILE + 1)
        except FileNotFoundError:
            return KeptCredits()
        except OSError as error:
            raise self._unusable(error) from error
        checksum, body = data[:_CHECKSUM], data[_CHECKSUM + 1 :]
        if len(data) > MAX_FILE or blake3(body).hexdigest().encode() != checksum:
            raise self._damaged("its contents do not fit its checksum")
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from error

    def change(self, change: Callable[[KeptCredits], KeptCredits]) -> KeptCredits:
        """Write what ``change`` makes of it, while nobody else does. It is on the disk on return.

        Raises:
            Busy: another process holds it, for long.
            BadLedgerFile, OutOfResources: as :meth:`read`; or it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_WITHIN_S):
                before = self.read()
                after = change(before)
                if after is not before:
                    body = msgspec.json.encode(after)
                    write_whole(self.path, blake3(body).hexdigest().encode() + b"\n" + body, replace=True)
                return after
        except Timeout as error:
            raise Busy(f"another process holds {self.path}") from error
        except OSError as error:
            raise self._unusable(error) from error

    def mark(self) -> int:
        """Another one each time that the file has changed; 0 where there is none."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._unusable(error) from error

    def served_by(self, peer: PeerId, units: int) -> int:
        """A peer has served us. Returns what it has in all. Raises as :meth:`change`."""
        kept = self.change(lambda now: msgspec.structs.replace(now, book=now.book.gave_us(peer, units)))
        return kept.book.peers[peer].given

    def _damaged(self, why: str) -> BadLedgerFile:
        return BadLedgerFile(
            f"{self.path} is damaged: {why}",
            check="restore it from a copy, or move it away: then all peers begin anew here",
            next_command="shoal credits",
        )

    def _unusable(self, error: OSError) -> OutOfResources:
        message = f"{self.path}: {error.strerror}"
        return OutOfResources(message, check="check that this user may read and write it")
