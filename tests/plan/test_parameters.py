"""Sizes of models from their settings, compared with the models themselves."""

from pathlib import Path

import pytest
import tiny

from lmconsole.lm.model import parameters_of
from lmconsole.plan.load import load_plan
from lmconsole.plan.parameters import checkpoint_bytes, trainable_parameters, weights_bytes

PAPER = {(1, "lstm"): 3_019_520, (2, "lstm"): 5_120_768, (4, "lstm"): 9_323_264}
PAPER |= {(1, "gpt1"): 7_087_872, (2, "gpt1"): 14_175_744, (4, "gpt1"): 28_351_488}


def test_the_paper_experiments_have_the_published_numbers_of_parameters() -> None:
    plan = load_plan(None)
    found = {}
    for experiment in plan.experiments:
        settings = plan.resolve(experiment, "paper", {}).settings
        found[settings.layers, settings.model] = trainable_parameters(settings, 40_479)
    assert found == PAPER


@pytest.mark.parametrize("model", ["lstm", "gpt1"])
@pytest.mark.parametrize("layers", [1, 3])
def test_learned_tables_count(tmp_path: Path, model: str, layers: int) -> None:
    run = tiny.queue_tiny(tmp_path, model, layers=layers)
    assert trainable_parameters(run.info.settings, run.info.corpus.vocabulary) == parameters_of(run.info)[1]


@pytest.mark.slow
def test_files_of_a_run_are_about_as_large_as_estimated(tmp_path: Path) -> None:
    run = tiny.queue_tiny(tmp_path, "gpt1", optimizer="adamw", epochs=1, channels=64, mlp_channels=256)
    keep = "from lmconsole.lm import checkpoint\ncheckpoint.remove = lambda paths: None\n"
    assert tiny.worker(run, tmp_path, keep).returncode == 0
    size = run.info.settings, run.info.corpus.vocabulary
    assert run.paths.checkpoint.stat().st_size == pytest.approx(checkpoint_bytes(*size), rel=0.05)
    assert run.paths.best_weights.stat().st_size == pytest.approx(weights_bytes(*size), rel=0.05)
