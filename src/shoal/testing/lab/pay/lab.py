"""A swarm whose hops are paid over a chain: how fast it is, and who loses what when one is killed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import trio

from shoal.config import Settings
from shoal.errors import ShoalError, UsageError
from shoal.ledger.settling import PaymentBooks, redeem
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import MICRO
from shoal.ledger.wallet import create_wallet
from shoal.local.processes import ended_with_us, make_home, split
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.option_values import parse_coins
from shoal.progress import Progress
from shoal.swarm.announcement import window_of
from shoal.testing.lab.judge import computed
from shoal.testing.lab.lab import READY_S, prepared
from shoal.testing.lab.nodes import LabNode, LabSwarm, lab_swarm
from shoal.testing.lab.pay.books import HopBooks, judge_books, judge_coins, losses, read_books
from shoal.testing.lab.pay.chain import CLIENT_GIVEN, HOP_GIVEN, LabChain, lab_chain
from shoal.testing.lab.pay.customer import FREE, CustomerAnswer, CustomerOrder
from shoal.testing.lab.pay.customers import CustomerProcess
from shoal.testing.lab.pay.report import Pace, PayReport, PayResult, Victim
from shoal.testing.lab.plan import LabPlan, Place
from shoal.testing.lab.watch import held_by, shown_figures
from shoal.types import Format

HOPS = 3
PRICE = "1"
"""Of a million tokens of one block, in coins."""
BUDGET = "1000"
PASSWORD = "of the lab alone"
ROUNDS = 1 << 10
"""Of scrypt: this wallet's coins are worth nothing."""
COMPARED_TOKENS = 64
"""Of a prompt whose answer is timed."""
PROMPT_TOKENS = 1000
SESSIONS = 6
"""Answers at once, when one is killed: together they take more than a window."""
AWAY_S = (0.5, 4.0)
"""For how long a chain's node is away."""
RESUME_S = 90.0
"""How long a session waits for a hop that comes back."""
REST_WITHIN_S = 20.0
LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PayOrder:
    """What a lab of payments is asked to do."""

    model: str | None
    format: Format | None
    seed: int
    runs: int
    """In each of which one is killed."""
    answers: int
    """That are timed, paid and unpaid; 0 leaves that out."""
    tokens: int
    """Of each answer."""
    anvil: Path | None
    """The chain's program; by default that on the PATH."""
    folder: Path | None
    """Where homes and logs stay; they go with the lab if not given."""


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """Who is killed, and when."""

    victim: Victim
    hop: int
    share: float
    """Of the time that undisturbed answers take."""
    away_s: float
    """For how long, where it is the chain's node."""


def planned_kills(seed: int, runs: int) -> list[PlannedKill]:
    """Each of the three in its turn, in random order, at random moments. Pure."""
    random, found = Random(seed), list[PlannedKill]()
    while len(found) < runs:
        turn: list[Victim] = ["client", "hop", "chain"]
        random.shuffle(turn)
        for victim in turn:
            found.append(
                PlannedKill(victim, random.randrange(HOPS), random.random(), random.uniform(*AWAY_S))
            )
    return found[:runs]


