from __future__ import annotations

import pytest
from trio.testing import MockClock


@pytest.fixture
def autojump_clock():
    """At once, where nothing is left to be done: there are no threads here."""
    return MockClock(autojump_threshold=0)
