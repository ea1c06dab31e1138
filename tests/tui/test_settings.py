"""Settings that outlast a session."""

from pathlib import Path

import pytest

from lmconsole.tui.settings import Settings, load_settings, save_settings


def file(tmp_path: Path) -> Path:
    """Return the path of the settings."""
    return tmp_path / "user-config" / "lmconsole" / "console.json"


def test_saved_settings_are_loaded(tmp_path: Path) -> None:
    assert load_settings() == Settings(), "the defaults"
    assert save_settings(Settings(theme="lmconsole-light")) is None
    assert load_settings().theme == "lmconsole-light"
    assert [path.name for path in file(tmp_path).parent.iterdir()] == ["console.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"theme": 3}', b"[" * 100_000])
def test_a_damaged_file_gives_defaults_and_is_replaced(tmp_path: Path, damage: bytes) -> None:
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_bytes(damage)
    assert load_settings() == Settings()
    assert save_settings(Settings(theme="nord")) is None
    assert load_settings().theme == "nord"


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    file(tmp_path).parent.mkdir(parents=True)
    file(tmp_path).write_text('{"theme": "nord", "sound": "loud"}')
    assert load_settings().theme == "nord"


def test_a_folder_that_cannot_be_created_is_the_reason_returned(tmp_path: Path) -> None:
    (tmp_path / "user-config").write_text("a file is in the way")
    problem = save_settings(Settings(theme="nord"))
    assert problem is not None
    assert str(file(tmp_path)) in problem
    assert load_settings() == Settings()
