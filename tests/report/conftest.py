"""A fixture for tests with many exports."""

import pytest

from lmconsole.report import draw


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: each figure is a file with the name of its format."""
    monkeypatch.setattr(draw, "draw_figure", lambda _: None)
    monkeypatch.setattr(draw, "encode_figure", lambda _, image_format: image_format.encode())
