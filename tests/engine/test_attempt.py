"""What an attempt writes down before it trains."""

from pathlib import Path

import pytest
import tiny


@pytest.mark.parametrize(
    ("model", "precision", "attention"),
    [("lstm", "fp32", None), ("gpt1", "fp32", "fused"), ("gpt1", "bf16", "written out")],
)
def test_started_says_how_attention_is_computed(
    tmp_path: Path, model: str, precision: str, attention: str | None
) -> None:
    run = tiny.queue_tiny(tmp_path, model, epochs=1, precision=precision)
    assert tiny.worker(run, tmp_path).returncode == 0
    run.refresh()
    assert run.state.started is not None
    assert run.state.started.attention == attention
