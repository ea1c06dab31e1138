"""A short child process that looks before anything is queued: preset, devices, precision, corpus, embeddings.

It imports torch, so that the processes people look at need not. A request goes in as JSON in the first
argument, and an answer or an error comes out as JSON on standard output.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmconsole.engine.child import answer_parent, ask_child
from lmconsole.errors import CorpusError, DeviceError, EmbeddingsError
from lmconsole.plan.experiment import Experiment, Settings
from lmconsole.plan.flops import step_flops
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO, Plan, Resolved
from lmconsole.runs.info import CorpusInfo, EmbeddingsInfo
from lmconsole.telemetry.host import cores

if TYPE_CHECKING:
    from lmconsole.lm.device import Device

TIMEOUT_S = 1800.0
"""Long enough to tokenize a large text for the first time."""

ONE_THREAD_FLOPS = 50e9
"""A training step with fewer floating-point operations than this is computed by one thread, and as many runs as there
are cores train at once: together they are faster than one after the other with all threads, because threads that share
a small step mostly wait for each other. benchmarks/jobs.py measures it: on two cores several runs gain 1.3 to 1.6 times
up to 14 GFLOP, and little from 33 GFLOP on (docs/performance.md)."""


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for, unresolved."""

    experiments_file: str | None
    experiments: tuple[int, ...]
    preset: str
    data: str | None
    embeddings: str | None
    device: str
    max_tokens: int | None
    overrides: dict[str, object] = {}
    """Settings given on the command line."""
    own_pids: tuple[int, ...] = ()
    """Workers of the same store, which are no strangers on a GPU."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment, ready to be queued."""

    experiment: Experiment
    settings: Settings
    """With ``precision`` resolved."""
    seed: int
    origins: dict[str, str]
    corpus: CorpusInfo
    embeddings: EmbeddingsInfo | None
    threads: int
    """CPU threads that suit the size of its steps, unless ``--jobs`` says otherwise."""


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """What will be done."""

    preset: str
    reason: str
    """Why this preset."""
    devices: tuple[str, ...]
    device_names: tuple[str, ...]
    device_keys: tuple[str, ...]
    """What the queue calls the devices: ``cpu``, or UUIDs."""
    prepared: tuple[Prepared, ...]
    warnings: tuple[str, ...] = ()


def ask(request: ProbeRequest) -> ProbeAnswer:
    """The answer of a probe process. Raises LmconsoleError with what is wrong with the request or the machine."""
    return ask_child("lmconsole.engine.probe", request, ProbeAnswer, TIMEOUT_S)


def probe(request: ProbeRequest, environ: Mapping[str, str], cwd: Path) -> ProbeAnswer:
    """Resolve ``request`` on this machine. Raises LmconsoleError."""
    from lmconsole.data.corpus import find_data, find_embeddings
    from lmconsole.lm import device

    plan = load_plan(None if request.experiments_file is None else Path(request.experiments_file))
    experiments = [plan.experiment(number) for number in request.experiments]
    everything = device.describe_devices()
    names = device.resolve_devices(request.device, everything)
    chosen = [each for each in everything if each.device in names]
    wants_data = request.preset == AUTO or any(
        plan.resolve(each, request.preset, request.overrides).settings.corpus == "tokens" for each in experiments
    )
    data = find_data(_path(request.data), environ=environ, cwd=cwd) if wants_data else None
    embeddings = find_embeddings(_path(request.embeddings), data) if wants_data else None
    preset, reason = request.preset, "asked for"
    if preset == AUTO:
        given = [
            name
            for name, value in (
                ("--data", request.data),
                ("--embeddings", request.embeddings),
                ("LMCONSOLE_DATA", environ.get("LMCONSOLE_DATA")),
            )
            if value
        ]
        preset, reason = choose_preset(given, data, embeddings, cuda=any(each.uuid for each in everything))
    prepare = _Preparation(plan, preset, request, data, embeddings)
    prepared = tuple(prepare(experiment, chosen) for experiment in experiments)
    return ProbeAnswer(
        preset=preset,
        reason=reason,
        devices=tuple(names),
        device_names=tuple(each.name for each in chosen),
        device_keys=tuple(each.uuid or each.device for each in chosen),
        prepared=prepared,
        warnings=tuple(_strangers(chosen, request.own_pids)),
    )


def threads_for(flops: float, cores: int) -> int:
    """CPU threads for training steps of ``flops`` floating-point operations on a machine with so many ``cores``.

    Nothing else counts, above all not how many runs are queued: the number of threads decides the last bits of a run's
    results, and a run queued alone is to give the same as one among many.
    """
    return 1 if flops < ONE_THREAD_FLOPS else cores


def choose_preset(given: list[str], data: Path | None, embeddings: Path | None, *, cuda: bool) -> tuple[str, str]:
    """What ``auto`` means here, and why. ``given`` names how the person pointed at data, if at all: then a missing part
    is an error instead of a reason for the demo. Raises CorpusError or EmbeddingsError."""
    missing = [
        *([] if cuda else ["no CUDA device"]),
        *([] if data else ["no tokens"]),
        *([] if embeddings else ["no embeddings"]),
    ]
    if given:
        if data is None:
            raise CorpusError(f"{given[0]} asks for the paper preset, but no tokens were found", hint=TOKENS_RECIPE)
        if embeddings is None:
            raise EmbeddingsError(
                f"{given[0]} asks for the paper preset, but there is no embeddings.npz or model.safetensors in {data}",
                hint=f"{EMBEDDINGS_RECIPE}\nOr train tables of your own: --preset scratch.",
            )
        return "paper", f"{given[0]} is given"
    if missing:
        return "demo", f"{', '.join(missing)} found"
    return "paper", "a CUDA device, tokens and embeddings were found"


