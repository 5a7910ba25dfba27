"""A question to a chain's node by JSON-RPC, and what went wrong with it by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from shoal.errors import ChainError, IncompatibleLibrary
from shoal.ledger.recursion import recursion_limit_kept

if TYPE_CHECKING:
    from web3 import Web3

ASK_WITHIN_S = 10.0
NOT_YET = "not yet"
"""What the contract says to who takes back too early."""

Answered = TypeVar("Answered")


def connect(url: str, provider: Any = None) -> Web3:
    """A connection by HTTP, or by what is given.

    Raises:
        IncompatibleLibrary: the extra is not installed.
    """
    try:
        with recursion_limit_kept():
            from web3 import HTTPProvider, Web3  # noqa: PLC0415  an extra, which only this needs
    except ImportError as error:
        raise IncompatibleLibrary(
            "a chain's node is asked by web3, which is not installed",
            check="install the extra",
            next_command="pip install 'shoal[ledger]'",
        ) from error
    if provider is None:
        # Our own loops ask again: they know what was sent, and for how long it is worth it.
        options = {"timeout": ASK_WITHIN_S}
        provider = HTTPProvider(url, request_kwargs=options, exception_retry_configuration=None)
    return Web3(provider)


def ask(question: Callable[[], Answered], node: str) -> Answered:
    """What the node answers.

    Raises:
        ChainError: ``down``; ``reverted`` where a contract refuses, or ``not yet`` where it says that;
            ``refused`` where the node does; ``nonsense`` where what it answers is no answer.
        TransactionNotFound: it was asked for a transaction that it does not know.
    """
    from web3.exceptions import (  # noqa: PLC0415  an extra
        ContractLogicError,
        ProviderConnectionError,
        TransactionNotFound,
        Web3Exception,
        Web3RPCError,
    )

    try:
        return question()
    except TransactionNotFound:
        raise
    except ContractLogicError as error:
        why = str(error.args[0]).removeprefix("execution reverted: ")
        reason = NOT_YET if why == NOT_YET else "reverted"
        raise ChainError(f"the contract refuses: {why}", reason=reason) from error
    except (OSError, ProviderConnectionError) as error:  # those of requests are OSErrors
        raise ChainError(
            f"the chain's node at {node} does not answer: {type(error).__name__}",
            reason="down",
            check="see that it runs, and that url in chain.toml is right",
        ) from error
    except Web3RPCError as error:
        raise ChainError(
            f"the chain's node at {node} refuses: {str(error)[:300]}",
            reason="refused",
            check="see what the node writes into its log, and that url in chain.toml is right",
        ) from error
    # ValueError: what it answers is no JSON. The others: it is, and something else than what was asked for.
    except (Web3Exception, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ChainError(
            f"what answers at {node} is no chain's node, or a broken one: {str(error)[:300]}",
            reason="nonsense",
            check="see that url in chain.toml is right",
        ) from error
