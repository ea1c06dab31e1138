"""Optional packages: the commands that install them keep those that are there."""

import tomllib
from pathlib import Path

import pytest

from lmconsole import extras
from lmconsole.extras import EXTRAS, install_hint

CHECKOUT = Path(__file__).resolve().parents[1]


def test_every_extra_is_known() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(EXTRAS) == list(project["optional-dependencies"])
    for name, requirements in project["optional-dependencies"].items():
        assert {"".join(each.split(">")[:1]).replace("-", "_") for each in requirements} == set(EXTRAS[name])


@pytest.mark.parametrize(
    ("installed", "extra", "expected"),
    [
        ([], "hub", "[hub]"),
        (["huggingface_hub", "pyarrow"], "tensorboard", "[hub,tensorboard]"),
        (["huggingface_hub", "tensorboard"], "hub", "[hub,tensorboard]"),
        (["pyarrow", "aiohttp"], "pictures", "[parquet,pictures]"),
        (["aiohttp", "textual_serve"], "serve", "[serve]"),
    ],
)
def test_the_command_names_what_is_installed(
    installed: list[str], extra: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: module if module in installed else None)
    assert install_hint(extra).count(f"'.{expected}'") == 2
