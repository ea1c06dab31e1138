"""The best weights of a finished run, and its test with them if it is asked for later."""

import errno
import math
import time
from pathlib import Path
from typing import cast

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lmconsole.errors import TrainingError
from lmconsole.files import read_file
from lmconsole.lm import checkpoint
from lmconsole.lm.batches import WindowedSplit
from lmconsole.lm.device import apply_precision, synchronize
from lmconsole.lm.evaluation import evaluate, new_window_nats
from lmconsole.lm.fast_paths import enable_fast_paths, why_disabled
from lmconsole.lm.loop import TICK_S, StopRequested, TrainingContext
from lmconsole.lm.model import build_model, model_on_meta
from lmconsole.plan.experiment import Precision
from lmconsole.runs.events import DAMAGED, Stopped, perplexity
from lmconsole.runs.info import RunInfo
from lmconsole.runs.paths import RunPaths

_HEADER_BYTES = 2**18
"""Most bytes of the file besides its values."""


def read_best_weights(paths: RunPaths, info: RunInfo, epoch: int | None) -> dict[str, Tensor]:
    """Return the best weights of a run, those after ``epoch``, on the CPU.

    Raises:
        TrainingError: the file is missing, cannot be read, is damaged, or belongs to another run or epoch.
    """
    expected = {name: (tuple(each.shape), each.dtype) for name, each in model_on_meta(info).state_dict().items()}
    limit = sum(math.prod(shape) * dtype.itemsize for shape, dtype in expected.values()) + _HEADER_BYTES
    try:
        data = read_file(paths.best_weights, limit, follow=False)
        metadata, weights = _decode(data)
    except FileNotFoundError:
        raise _unusable(paths.best_weights, info, "there is no such file") from None
    except OSError as error:
        damaged = error.errno in (errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.EINVAL)
        raise _unusable(paths.best_weights, info, str(error.strerror), again=not damaged) from None
    except (SafetensorError, ValueError, *DAMAGED) as error:
        raise _unusable(paths.best_weights, info, f"it is damaged ({error})") from None
    if (metadata.get("config_hash"), metadata.get("epoch")) != (info.config_hash, str(epoch)):
        raise _unusable(paths.best_weights, info, f"it does not have the weights of this run after epoch {epoch}")
    if {name: (tuple(each.shape), each.dtype) for name, each in weights.items()} != expected:
        raise _unusable(paths.best_weights, info, "its tensors are not those of the model")
    if metadata.get("sha256") != checkpoint.weights_sha256(weights):
        raise _unusable(paths.best_weights, info, "its values are not those that were saved")
    return weights


def _decode(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a safetensors file. Raises an error if it is damaged."""
    weights = safetensors.torch.load(data)  # checks sizes and offsets
    header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")], type=dict[str, msgspec.Raw])
    return msgspec.json.decode(header.get("__metadata__", b"{}"), type=dict[str, str]), weights


def _unusable(path: Path, info: RunInfo, why: str, *, again: bool = False) -> TrainingError:
    repair = "Fix that, then ask for the test again" if again else "Put the file back, then ask for the test again"
    return TrainingError(
        "best-weights",
        f"{path}: the run cannot be tested with its best weights: {why}",
        hint=f"{repair}, or train a new run: lmconsole run {info.experiment.id} --fresh. "
        "The results of its training stay as they are.",
    )


class BestWeightsTest:
    """The test of a finished run, as an attempt of its own; it has the methods of ``Training`` that a worker calls.

    On a CPU the result has the same bits as that of a test at the end of the training.
    """

    def __init__(self, context: TrainingContext) -> None:
        """Prepare what needs no device.

        Raises:
            TrainingError: the best weights cannot be used.
        """
        assert context.history.finished is not None
        self.context, self.finished = context, context.history.finished
        self.settings = context.info.settings
        apply_precision(cast(Precision, self.settings.precision))
        weights = read_best_weights(context.paths, context.info, self.finished.best_epoch)
        self.model = build_model(self.settings, vocabulary=context.corpus.vocabulary, tables=context.tables)
        self.model.load_state_dict(weights)
        self.fell_back = False

    def prepare_on_device(self) -> None:
        """Move weights and test split to the device. On a GPU, compile kernels."""
        device, precision = self.context.device, cast(Precision, self.settings.precision)
        self.model.to(device)
        self.split = WindowedSplit(self.context.corpus.splits["test"], self.settings.window_tokens, device)
        if device.startswith("cuda") and (
            reason := enable_fast_paths(self.model, self.split, self.settings, precision)
        ):
            print(f"Fast paths are not used: {reason}", flush=True)
            self.fell_back = why_disabled(self.settings) is None
        synchronize(device)

    def run(self, _: float) -> None:
        """Test, and log that the run has finished once more, with the earlier numbers and those of the test; or that
        the test was stopped. The times of the run stay those of its training, whenever this attempt started.

        Raises:
            TrainingError: the losses of the windows cannot be written.
        """
        context = self.context
        context.enter_phase("test", None)
        window_nats = new_window_nats(self.split, context.device)
        self._next_tick_s = time.monotonic() + TICK_S
        try:
            loss = evaluate(self.model, self.split, self.settings, context.device, self._tick, window_nats)
        except StopRequested:
            epoch, step = context.history.position
            context.end_telemetry()
            context.log.append(Stopped(epoch=epoch, step=step, signal=context.stop_signal()), sync=True)
            return
        checkpoint.save_test_losses(context.paths, window_nats, self.split.lengths)
        ppl = perplexity(loss)
        is_last = self.finished.best_epoch == context.history.epochs_done
        finished = msgspec.structs.replace(
            self.finished, seq=0, t="", test_ppl_best=ppl, test_ppl_final=ppl if is_last else None, non_finite={}
        )
        context.end_telemetry()
        context.log.append(finished, sync=True)

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick_s:
            if self.context.stop_requested():
                raise StopRequested
            self._next_tick_s = time.monotonic() + TICK_S
