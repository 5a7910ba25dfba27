"""A lab without processes: nodes that only remember what was done to them, and answers by script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from shoal.client.answer import Answer, RouteStage
from shoal.client.generate import Delta
from shoal.testing.lab.asking import TimedAnswer
from shoal.testing.lab.plan import Place
from shoal.types import PeerId, Span

Script = Callable[[Answer], object]


def delta(token: int) -> Delta:
    return Delta("", (token,))


def route(*peers: str) -> tuple[RouteStage, ...]:
    return tuple(RouteStage(PeerId(p), Span(i, i + 1), "memory") for i, p in enumerate(peers))


def asked(
    tokens: Sequence[int] = (),
    times: Sequence[float] = (),
    *,
    error: BaseException | None = None,
    ended: float = 0.0,
    hits: Sequence[float] = (),
    prompt: int = 0,
) -> TimedAnswer:
    """An answer that has come to its end."""

    async def nothing(_: Answer):
        return
        yield

    answer = Answer("", nothing)
    answer.token_ids = list(tokens)
    return TimedAnswer(prompt, 0, answer, 0.0, list(times), ended, error, list(hits))


@dataclass(eq=False)
class FakeNode:
    place: Place
    serving: bool = True
    frozen: bool = False

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def peer(self) -> str:
        return f"peer-{self.name}"

    @property
    def well(self) -> bool:
        return self.serving and not self.frozen


@dataclass
class FakeLab:
    nodes: dict[str, FakeNode]
    deeds: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)

    def of_peer(self, peer: str) -> FakeNode | None:
        return next((node for node in self.nodes.values() if node.peer == peer), None)

    def serving_block(self, block: int) -> list[FakeNode]:
        return [node for node in self.nodes.values() if node.serving and block in node.place.span]

    def do(self, deed: str, nodes: Sequence[FakeNode]) -> None:
        self.deeds.append((trio.current_time(), deed, tuple(node.name for node in nodes)))
        for node in nodes:
            node.serving = deed not in ("kill", "stop")
            node.frozen = deed == "freeze"

    def revive_all(self) -> None:
        self.do("revive", list(self.nodes.values()))

    async def wait_until(self, holds: Callable[[], bool], within_s: float) -> None:
        while True:
            if holds():
                return
            await trio.sleep(0.1)


class FakeClient:
    """Answers every question by the script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def generate(self, model: str, prompt: object, **options: object) -> Answer:
        return Answer("", self.script)  # type: ignore[arg-type]


def fake_lab(spans: dict[str, str]) -> FakeLab:
    return FakeLab({name: FakeNode(Place(name, Span.parse(span))) for name, span in spans.items()})
