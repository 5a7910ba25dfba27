"""The file with an operator's statement about this machine, which its node announces."""

from __future__ import annotations

import time
from pathlib import Path

from shoal.errors import RemoteProtocolError, UsageError
from shoal.net.identity import verify
from shoal.trust.operator import MAX_STATEMENT, OperatorFile, OperatorStatement, read_operator_statement
from shoal.types import PeerId


def read_statement_file(path: Path) -> OperatorFile:
    """A statement of an operator; its signature holds.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_STATEMENT + 1)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}",
            check="name the file that shoal operator sign has printed",
            next_command="shoal operator sign PEER",
        ) from error
    return read_operator_statement(data, str(path), verify)


def own_statement(path: str, peer: PeerId) -> OperatorStatement | None:
    """What a file says of this machine; ``None`` where none is named.

    Raises:
        UsageError: the file is no statement, is about another peer, or does not hold now.
    """
    if not path:
        return None
    found = read_statement_file(Path(path).expanduser())
    again = f"shoal operator sign {peer}"
    if found.peer != peer:
        raise UsageError(
            f"{path} is a statement about {found.peer}, and this machine is {peer}",
            check="have the operator sign for this machine",
            next_command=again,
        )
    try:
        found.statement.check_dates(time.time())
    except RemoteProtocolError as error:
        raise UsageError(
            f"{path}: {error.message}",
            check="compare the clocks, and have the operator sign anew",
            next_command=again,
        ) from error
    return found.statement