TOKENS_RECIPE = """\
Tokens: a folder with wiki.train.npz, wiki.validation.npz and wiki.test.npz (array `tokens`: WikiText-2 as GPT-1 BPE ids
plus one), or with train.txt, valid.txt and test.txt, and beside them GPT-1's encoder_bpe_40000.json and
vocab_40000.bpe. Looked for in --data, LMCONSOLE_DATA, ./data and the user data folder, in this order."""

EMBEDDINGS_RECIPE = """\
Embeddings: GPT-1's own tables. Take model.safetensors of the hub model openai-community/openai-gpt, for example with
  hf download openai-community/openai-gpt model.safetensors --local-dir data
and name it with --embeddings, or put it beside the tokens. An .npz with float32 arrays `tokens` (V x C, row 0 for
padding) and `position` (T x C), called embeddings.npz, does as well."""


class _Preparation:
    """Experiments to what is queued; each corpus and each table is read once."""

    def __init__(
        self, plan: Plan, preset: str, request: ProbeRequest, data: Path | None, embeddings: Path | None
    ) -> None:
        self._plan, self._preset, self._request = plan, preset, request
        self._data, self._tables_file = data, embeddings
        self._corpora: dict[tuple[str, int], CorpusInfo] = {}
        self._tables: dict[tuple[int, int, int], EmbeddingsInfo] = {}

    def __call__(self, experiment: Experiment, chosen: list["Device"]) -> Prepared:
        from lmconsole.lm import device

        resolved = self._plan.resolve(experiment, self._preset, self._request.overrides)
        precisions = {device.resolve_precision(resolved.settings.precision, each) for each in chosen}
        if len(precisions) > 1:
            raise DeviceError(
                "--precision auto means different things on the devices asked for",
                hint="Name the precision: --precision fp32 or --precision bf16.",
            )
        settings = msgspec.structs.replace(resolved.settings, precision=precisions.pop())
        corpus = self._corpus(settings)
        on_cpu = all(each.device == "cpu" for each in chosen)
        return Prepared(
            experiment=experiment,
            settings=settings,
            seed=resolved.seed,
            origins=self._origins(resolved),
            corpus=corpus,
            embeddings=self._embeddings(settings, corpus) if settings.embeddings == "frozen" else None,
            threads=threads_for(step_flops(settings, corpus.vocabulary), cores()) if on_cpu else cores(),
        )

    def _origins(self, resolved: Resolved) -> dict[str, str]:
        auto = resolved.settings.precision == "auto"
        return resolved.origins | ({"precision": f"auto, {resolved.origins['precision']}"} if auto else {})

    def _corpus(self, settings: Settings) -> CorpusInfo:
        from lmconsole.data.corpus import describe, load_corpus

        key = settings.corpus, settings.vocabulary
        if key not in self._corpora:
            if settings.corpus == "tokens" and self._data is None:
                hint = TOKENS_RECIPE
                if settings.embeddings == "frozen":
                    hint += f"\n{EMBEDDINGS_RECIPE}"
                raise CorpusError(
                    f"preset {self._preset}: no tokens were found", hint=f"{hint}\nNothing at hand? Try --preset demo."
                )
            corpus = load_corpus(
                settings.corpus,
                self._data,
                vocabulary=settings.vocabulary,
                max_tokens=self._request.max_tokens,
            )
            self._corpora[key] = msgspec.convert(describe(corpus), CorpusInfo)
        return self._corpora[key]

    def _embeddings(self, settings: Settings, corpus: CorpusInfo) -> EmbeddingsInfo:
        from lmconsole.lm.embedding import read_tables

        if self._tables_file is None:
            raise EmbeddingsError(
                f"preset {self._preset} needs GPT-1's embedding tables, and there are none in {self._data}",
                hint=f"{TOKENS_RECIPE}\n{EMBEDDINGS_RECIPE}\nOr train tables of your own: --preset scratch.",
            )
        key = corpus.vocabulary, settings.channels, settings.window_tokens
        if key not in self._tables:
            tables = read_tables(self._tables_file, vocabulary=key[0], channels=key[1], window_tokens=key[2])
            self._tables[key] = EmbeddingsInfo(path=str(tables.path), sha256=tables.sha256)
        return self._tables[key]


def _strangers(chosen: list["Device"], own_pids: tuple[int, ...]) -> list[str]:
    """A warning for each GPU that somebody else computes on."""
    from lmconsole.telemetry.gpu import Gpus

    warnings = []
    gpus = Gpus.open() if any(each.uuid for each in chosen) else None
    for each in chosen:
        others = gpus.other_processes(each.uuid, {*own_pids, os.getpid()}) if gpus and each.uuid else None
        if others:
            warnings.append(
                f"{each.device} ({each.name}) is in use by {others} other process{'es' if others > 1 else ''}: timings "
                "and memory will not be this run's alone"
            )
    if gpus:
        gpus.close()
    return warnings


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


if __name__ == "__main__":
    sys.exit(answer_parent(ProbeRequest, lambda request: probe(request, os.environ, Path.cwd())))
