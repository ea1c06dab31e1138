"""`lmconsole init` writes a file that loads, and overwrites nothing."""

import os
import tomllib
from pathlib import Path

import pytest
import validation

from lmconsole.commands.init import SCHEMA_FILE, example, init
from lmconsole.errors import LmconsoleError
from lmconsole.files import atomic_write
from lmconsole.plan.load import builtin_file, load_plan


def test_the_file_loads_and_names_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "experiments.toml"
    init(file, json=False)
    plan = load_plan(file)
    assert [each.id for each in plan.experiments] == list(range(1, 14))
    assert plan.resolve(plan.experiment(13), "quick").settings.hidden == 48
    first, *_ = file.read_text(encoding="utf-8").splitlines()
    assert first == f"#:schema ./{SCHEMA_FILE}"
    assert (tmp_path / SCHEMA_FILE).read_bytes() == (validation.SCHEMAS / "experiments.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [SCHEMA_FILE, "experiments.toml"]


def test_without_its_comment_signs_the_file_sets_the_built_in_values(tmp_path: Path) -> None:
    lines = [
        line[1:] if line.startswith("#") and not line.startswith(("# ", "#:")) else line
        for line in example().splitlines()
    ]
    text = "\n".join(lines)
    assert text.count("\n[defaults") == 6
    (tmp_path / "all.toml").write_text(text, encoding="utf-8")
    assert load_plan(tmp_path / "all.toml").defaults.values == load_plan(builtin_file()).defaults.values
    assert validation.validator("experiments").problems(tomllib.loads(text)) == []


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    file, target = tmp_path / "experiments.toml", tmp_path / "target"
    target.write_text("mine")
    if kind == "file":
        file.write_text("mine")
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(target if kind == "link" else tmp_path / "missing")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(LmconsoleError) as caught:
        init(file, json=False)
    assert f"{file}: already exists, and is never overwritten" in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert target.read_text() == "mine"


def test_another_schema_is_kept_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / SCHEMA_FILE).write_text("{}")
    init(tmp_path / "a.toml", json=False)
    assert (tmp_path / SCHEMA_FILE).read_text() == "{}"
    assert "kept, although it differs" in capsys.readouterr().err
    (tmp_path / SCHEMA_FILE).unlink()
    init(tmp_path / "b.toml", json=False)
    init(tmp_path / "c.toml", json=False)
    shown = capsys.readouterr().err
    assert "although it differs" not in shown
    assert f"lmconsole run 13 --preset quick --experiments {tmp_path / 'c.toml'} --dry-run" in shown


def test_a_folder_that_does_not_exist_or_cannot_be_written_is_named(tmp_path: Path, ordinary_user: object) -> None:
    with pytest.raises(LmconsoleError) as caught:
        init(tmp_path / "missing" / "experiments.toml", json=False)
    assert f"{tmp_path / 'missing' / 'experiments.toml'}: cannot be written: No such file" in caught.value.message
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    ordinary_user()  # type: ignore[operator]
    with pytest.raises(LmconsoleError) as caught:
        init(locked / "experiments.toml", json=False)
    assert "cannot be written: Permission denied" in caught.value.message
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_the_meantime_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also where the file system has no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.lstat(tmp_path / "missing"))
    writing = atomic_write(tmp_path / "file", replace=False)
    writing.__enter__().write(b"ours")
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(FileExistsError):
        writing.__exit__(None, None, None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]
    with atomic_write(tmp_path / "other", replace=False) as out:
        out.write(b"ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
