"""Reading of a checkpoint: data that anyone may have changed, so all of it is validated before any of it is used."""

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lmconsole.data.windows import Indices, cut_windows
from lmconsole.lm.checkpoint import SCHEMA, TrainState
from lmconsole.lm.model import model_on_meta
from lmconsole.lm.optimizers import state_names
from lmconsole.lm.tensor_file import StoredTensor, TensorFile
from lmconsole.runs.info import RunInfo

_STATE_FIELDS = {field.name for field in fields(TrainState)}
_LATER_FIELDS = {"energy_j", "epoch_energy_j"}
"""Fields that checkpoints of version 0.1.0 lack."""
_EXACT_STEPS = 2**24
"""Optimizers count steps in float32, which stays at this number."""

Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A validated checkpoint, in host memory."""

    state: TrainState
    model: dict[str, Tensor]
    """State dict of the model."""
    optimizer: dict[int, dict[str, Tensor]]
    """State of each trained parameter, by its position."""
    shuffle: Tensor
    """State of the generator of permutations."""
    random: Tensor
    """State of PyTorch's generator for the CPU."""
    random_cuda: Tensor | None
    """State of its generator for the GPU; None if the run has not used one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Everything that is known about a checkpoint of a run before it is read."""

    config_hash: str
    epochs: int
    batch_size: int
    window_targets: Indices
    """Targets of each training window, (N,)."""
    model: dict[str, Form]
    optimizer: tuple[dict[str, Form], ...]
    """State of each trained parameter after a step."""

    @classmethod
    def of(cls, info: RunInfo) -> "Expected":
        """Return what a checkpoint of the run must be like."""
        settings, model = info.settings, model_on_meta(info)
        return cls(
            config_hash=info.config_hash,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            window_targets=cut_windows(info.corpus.tokens["train"], settings.window_tokens)[1],
            model={name: _form(tensor) for name, tensor in model.state_dict().items()},
            optimizer=tuple(
                {name: _SCALAR if name == "step" else _form(parameter) for name in state_names(settings)}
                for parameter in model.parameters()
                if parameter.requires_grad
            ),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in an epoch."""
        return math.ceil(len(self.window_targets) / self.batch_size)

    @property
    def forms(self) -> list[Form]:
        """Forms of all tensors in the largest possible checkpoint: the weights and the best weights, the optimizer's
        state, the permutation, and the states of random number generators."""
        weights = list(self.model.values())
        rest = [((len(self.window_targets),), torch.int64), *[_generator_form()] * 2, _CUDA_GENERATOR]
        return weights * 2 + [form for state in self.optimizer for form in state.values()] + rest


def _form(tensor: Tensor) -> Form:
    return tuple(tensor.shape), tensor.dtype


def _generator_form() -> Form:
    return _form(torch.Generator().get_state())


_SCALAR: Form = (), torch.float32
_CUDA_GENERATOR: Form = (16,), torch.uint8
"""Seed and offset of the generator of a GPU, 8 bytes each."""


def read_checkpoint(path: Path, expected: Expected) -> Checkpoint:
    """Read and validate a checkpoint. Nothing of it is read before its size and structure have been checked.

    The options of the optimizer in the file are not used, since they follow from the settings of the run; neither is
    the hash of the embedding tables, which is there for people.

    Raises:
        FileNotFoundError: there is none.
        OSError, ValueError: it cannot be used, and why.
        Exception: it is damaged so badly that reading it failed.
    """
    forms = expected.forms
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in forms)
    with TensorFile(path, tensor_bytes=size, tensors=len(forms)) as file:
        content = _record("it", file.content, _PARTS, optional=("tables_sha256", "random_cuda"))
        if content["schema"] != SCHEMA or content["same_run"] != expected.config_hash:
            raise ValueError("it belongs to another run, or another version of lmconsole")
        state = _read_state(file, content["cursor"], expected)
        return Checkpoint(
            state=state,
            model=_read_weights(file, "model", content["model"], expected, nll=state.epoch_nll),
            optimizer=_read_optimizer(file, content["optimizer"], expected, state),
            shuffle=_read_generator(file, "shuffle", content["shuffle"]),
            random=_read_generator(file, "random", content["random"]),
            random_cuda=_read_cuda_generator(file, content.get("random_cuda")),
        )


_PARTS = ("schema", "same_run", "cursor", "model", "optimizer", "shuffle", "random")


def _read_state(file: TensorFile, cursor: object, expected: Expected) -> TrainState:
    required = _STATE_FIELDS - _LATER_FIELDS
    state = TrainState(**_record("cursor", cursor, required, optional=_LATER_FIELDS))
    steps = expected.steps_per_epoch
    _check_whole("epoch", state.epoch, 1, expected.epochs + 1)
    _check_whole("step", state.step, 0, steps if state.epoch <= expected.epochs else 0)
    _check_whole("seq", state.seq, 0, 2**53)
    for name in ("epoch_train_s", "elapsed_train_s", "setup_s", "wall_s", "rss_peak_mib"):
        _check_number(name, getattr(state, name))
    for name in ("torch_peak_mib", "energy_j", "epoch_energy_j"):
        if getattr(state, name) is not None:
            _check_number(name, getattr(state, name))
    diverged: object = state.diverged
    if type(diverged) is not bool or (diverged and (state.step > 0 or state.epoch == 1)):
        raise ValueError(f"diverged is {_short(diverged)}")  # a run that diverges ends after that epoch
    return replace(
        state,
        permutation=_read_permutation(file, state, expected),
        best_weights=_read_best_weights(file, state, expected),
    )


def _read_permutation(file: TensorFile, state: TrainState, expected: Expected) -> Tensor | None:
    """Return the order of the epoch's windows, after checking what has been counted over those already done."""
    if state.permutation is None:
        permutation, done = None, 0
        if state.step > 0:
            raise ValueError("it has no permutation for an epoch that has begun")
    else:
        windows = len(expected.window_targets)
        permutation = _read(file, "permutation", state.permutation, ((windows,), torch.int64))
        if not permutation.sort().values.equal(torch.arange(windows)):
            raise ValueError("permutation is not a permutation of the windows")
        done = int(expected.window_targets[permutation[: state.step * expected.batch_size].numpy()].sum())
    if type(state.epoch_targets) is not int or state.epoch_targets != done:
        raise ValueError(f"epoch_targets is {_short(state.epoch_targets)}, expected {done:,}")
    if type(state.epoch_nll) is not float or state.epoch_nll < -_ROUNDING_NATS * done:
        raise ValueError(f"epoch_nll is {_short(state.epoch_nll)}")
    if state.step == 0 and (state.epoch_nll, state.epoch_train_s) != (0.0, 0.0):
        raise ValueError("it counts losses or seconds of an epoch that has not begun")
    return permutation


_ROUNDING_NATS = 1e-3
"""Largest rounding error of a target's loss: a cross-entropy is not negative."""


def _read_best_weights(file: TensorFile, state: TrainState, expected: Expected) -> dict[str, Tensor] | None:
    best = (state.best_epoch, state.best_valid_loss_nats, state.best_weights)
    if best == (None, None, None):
        return None
    _check_whole("best_epoch", state.best_epoch, 1, state.epoch - 1)
    loss = state.best_valid_loss_nats
    if type(loss) is not float or not math.isfinite(loss) or loss < -_ROUNDING_NATS:
        raise ValueError(f"best_valid_loss_nats is {_short(loss)}")
    return _read_weights(file, "best_weights", state.best_weights, expected)


def _read_weights(
    file: TensorFile, name: str, found: object, expected: Expected, *, nll: float = 0.0
) -> dict[str, Tensor]:
    """Return a state dict of the model. A loss ``nll`` that is not finite comes from weights that are not."""
    stored = _record(name, found, expected.model)
    weights = {key: _read(file, f"{name}.{key}", stored[key], form) for key, form in expected.model.items()}
    if not math.isfinite(nll) and all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise ValueError(f"epoch_nll is {nll} with finite weights")
    return weights


def _read_optimizer(
    file: TensorFile, found: object, expected: Expected, state: TrainState
) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state. Before the first step there may be none; a captured step starts with zeros."""
    stored = _record("optimizer", found, ("state", "param_groups"))["state"]
    done = (state.epoch - 1) * expected.steps_per_epoch + state.step
    positions = range(len(expected.optimizer))
    by_position = _record("optimizer.state", stored, (), optional=positions)
    if done == 0 and not by_position:
        return {}
    read = {}
    for position in positions:
        name, forms = f"optimizer.state.{position}", expected.optimizer[position]
        # Versions of PyTorch differ in whether SGD without momentum has an entry for it.
        entry = {key: value for key, value in _dict(name, by_position.get(position, {})).items() if value is not None}
        tensors = _record(name, entry, forms)
        read[position] = {key: _read(file, f"{name}.{key}", tensors[key], form) for key, form in forms.items()}
        step = read[position].get("step")
        if step is not None and step.item() != min(done, _EXACT_STEPS):
            raise ValueError(f"{name}.step is {step.item():g}, expected {done:,}")
    return read


def _read_generator(file: TensorFile, name: str, found: object) -> Tensor:
    """Return the state of a generator for the CPU."""
    state = _read(file, name, found, _generator_form())
    torch.Generator().set_state(state)  # raises an error if its parts are out of range by themselves
    values = state.numpy()
    left, following = int(values[8:12].view(np.int32)[0]), int(values[16:24].view(np.int64)[0])
    if following + left != _TWISTER_SIZE + 1 and (left, following) != (1, 0):
        # the generator would read past its 624 numbers
        raise ValueError(f"{name} is not the state of a generator")
    return state


_TWISTER_SIZE = 624


def _read_cuda_generator(file: TensorFile, found: object) -> Tensor | None:
    if found is None:
        return None
    state = _read(file, "random_cuda", found, _CUDA_GENERATOR)
    offset = int(state.numpy()[8:].view(np.int64)[0])
    if offset < 0 or offset % 4 != 0:
        raise ValueError("random_cuda is not the state of a generator")
    return state


def _read(file: TensorFile, name: str, found: object, form: Form) -> Tensor:
    if not isinstance(found, StoredTensor):
        raise ValueError(f"{name} is not a tensor")
    if (found.shape, found.dtype) != form:
        raise ValueError(f"{name} is {found.dtype} of shape {_short(found.shape)}, expected {form[1]} of {form[0]}")
    tensor: Tensor = file.read(found)
    return tensor


def _dict(name: str, value: object) -> dict[Any, Any]:
    if type(value) is not dict:
        raise ValueError(f"{name} is not a dictionary")
    return value


def _record(name: str, value: object, required: Iterable[Any], *, optional: Iterable[Any] = ()) -> dict[Any, Any]:
    """Return ``value`` after checking that it is a dictionary with these keys."""
    found, wanted = _dict(name, value), set(required)
    for keys, what in ((wanted - found.keys(), "lacks"), (found.keys() - wanted - set(optional), "has unknown parts:")):
        if keys:
            raise ValueError(f"{name} {what} {', '.join(sorted(map(_short, keys))[:3])}")
    return found


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}, expected {low:,} to {high:,}")


def _check_number(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a plausible time, amount of memory or energy."""
    if type(value) not in (int, float) or not 0 <= cast(float, value) <= _LARGEST:
        raise ValueError(f"{name} is {_short(value)}")


_LARGEST = 1e12


def _short(value: object) -> str:
    return reprlib.repr(value)
