"""Transformers prints nothing while it works for us, and what it would print afterwards is as it was."""

from __future__ import annotations

import pytest
from transformers.utils import logging

from shoal.models.seam.logging import quiet


@pytest.fixture
def loud():
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    if not bars:
        logging.disable_progress_bar()


def test_neither_bars_nor_reports_are_printed(loud: None, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        logging.get_logger("transformers.contract").warning("a report")
        list(logging.tqdm(range(3)))
        assert not logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_afterwards_it_is_as_before_also_after_an_error(loud: None) -> None:
    with pytest.raises(ValueError), quiet():
        raise ValueError
    assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
