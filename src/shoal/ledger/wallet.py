"""This machine's key of a chain, in a file that other wallets read too: under a password, by scrypt.

https://ethereum.org/developers/docs/data-structures-and-encoding/web3-secret-storage, version 3.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import BadLedgerFile, IncompatibleLibrary, NotAllowed, OutOfResources, UsageError
from shoal.ledger.recursion import recursion_limit_kept
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ChainAddress, parse_address, show_address
from shoal.whole_file import write_whole

MAX_FILE = 1 << 16
LEAST_PASSWORD = 8
SCRYPT_ROUNDS = 1 << 17
"""As go-ethereum has it: a second, and 128 MiB, for each guess."""
MOST_MEMORY = 1 << 30
"""Of scrypt, in bytes, whatever a file asks for."""
MOST_PASSES = 1 << 22
"""Of PBKDF2, with which some wallets write: some seconds."""


def create_wallet(path: Path, password: str, *, rounds: int = SCRYPT_ROUNDS) -> ChainKey:
    """Make a key and write its file, for its owner alone.

    Raises:
        UsageError: there is a file already, which is kept; or the password is too short.
        OutOfResources: it cannot be written.
        IncompatibleLibrary: the extra is not installed.
    """
    if len(password) < LEAST_PASSWORD:
        raise UsageError(
            f"the password has fewer than {LEAST_PASSWORD} characters", check="choose a longer one"
        )
    key = ChainKey.generate()
    account = _account()
    encrypted: Any = account.encrypt(key.secret, password, kdf="scrypt", iterations=rounds)
    encrypted["address"] = key.address.hex()
    _write_new(path, msgspec.json.encode(encrypted))
    return key


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, and overwrites none."""
    try:
        write_whole(path, data, replace=False)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is there already",
            check="move it away if you want another: without it, its money is lost",
            next_command="shoal wallet show",
        ) from error
    except OSError as error:
        raise OutOfResources(
            f"{path} cannot be written: {error.strerror}",
            check="check that there is room, and that this user may write there",
        ) from error


def wallet_address(path: Path) -> ChainAddress:
    """Whose wallet it is, without the password.

    Raises:
        UsageError: there is none.
        BadLedgerFile: it is damaged.
        NotAllowed: others on this machine may read it.
    """
    try:
        return parse_address(str(_read(path).get("address", "")))
    except UsageError as error:
        if path.exists():
            raise _damaged(path, "it names no address") from error
        raise


def open_wallet(path: Path, password: str) -> ChainKey:
    """The key in a file.

    Raises:
        UsageError: there is no file.
        NotAllowed: the password is wrong, or others on this machine may read the file.
        BadLedgerFile: it is damaged.
        IncompatibleLibrary: the extra is not installed.
    """
    address = wallet_address(path)
    encrypted = _read(path)
    _check_cost(path, encrypted["crypto"].get("kdfparams"))
    account = _account()
    try:
        key = ChainKey.from_secret(bytes(account.decrypt(encrypted, password)))
    except ValueError as error:
        if "MAC" not in str(error):
            raise _damaged(path, str(error)) from error
        raise NotAllowed(f"the password of {path} is wrong", check="type it again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if key.address != address:
        raise _damaged(path, f"its key is not that of {show_address(address)}")
    return key


def read_password(path: Path) -> str:
    """The password that a file of one line says.

    Raises:
        UsageError: it cannot be read, or has more than ``MAX_FILE`` bytes.
    """
    check = "give a file of one line, with the password of the wallet"
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
        password = data.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", check=check) from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} has more than {MAX_FILE} bytes: it is no password", check=check)
    return password


def _read(path: Path) -> dict[str, Any]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        raise UsageError(
            f"this machine has no wallet: there is no {path}", next_command="shoal wallet create"
        ) from error
    if mode & 0o077:
        raise NotAllowed(
            f"{path} may be read by others on this machine, who can then try passwords",
            check="find out who could read it",
            next_command=f"chmod 600 {path}",
        )
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if len(data) > MAX_FILE or found.get("version") != 3 or not isinstance(found.get("crypto"), dict):
        raise _damaged(path, "it is no key file of version 3")
    return found


def _check_cost(path: Path, asked: Any) -> None:
    """Refuse a file that would take this machine's memory, or forget about time."""
    found: dict[str, Any] = asked if isinstance(asked, dict) else {}
    n, r, p, c = (found.get(name, 1) for name in "nrpc")
    if not all(type(one) is int and one > 0 for one in (n, r, p, c)):
        raise _damaged(path, "what it says of its password is no number")
    if 128 * n * r > MOST_MEMORY or p > 16 or c > MOST_PASSES:
        raise _damaged(path, "it asks for more memory or time than a wallet needs")


def _damaged(path: Path, why: str) -> BadLedgerFile:
    return BadLedgerFile(f"{path} is damaged: {why}", check="restore it from a copy")


def _account() -> Any:
    try:
        with recursion_limit_kept():
            from eth_account import Account  # noqa: PLC0415  an extra, which only this needs
    except ImportError as error:
        raise IncompatibleLibrary(
            "wallets need eth-account, which is not installed",
            check="install the extra",
            next_command="pip install 'shoal[ledger]'",
        ) from error
    return Account