async def run_pay_lab(settings: Settings, order: PayOrder, progress: Progress) -> PayReport:
    """Carry out an order.

    Raises:
        UsageError: no anvil is here, or the model takes no prompts as long as the lab's.
        ShoalError: the model cannot be had, a process did not come up, or undisturbed answers failed.
    """
    began = trio.current_time()
    with TemporaryDirectory(prefix="shoal-pay-") as temporary:
        folder = (order.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        own = _settings_of(settings, order, folder / "password")
        (folder / "password").write_text(PASSWORD)
        model = await trio.to_thread.run_sync(ModelStore(own.paths.models).resolve, own.model)
        if model.shape.context < PROMPT_TOKENS + order.tokens:
            raise UsageError(
                f"{model.name} takes {model.shape.context} tokens in all, and the lab asks for"
                f" {PROMPT_TOKENS + order.tokens}",
                check="choose another model, or shorter answers",
            )
        spans = split(model.shape.n_blocks, HOPS)
        rooms = [Place(name, span) for name, span in zip("abc", spans, strict=True)]
        async with lab_chain(order.anvil, folder) as chain:
            wallets = {place.name: _wallet(folder / place.name) for place in rooms}
            client = _wallet(folder / "client")
            await chain.begin({client: CLIENT_GIVEN} | dict.fromkeys(wallets.values(), HOP_GIVEN))
            for home in (*wallets, "client"):
                (folder / home / "chain.toml").write_text(chain.client.deployment.encoded())
            async with lab_swarm(own, rooms, folder) as lab, trio.open_nursery() as nursery:
                progress("starting the nodes that are paid", 0, 0)
                await lab.start_all()
                bench = _PayBench(order, own, model, chain, lab, folder, wallets, nursery, progress)
                pace = await bench.compare() if order.answers else None
                results = await bench.play_all()
                await bench.close(client)
                nursery.cancel_scope.cancel()
            return PayReport(
                model=model.name,
                format=bench.format,
                seed=order.seed,
                nodes=HOPS,
                pace=pace,
                results=tuple(results),
                paid=sum(one.paid for one in bench.books),
                redeemed_alone=bench.redeemed_alone,
                faults=tuple(bench.faults),
                seconds=trio.current_time() - began,
            )


def _settings_of(settings: Settings, order: PayOrder, password: Path) -> Settings:
    """Of the nodes that are paid, and of the client that pays them."""
    given = {
        "price": PRICE,
        "max_price": PRICE,
        "pay_budget": BUDGET,
        "pay_password_file": str(password),
        "resume_s": RESUME_S,
    }
    return prepared(settings, LabPlan(model=order.model, format=order.format, settings=given))


def _wallet(home: Path) -> ChainKey:
    home.mkdir(parents=True, exist_ok=True)
    return create_wallet(home / "wallet.json", PASSWORD, rounds=ROUNDS)


class _PayBench:
    """Nodes that are paid, a client, and what was found with them."""

    def __init__(
        self,
        order: PayOrder,
        settings: Settings,
        model: LocalModel,
        chain: LabChain,
        lab: LabSwarm,
        folder: Path,
        wallets: Mapping[str, ChainKey],
        nursery: trio.Nursery,
        progress: Progress,
    ) -> None:
        self.faults: list[str] = []
        self.books: list[HopBooks] = []
        self.redeemed_alone = 0
        self._order = order
        self._settings = settings
        self._model = model
        self._chain = chain
        self._lab = lab
        self._folder = folder
        self._wallets = wallets
        self._nursery = nursery
        self._progress = progress
        self._ended = dict.fromkeys(wallets, 0)
        """Tokens that processes of nodes had computed which were killed."""

    @property
    def format(self) -> str:
        return self._settings.format

    async def compare(self) -> Pace:
        """Time answers of nodes that are paid and of as many that are not, in turns."""
        paid_s, unpaid_s, tokens = list[float](), list[float](), 0
        random, paid = Random(self._order.seed), self._settings.swarm
        free = replace(self._settings, swarm=FREE, price="", max_price="", pay_budget="")
        places = [node.place for node in self._lab.nodes.values()]
        async with lab_swarm(free, places, self._folder / FREE) as other:
            self._progress("starting the nodes that are not", 0, 0)
            await other.start_all()
            async with self._customer({paid: self._lab, FREE: other}) as customer:
                for number in range(-1, self._order.answers):  # the first pair opens payment channels
                    self._progress("answers, paid and unpaid", max(0, number), self._order.answers)
                    asked = self._question(random, COMPARED_TOKENS)
                    pair = {one: await customer.ask(one, asked) for one in random.sample([paid, FREE], 2)}
                    if failed := [one.failure for one in pair.values() if one.failure]:
                        raise ShoalError(f"an answer that nothing disturbed broke off: {failed[0]}")
                    if pair[paid].tokens != pair[FREE].tokens:
                        self.faults.append(f"answer {number} has other tokens where it is paid for")
                    if number >= 0:
                        paid_s.append(pair[paid].seconds)
                        unpaid_s.append(pair[FREE].seconds)
                        tokens += len(pair[paid].tokens)
        return Pace(tuple(paid_s), tuple(unpaid_s), tokens)

    async def play_all(self) -> list[PayResult]:
        """Kill one in each run, and judge the books after it.

        Raises:
            ShoalError: undisturbed answers failed.
        """
        results: list[PayResult] = []
        random = Random(self._order.seed)
        questions = [self._question(random, PROMPT_TOKENS) for _ in range(SESSIONS)]
        async with self._customer({self._settings.swarm: self._lab}) as customer:
            await self._ask_all(customer, questions[:1])  # which opens the payment channels
            began = trio.current_time()
            undisturbed = await self._ask_all(customer, questions)
            seconds = trio.current_time() - began
            if failed := [one.failure for one in undisturbed if one.failure]:
                raise ShoalError(f"an answer that nothing disturbed broke off: {failed[0]}")
            self.books = await self._rest()
            self._note("undisturbed", judge_books(self.books, self.books))
            for number, kill in enumerate(planned_kills(self._order.seed, self._order.runs)):
                self._progress(f"kill of the {kill.victim}", number, self._order.runs)
                before, at_s = self.books, kill.share * seconds
                answers = await self._play(customer, questions, kill, at_s)
                broken = [n for n, one in enumerate(answers) if one.failure]
                again = await self._ask_all(customer, [questions[n] for n in broken])
                for one, answer in [*enumerate(answers), *zip(broken, again, strict=True)]:
                    if not answer.failure and answer.tokens != undisturbed[one].tokens:
                        self.faults.append(f"run {number}: an answer has other tokens than undisturbed")
                self._note(f"run {number}", [f"again: {one.failure}" for one in again if one.failure])
                self.books = await self._rest()
                self._note(f"run {number}", judge_books(before, self.books))
                results.append(
                    PayResult(
                        number,
                        kill.victim,
                        "abc"[kill.hop] if kill.victim == "hop" else "",
                        round(at_s, 2),
                        len(answers),
                        tuple(answers[n].failure for n in broken),
                        losses(before, self.books),
                    )
                )
        return results

    async def close(self, client: ChainKey) -> None:
        """End the nodes, redeem what they have not yet, and count the coins."""
        self._progress("redeeming what is left", 0, 0)
        self.redeemed_alone = sum(one.redeemed for one in self.books)
        nodes = list(self._lab.nodes.values())
        work = {node.name: await self._work(node) for node in nodes}
        self._lab.do("stop", nodes)
        await self._lab.wait_until(lambda: not any(node.running for node in nodes), READY_S)
        await trio.to_thread.run_sync(self._redeem_all)
        self.books = [await self._read(node, work[node.name]) for node in nodes]
        purse = self._chain.purse
        purses = {
            name: await trio.to_thread.run_sync(purse, key, HOP_GIVEN) for name, key in self._wallets.items()
        }
        spent = await trio.to_thread.run_sync(purse, client, CLIENT_GIVEN)
        self._note("at the end", judge_coins(self.books, purses, spent))

    def _redeem_all(self) -> None:
        for name, key in self._wallets.items():
            books = PaymentBooks.below(self._folder / name / "payments")
            for channel_id in books.paid.channel_ids():
                if books.paid.read(channel_id).unredeemed:
                    redeem(self._chain.client, books, key, channel_id)

    @asynccontextmanager
    async def _customer(self, swarms: Mapping[str, LabSwarm]) -> AsyncGenerator[CustomerProcess]:
        """A client of these swarms that is there until the block ends."""
        home = self._folder / "client"
        for lab in swarms.values():
            make_home(home, self._settings.paths.models, lab.membership)
        bootstrap = {name: lab.client_settings.bootstrap for name, lab in swarms.items()}
        async with ended_with_us() as processes:
            order = CustomerOrder(bootstrap, HOPS)
            customer = CustomerProcess(self._settings, home, order, processes, self._nursery)
            await customer.start()
            yield customer
            await customer.end()

    def _question(self, random: Random, prompt_tokens: int) -> dict[str, Any]:
        size = self._model.shape.vocab_size
        return {
            "model": self._settings.model,
            "prompt": [random.randrange(size) for _ in range(prompt_tokens)],
            "max_tokens": self._order.tokens,
            "format": self._order.format,
        }

    async def _ask_all(
        self, customer: CustomerProcess, questions: Sequence[Mapping[str, Any]]
    ) -> list[CustomerAnswer]:
        """All at once."""
        answers: dict[int, CustomerAnswer] = {}

        async def ask(number: int) -> None:
            answers[number] = await customer.ask(self._settings.swarm, questions[number])

        async with trio.open_nursery() as nursery:
            for number in range(len(questions)):
                nursery.start_soon(ask, number)
        return [answers[number] for number in range(len(questions))]

    async def _play(
        self,
        customer: CustomerProcess,
        questions: Sequence[Mapping[str, Any]],
        kill: PlannedKill,
        at_s: float,
    ) -> list[CustomerAnswer]:
        """Ask all, kill one meanwhile, and wait until whoever it was is there again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill, customer, kill, at_s)
            answers = await self._ask_all(customer, questions)
        if kill.victim == "client":
            await customer.start()
        await self._lab.wait_until(lambda: all(node.well for node in self._lab.nodes.values()), READY_S)
        return answers

    async def _kill(self, customer: CustomerProcess, kill: PlannedKill, at_s: float) -> None:
        await trio.sleep(at_s)
        match kill.victim:
            case "client":
                await customer.kill()
            case "chain":
                await self._chain.kill()
                await trio.sleep(kill.away_s)
                await self._chain.revive()
            case "hop":
                node = list(self._lab.nodes.values())[kill.hop]
                # What it computes from here to the kill, in milliseconds, nobody can tell.
                self._ended[node.name] += computed(await shown_figures(node))
                self._lab.do("kill", [node])
                self._lab.do("revive", [node])

    async def _rest(self) -> list[HopBooks]:
        """The books once nothing is under way and they no longer change."""
        nodes, last = list(self._lab.nodes.values()), list[HopBooks]()
        with trio.move_on_after(REST_WITHIN_S):
            for node in nodes:
                while True:
                    if not await held_by(node):
                        break
                    await trio.sleep(LOOK_S)
            while True:
                found = [await self._read(node, await self._work(node)) for node in nodes]
                if [replace(one, redeemed=0) for one in found] == [replace(one, redeemed=0) for one in last]:
                    return found
                last = found
                await trio.sleep(LOOK_S)
        raise ShoalError("the nodes do not come to rest", check=f"look at the logs in {self._folder}")

    async def _work(self, node: LabNode) -> int:
        """What a node has computed in all its lives, at its price."""
        tokens = self._ended[node.name] + computed(await shown_figures(node))
        return tokens * len(node.place.span) * parse_coins(PRICE) // MICRO

    async def _read(self, node: LabNode, work: int) -> HopBooks:
        window = window_of(parse_coins(PRICE), len(node.place.span))
        read = partial(
            read_books,
            node.name,
            window,
            work,
            hop=node.home / "payments",
            client=self._folder / "client" / "payments",
            payee=self._wallets[node.name].address,
            escrow=self._chain.client.escrow_state,
        )
        return await trio.to_thread.run_sync(read)

    def _note(self, where: str, messages: Sequence[str]) -> None:
        self.faults += [f"{where}: {message}" for message in messages]
