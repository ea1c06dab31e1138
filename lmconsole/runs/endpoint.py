"""The endpoint of a run: its test loss with the weights that validated best, and how exact that is.

The loss of each window of the test split is in a file next to the log (``RunPaths.test_losses``), except in runs of
version 0.1.0. Numbers are None where they are unknown.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmconsole.errors import StoreError
from lmconsole.files import read_file
from lmconsole.runs.events import Finished
from lmconsole.runs.info import CorpusInfo
from lmconsole.runs.store import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NLL, TARGETS = "nll_nats", "targets"
"""Names of the arrays in the file."""

WINDOW_BYTES = 16
"""Bytes of the file for each window."""

HEADER_BYTES = 2**16
"""Most bytes of the file besides its numbers."""

AGREEMENT_NATS = 1e-6
"""Difference up to which the mean of the windows is the logged loss, relative to losses above one. The loss of each
batch is rounded to single precision, that of a window is not."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowLosses:
    """Test loss of each of N windows, in the order of the text."""

    nll_nats: "NDArray[np.float64]"
    """Negative log-likelihood summed over the targets of the window, in nats, shape (N,)."""
    targets: "NDArray[np.int64]"
    """Number of targets in the window, shape (N,)."""

    @property
    def mean_nats(self) -> float:
        """Mean loss in nats per target."""
        return float(self.nll_nats.sum() / self.targets.sum())

    @property
    def standard_error_nats(self) -> float | None:
        """Standard error of ``mean_nats`` as a sample of text, in nats per target; None for fewer than two windows and
        for an infinite loss.

        The windows are clusters of targets, and the mean is the ratio of two sums over them, whose variance is
        N / (N - 1) · Σ (nll - mean · targets)² / (Σ targets)² (Cochran, Sampling Techniques, 3rd ed., 1977, section
        2.11, without the correction for a finite population). It takes windows for independent. Neighbors are of one
        document and tend to be alike, so the true error is larger.
        """
        windows, mean = len(self.nll_nats), self.mean_nats
        if windows < 2 or not math.isfinite(mean):
            return None
        residuals = self.nll_nats - mean * self.targets
        variance = windows / (windows - 1) * float((residuals**2).sum()) / float(self.targets.sum()) ** 2
        return math.sqrt(variance)


def read_test_losses(run: Run) -> WindowLosses | None:
    """Return the test losses of a run; None if it was not tested, or has no file of them.

    Raises:
        StoreError: the file cannot be read, is damaged, or is not that of this run: its mean is not the logged loss.
    """
    finished, path = run.state.finished, run.paths.test_losses
    if finished is None or finished.test_ppl_best is None:
        return None
    limit = WINDOW_BYTES * run.info.corpus.tokens.get("test", 0) + HEADER_BYTES
    try:
        data = read_file(path, limit, follow=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    losses = _decode(data)
    if losses is None:
        raise StoreError(f"{path}: not a file of test losses", hint="Remove it; the log has the mean.")
    mean, logged = losses.mean_nats, _nats(finished.test_ppl_best)
    if math.isfinite(logged) and not abs(mean - logged) <= AGREEMENT_NATS * max(1.0, abs(logged)):
        raise StoreError(
            f"{path}: its mean is {mean:.6f} nats per target, that of the log is {logged:.6f}",
            hint="It is damaged or belongs to another run. Remove it; the log has the mean.",
        )
    return losses


def difference_standard_error(one: Run, other: Run) -> float | None:
    """Return the standard error of the difference between the test losses of two runs as a sample of text, in nats per
    target: that of their differences in the same windows. It says nothing about other seeds.

    None unless both have losses of the same windows. Raises StoreError as ``read_test_losses``.
    """
    import numpy as np

    first, second = read_test_losses(one), read_test_losses(other)
    if first is None or second is None or not np.array_equal(first.targets, second.targets):
        return None
    return WindowLosses(nll_nats=first.nll_nats - second.nll_nats, targets=first.targets).standard_error_nats


def _decode(data: bytes) -> WindowLosses | None:
    """Return the content of a file; None if it is not one of test losses."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        nll, targets = arrays[NLL], arrays[TARGETS]
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None
    shaped = nll.ndim == 1 and nll.shape == targets.shape and len(nll) > 0
    if not shaped or nll.dtype != np.float64 or targets.dtype != np.int64 or targets.min() < 1:
        return None
    return WindowLosses(nll_nats=nll, targets=targets)


def test_nll_best(run: Run) -> float | None:
    """Return the test loss with the weights that validated best, in nats per target.

    It is infinite for a diverged run, even if its best weights, from before, have a finite loss. None if the run has
    not finished, or was not tested: a tuning run, or one whose source does not state this loss.
    """
    return nll_best(run.state.finished)


def nll_best(finished: Finished | None) -> float | None:
    """Return the same as ``test_nll_best``, of the outcome of a run."""
    if finished is None:
        return None
    if finished.diverged:
        return math.inf
    ppl = finished.test_ppl_best
    if ppl is None:
        return None
    return math.inf if math.isnan(ppl) else _nats(ppl)


def bits_per_byte(finished: Finished | None, corpus: CorpusInfo) -> float | None:
    """Return the same loss in bits per UTF-8 byte of the text of the test targets.

    None as for ``test_nll_best``, and where the text is unknown (``CorpusInfo.bytes``).
    """
    nats, targets, size = nll_best(finished), corpus.targets.get("test"), corpus.bytes.get("test")
    if nats is None or not targets or not size:
        return None
    return nats * targets / (math.log(2) * size)


def _nats(ppl: float) -> float:
    """Return the loss of a perplexity. Raises no error for infinity and NaN."""
    return math.log(ppl) if ppl < math.inf else ppl
