"""What the console remembers between two sessions."""

from pathlib import Path

import pytest

from lmconsole.tui.settings import Remembered, recall, remember


def file(tmp_path: Path) -> Path:
    """Where it is kept."""
    return tmp_path / "user-config" / "lmconsole" / "console.json"


def test_what_was_remembered_is_recalled(tmp_path: Path) -> None:
    assert recall() == Remembered(), "nothing yet"
    assert remember(Remembered(theme="lmconsole-light")) is None
    assert recall().theme == "lmconsole-light"
    assert [path.name for path in file(tmp_path).parent.iterdir()] == ["console.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"theme": 3}', b"[" * 100_000])
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path: Path, damage: bytes) -> None:
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_bytes(damage)
    assert recall() == Remembered()
    assert remember(Remembered(theme="nord")) is None
    assert recall().theme == "nord"


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_text('{"theme": "nord", "sound": "loud"}')
    assert recall().theme == "nord"


def test_a_folder_that_cannot_be_made_is_told_and_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "user-config").write_text("a file is in the way")
    problem = remember(Remembered(theme="nord"))
    assert problem is not None
    assert str(file(tmp_path)) in problem
    assert recall() == Remembered()
