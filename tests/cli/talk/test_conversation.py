"""What a conversation remembers, forgets and keeps in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cli.chat import conversation
from shoal.cli.chat.conversation import Conversation
from shoal.errors import UsageError


def talked() -> Conversation:
    talk = Conversation("fish", system="Be brief.")
    talk.ask("why?")
    talk.answer("because")
    talk.ask("really?")
    talk.answer("yes")
    return talk


def test_the_model_is_told_the_system_message_then_all_turns() -> None:
    assert [(m["role"], m["content"]) for m in talked().messages()] == [
        ("system", "Be brief."),
        ("user", "why?"),
        ("assistant", "because"),
        ("user", "really?"),
        ("assistant", "yes"),
    ]
    assert Conversation("fish").messages() == []


def test_the_last_question_can_be_taken_back_with_its_answer() -> None:
    talk = talked()
    assert talk.take_back() == "really?"
    assert [m["content"] for m in talk.messages()] == ["Be brief.", "why?", "because"]


def test_nothing_can_be_taken_back_before_anything_was_asked() -> None:
    with pytest.raises(UsageError, match="no question yet"):
        Conversation("fish").take_back()


def test_a_question_without_an_answer_gives_way_to_the_next() -> None:
    talk = Conversation("fish")
    talk.ask("why?")
    talk.ask("how?")
    assert [m["content"] for m in talk.messages()] == ["how?"]


def test_a_saved_conversation_is_read_back_and_is_a_request_to_the_api(tmp_path: Path) -> None:
    talk = talked()
    talk.save(tmp_path / "talk.json")
    assert conversation.load(tmp_path / "talk.json") == talk
    kept = json.loads((tmp_path / "talk.json").read_text())
    assert kept == {"model": "fish", "messages": talk.messages()}


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        talked().save(tmp_path / "talk.json")
    assert (tmp_path / "talk.json").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"model": "fish"}',
        '{"model": "", "messages": []}',
        '{"model": "fish", "messages": [{"role": "owner", "content": "x"}]}',
        "\xff",
        "[" * 100_000,
    ],
)
def test_a_file_that_holds_no_conversation_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(content, "latin-1")
    with pytest.raises(UsageError, match="no saved conversation"):
        conversation.load(tmp_path / "talk.json")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_FILE", 10)
    talked().save(tmp_path / "talk.json")
    with pytest.raises(UsageError, match="longer than"):
        conversation.load(tmp_path / "talk.json")
