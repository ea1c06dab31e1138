"""Models, optimizers and splits of a few thousand parameters, as the built-in experiments define them."""

import numpy as np
import torch

from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.model import LanguageModel, build_model
from lmconsole.lm.optimizers import build_optimizer
from lmconsole.plan.experiment import Settings
from lmconsole.plan.load import builtin_file, load_plan

VOCABULARY = 50
SIZES = {"vocabulary": VOCABULARY, "channels": 24, "window_tokens": 8, "batch_size": 4, "learning_rate": 1e-2}
WINDOWS = 22
"""Five batches of four windows and a short batch, whose last window is short too."""
STEPS = 6
"""Steps in an epoch."""

Parts = tuple[LanguageModel, torch.optim.Optimizer, WindowedSplit]


def small_settings(experiment: int, **overrides: object) -> Settings:
    plan = load_plan(builtin_file())
    return plan.resolve(plan.experiment(experiment), "demo", {**SIZES, "precision": "fp32", **overrides}).settings


def small_parts(settings: Settings, device: str = "cpu") -> Parts:
    """Return a model, its optimizer and a split, the same at every call."""
    torch.manual_seed(0)
    model = build_model(settings, vocabulary=VOCABULARY, tables=None).to(device)
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, WINDOWS * 8 - 3)
    return model, build_optimizer(settings, model.parameters()), WindowedSplit(tokens, settings.window_tokens, device)
