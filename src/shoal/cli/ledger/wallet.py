"""`shoal wallet`: a key of a chain, and the payment channels that it pays and is paid over. Test chains only.

The key is never printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.ledger.chain.client import ChainClient
    from shoal.ledger.settling import PaymentBooks
    from shoal.ledger.vouchers.keys import ChainKey
    from shoal.ledger.vouchers.payee import PayeeAccount
    from shoal.ledger.vouchers.payer import PayerAccount

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.config import Settings
from shoal.errors import EXIT_FAILURE, BadLedgerFile, ChainError, UsageError
from shoal.option_values import parse_coins, show_coins
from shoal.types import PeerId

PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", help="File with the password; asked for if not given.", show_default=False
    ),
]
PayeeArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help="Whom you want to pay.")]
AmountArgument = Annotated[
    str, typer.Argument(metavar="AMOUNT", help="How much, in the chain's coin, for example 0.05.")
]
NodeOption = Annotated[
    str,
    typer.Option(
        "--peer",
        metavar="PEER",
        help="The node that is to serve you for it: no other one of the same wallet does.",
        show_default=False,
    ),
]
ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help="As shoal wallet channels lists it.")]
MostCostOption = Annotated[
    str, typer.Option("--most-cost", help="What the gas of one transaction may cost, in the chain's coin.")
]
MOST_COST = "0.1"


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Pay and be paid over a test chain.", no_args_is_help=True)
    for command in (create, show, deploy, fund, channels, withdraw, recover, collect, stake, unstake):
        group.command()(command)
    app.add_typer(group, name="wallet")


def create(password_file: PasswordFileOption = None, as_json: options.JsonOption = False) -> None:
    """Create a wallet and print its address.

    An existing one is kept. The file can be read by other wallets.
    """
    from shoal.ledger.vouchers.typed_data import show_address
    from shoal.ledger.wallet import create_wallet

    settings = options.settings()
    path = settings.paths.wallet
    if path.exists():
        raise UsageError(f"{path} is there already", next_command="shoal wallet show")
    key = create_wallet(path, _password(password_file, confirm=True))
    address = show_address(key.address)
    emit({"address": address, "path": path}, as_json, lambda: address)
    if not as_json:
        say(f"keep a copy of {path} and its password: nobody else can replace them")
        say(f"keep a copy of {settings.paths.payments} too: terms and vouchers of payment channels are in it")
        say("(what you paid into, shoal wallet recover finds again on the chain)")


def show(as_json: options.JsonOption = False) -> None:
    """Print the wallet's address and what it has.

    What it has is asked of the chain's node, where a chain is set up.
    """
    from shoal.ledger.chain.client import ChainClient
    from shoal.ledger.chain.deployment import read_deployment
    from shoal.ledger.vouchers.typed_data import show_address
    from shoal.ledger.wallet import wallet_address

    settings = options.settings()
    address = wallet_address(settings.paths.wallet)
    data: dict[str, Any] = {"address": show_address(address), "path": settings.paths.wallet}
    lines = [f"address  {data['address']}"]
    if settings.paths.chain.exists():
        client = ChainClient(read_deployment(settings.paths.chain))
        client.check()
        balance = client.balance(address)
        data |= {"chain_id": client.deployment.chain_id, "balance_wei": str(balance)}
        lines += [f"chain    {client.deployment.chain_id}", f"balance  {show_coins(balance)}"]
    emit(data, as_json, lambda: "\n".join(lines))


def deploy(
    url: Annotated[str, typer.Option(help="Where a node of the test chain answers.", show_default=False)],
    chain_id: Annotated[int, typer.Option(help="The chain's number.", show_default=False)],
    most_cost: MostCostOption = MOST_COST,
    password_file: PasswordFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Put the contracts on a test chain, once.

    They are checked, and written to chain.toml; an existing one is kept.
    """
    from shoal.ledger.chain.client import deploy as deploy_contracts
    from shoal.ledger.chain.deployment import check_test_chain
    from shoal.ledger.vouchers.typed_data import show_address
    from shoal.ledger.wallet import open_wallet

    settings = options.settings()
    path = settings.paths.chain
    check_test_chain(chain_id)
    most = parse_coins(most_cost)
    if path.exists():
        raise UsageError(f"{path} is there already", check="move it away if you want to deploy again")
    key = open_wallet(settings.paths.wallet, _password(password_file))
    deployment = deploy_contracts(url, chain_id, key, most_cost=most)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(deployment.encoded())
    found = {name: show_address(address) for name, address in deployment.contracts.items()}
    shown = "\n".join(f"{name:10}{address}" for name, address in found.items())
    emit({"chain_id": chain_id, "contracts": found, "path": path}, as_json, lambda: shown)
    if not as_json:
        say(f"written to {path}; give it to whom you want to trade with, without a key in its url")


