"""What peers are called: the same on every machine, in the command line and on the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal.swarm.names import FISH, is_meant, name_of

PAGE = Path(__file__).parents[2] / "page"
PEER = "12D3KooWNXj7WD9xwGQ7gcLCKLa3u3Tm1a5pDVtPQ3uoomATR7M6"


@pytest.mark.parametrize(
    ("peer", "name"),
    re.findall(r"\['(12D3\w+)', '(\w+-\w+)'\]", (PAGE / "tests/words.test.ts").read_text("utf-8")),
)
def test_a_peer_has_the_name_that_the_page_gives_it(peer: str, name: str) -> None:
    assert name_of(peer) == name


def test_the_page_knows_the_same_fish() -> None:
    source = (PAGE / "src/ui/names.ts").read_text("utf-8")
    assert tuple(re.findall(r"'([A-Z][a-z]+)'", source.partition("]")[0])) == FISH


def test_a_peer_is_meant_by_its_name_or_by_the_end_of_its_id() -> None:
    for wanted in (name_of(PEER), name_of(PEER).lower(), PEER, PEER[-6:]):
        assert is_meant(PEER, wanted)
    for wanted in (PEER[:6], FISH[0] + "-7M6", "-" + PEER[-4:]):
        assert not is_meant(PEER, wanted)