def fund(
    payee: PayeeArgument,
    amount: AmountArgument,
    peer: NodeOption,
    most_cost: MostCostOption = MOST_COST,
    password_file: PasswordFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Pay into the payment channel to ADDRESS for what a node does. Without one, one is opened."""
    from shoal.ledger import settling
    from shoal.ledger.vouchers.typed_data import parse_address

    settings = options.settings()
    to, wei, node = parse_address(payee), parse_coins(amount), _node(peer)
    client, key = opened(settings, most_cost, password_file)
    account = settling.fund(client, _books(settings), key, to, node, wei)
    data = {"channel": account.channel_id.hex(), "deposit_wei": str(account.deposit)}
    emit(data, as_json, lambda: f"{data['channel']}  {show_coins(account.deposit)} in escrow")


def channels(as_json: options.JsonOption = False) -> None:
    """List the payment channels of this machine.

    Where a payment was under way when the command ended, the chain's node is asked whether it has come.
    """
    settings = options.settings()
    books = _books(settings)
    rows: list[dict[str, Any]] = []
    for channel_id in books.paying.channel_ids():
        try:
            rows.append(_paying(_arrived(settings, books, books.paying.read(channel_id))))
        except BadLedgerFile as error:
            rows.append({"channel": channel_id.hex(), "role": "pays", "damaged": error.message})
    for channel_id in books.paid.channel_ids():
        try:
            rows.append(_paid(books.paid.read(channel_id)))
        except BadLedgerFile as error:
            rows.append({"channel": channel_id.hex(), "role": "paid by", "damaged": error.message})
    emit({"channels": rows}, as_json, lambda: _table(rows))
    damaged = [row["damaged"] for row in rows if "damaged" in row]
    for message in damaged:
        say(f"{message}; restore it from a copy of {settings.paths.payments}")
    if damaged:
        raise typer.Exit(EXIT_FAILURE)


def withdraw(
    channel: ChannelArgument,
    most_cost: MostCostOption = MOST_COST,
    password_file: PasswordFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Take out what is yours of a payment channel.

    Where you are paid, that is what vouchers gave. Where you pay, it is what is left, which is asked for
    first: the payee has a day to redeem what it has.
    """
    from shoal.ledger import settling

    settings = options.settings()
    books = _books(settings)
    channel_id = _named(books, channel)
    client, key = opened(settings, most_cost, password_file)
    done = settling.withdraw(client, books, key, channel_id)
    emit({"channel": channel_id.hex(), "done": done}, as_json, lambda: done)
    if done in ("close requested", "waiting") and not as_json:
        say("run the same command again when the payee's time is over, by default a day after the request")


def recover(
    from_block: Annotated[int, typer.Option(min=0, help="Block of the chain to begin at.")] = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Find the wallet's payment channels on the chain, where the folder payments was lost.

    Those in which something is left are kept again, so that they can be used and withdrawn.
    """
    from shoal.ledger import settling
    from shoal.ledger.wallet import wallet_address

    settings = options.settings()
    address = wallet_address(settings.paths.wallet)
    found = settling.recover(_client(settings), _books(settings), address, from_block)
    names = [account.channel_id.hex() for account in found]
    shown = "\n".join(f"{account.channel_id.hex()}  {show_coins(account.deposit)}" for account in found)
    emit(
        {"channels": names}, as_json, lambda: shown or "nothing is left in a payment channel that is not kept"
    )


def collect(payment: options.PaymentOption = None, as_json: options.JsonOption = False) -> None:
    """Have paid out what clients of a paid gateway owe, however little; its file of terms says where.

    A gateway that runs does this by itself where it is worth it: use this when it has ended for good.
    """
    import trio

    from shoal.gateway.payment.opening import paid_door

    settings = options.settings(payment=payment)
    door = paid_door(settings)
    if door is None:
        raise UsageError("no file says what answers cost", next_command="shoal wallet collect --payment FILE")
    claimed = trio.run(door.collect)
    several = "payment channel" if claimed == 1 else "payment channels"
    emit({"claimed": claimed}, as_json, lambda: f"claimed over {claimed} {several}")


def stake(
    amount: AmountArgument,
    most_cost: MostCostOption = MOST_COST,
    password_file: PasswordFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Stake for this machine's node, or add to its stake.

    From its next start on it counter-signs its receipts. Whoever shows that it signed two things about one
    question takes the stake. It goes back to this wallet alone.
    """
    from shoal.ledger import staking
    from shoal.ledger.chain.registry import stake_of
    from shoal.ledger.vouchers.keys import ChainKey
    from shoal.ledger.vouchers.typed_data import show_address
    from shoal.net.identity import Identity, public_key

    settings = options.settings()
    wei = parse_coins(amount)
    identity = Identity.load_or_create(settings.paths.identity)
    client, key = opened(settings, most_cost, password_file)
    found = staking.stake(client, key, settings.paths.data, public_key(identity.peer), wei)
    address = ChainKey.from_secret(found.secret).address
    total = stake_of(client, address).stake
    data = {"delegate": show_address(address), "peer": identity.peer, "stake_wei": str(total)}
    emit(data, as_json, lambda: f"{data['delegate']}  {show_coins(total)} staked for {identity.peer}")


def unstake(
    most_cost: MostCostOption = MOST_COST,
    password_file: PasswordFileOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Ask for the node's stake, and take it back a week later. Until then it can be lost as before."""
    from shoal.ledger import staking

    settings = options.settings()
    client, key = opened(settings, most_cost, password_file)
    done = staking.unstake(client, key, settings.paths.data)
    emit({"done": done}, as_json, lambda: done)
    if done != "taken back" and not as_json:
        say("run the same command again a week after the request")


def opened(settings: Settings, most_cost: str, password_file: Path | None) -> tuple[ChainClient, ChainKey]:
    """The chain that is set up, and the wallet's key.

    Raises:
        UsageError, NotAllowed, BadLedgerFile: no chain, no wallet, or a wrong password.
    """
    from shoal.ledger.wallet import open_wallet

    client = _client(settings, most_cost)
    return client, open_wallet(settings.paths.wallet, _password(password_file))


def _client(settings: Settings, most_cost: str = MOST_COST) -> Any:
    from shoal.ledger.chain.client import ChainClient
    from shoal.ledger.chain.deployment import read_deployment

    return ChainClient(read_deployment(settings.paths.chain), most_cost=parse_coins(most_cost))


def _node(text: str) -> PeerId:
    """Raises UsageError: it is no peer, which is told before anything is paid."""
    from shoal.net.identity import public_key

    try:
        public_key(PeerId(text))
    except ValueError as error:
        raise UsageError(str(error), check="give the whole id", next_command="shoal peers") from error
    return PeerId(text)


def _books(settings: Settings) -> PaymentBooks:
    from shoal.ledger.settling import PaymentBooks

    return PaymentBooks.below(settings.paths.payments)


def _arrived(settings: Settings, books: PaymentBooks, account: PayerAccount) -> PayerAccount:
    """The account, with what came into escrow after a ``fund`` that was interrupted."""
    from shoal.ledger.settling import refresh_payer

    if not account.on_the_way:
        return account
    try:
        return refresh_payer(_client(settings), books, account.channel_id)
    except (ChainError, UsageError) as error:
        say(f"it is not known what has come of {show_coins(account.on_the_way)} on the way: {error.message}")
        return account


def _named(books: PaymentBooks, text: str) -> bytes:
    """The payment channel that begins so."""
    kept = [*books.paying.channel_ids(), *books.paid.channel_ids()]
    found = [channel_id for channel_id in kept if text and channel_id.hex().startswith(text.lower())]
    if not found:
        raise UsageError(
            f"no payment channel is kept whose name begins with {text!r}",
            check="copy the name again; if payments was lost, restore it, or find what you paid into",
            next_command="shoal wallet recover",
        )
    if len(found) != 1:
        message = f"{text!r} begins the names of {len(found)} payment channels"
        raise UsageError(message, check="give more of the name", next_command="shoal wallet channels")
    return found[0]


def _password(file: Path | None, *, confirm: bool = False) -> str:
    if file is None:
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True))
    from shoal.ledger.wallet import read_password

    return read_password(file)


def _paying(account: PayerAccount) -> dict[str, Any]:
    row = _row(account, "pays", account.terms.payee, account.signed, 0)
    return row | {"on_the_way_wei": str(account.on_the_way)}


def _paid(account: PayeeAccount) -> dict[str, Any]:
    from shoal.ledger.vouchers.redeeming import next_try

    row = _row(account, "paid by", account.terms.payer, account.paid, account.redeemed)
    row |= {"to_redeem_wei": str(account.unredeemed), "closes_at": account.closes_at, "redeem_failed": None}
    if failed := account.redeem_failed:
        row["redeem_failed"] = {"times": failed.times, "why": failed.why, "again_at": next_try(account)}
    return row


def _row(
    account: PayerAccount | PayeeAccount, role: str, other: bytes, paid: int, redeemed: int
) -> dict[str, Any]:
    from shoal.ledger.vouchers.typed_data import show_address

    return {
        "channel": account.channel_id.hex(),
        "role": role,
        "other": show_address(other),
        "chain_id": account.domain.chain_id,
        "contract": show_address(account.domain.contract),
        "deposit_wei": str(account.deposit),
        "paid_wei": str(paid),
        "redeemed_wei": str(redeemed),
    }


def _table(rows: list[dict[str, Any]]) -> Table | str:
    from rich.table import Table

    if not rows:
        return "no payment channels; shoal wallet fund opens one"
    names = ("channel", "role", "address", "chain", "contract", "in escrow", "paid", "redeemed", "to redeem")
    table = Table(*names, box=None)
    for row in rows:
        if "damaged" in row:
            table.add_row(row["channel"][:16], row["role"], "damaged")
            continue
        deposit, paid, redeemed = (
            show_coins(int(row[f"{name}_wei"])) for name in ("deposit", "paid", "redeemed")
        )
        if on_the_way := int(row.get("on_the_way_wei", 0)):
            deposit += f" (and {show_coins(on_the_way)} on the way)"
        place = (str(row["chain_id"]), row["contract"])
        left = _to_redeem(row)
        table.add_row(row["channel"][:16], row["role"], row["other"], *place, deposit, paid, redeemed, left)
    return table


def _to_redeem(row: dict[str, Any]) -> str:
    """What is not redeemed yet, until when it has to be, and what has become of it."""
    if "to_redeem_wei" not in row:
        return ""
    parts = [show_coins(int(row["to_redeem_wei"]))]
    if (closes_at := row["closes_at"]) is not None:
        parts.append(f"until {_moment(closes_at)}, when the payer may take all back")
    if failed := row["redeem_failed"]:
        tries = "once" if failed["times"] == 1 else f"{failed['times']} times"
        parts.append(f"tried {tries} in vain, again at {_moment(failed['again_at'])}: {failed['why']}")
    return "; ".join(parts)


def _moment(since_epoch: float) -> str:
    """A time as people here write it."""
    from datetime import datetime

    return f"{datetime.fromtimestamp(since_epoch).astimezone():%Y-%m-%d %H:%M}"
