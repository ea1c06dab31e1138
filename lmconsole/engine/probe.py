"""Resolution of a request in a short child process, before anything is queued.

The child, which imports torch, settles preset, devices, precision, corpus, embeddings and threads.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmconsole.engine.child import answer_parent, ask_child, report_progress
from lmconsole.engine.provenance import Captured, capture, find_checkouts
from lmconsole.engine.run_options import RunRequest
from lmconsole.errors import CorpusError, DeviceError, EmbeddingsError
from lmconsole.plan.claims import Claim
from lmconsole.plan.executor import parse_sbatch
from lmconsole.plan.experiment import Experiment, Settings, hashed_settings
from lmconsole.plan.flops import run_flops, step_flops
from lmconsole.plan.load import find_plan, load_plan
from lmconsole.plan.presets import AUTO, Plan, Resolved
from lmconsole.runs.info import CorpusInfo, EmbeddingsInfo
from lmconsole.telemetry.host import cores

if TYPE_CHECKING:
    from lmconsole.lm.device import Device

TIMEOUT_S = 1800.0
"""Enough time to tokenize a large text for the first time."""

ONE_THREAD_FLOPS = 50e9
"""Floating-point operations of a training step below which a run gets one thread, and as many runs train at once as
there are cores. That is faster than one run after the other with all threads, because threads that share a small step
mostly wait for each other. benchmarks/jobs.py measures it: on two cores several runs gain 1.3 to 1.6 times up to 14
GFLOP, and little from 33 GFLOP on (docs/performance.md)."""


class ResolvedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run with every setting resolved, whether or not it exists."""

    experiment: Experiment
    preset: str
    settings: Settings
    """With ``precision`` resolved."""
    seed: int
    origins: dict[str, str]
    corpus: CorpusInfo
    embeddings: EmbeddingsInfo | None
    threads: int
    """CPU threads that suit the size of its steps, unless ``--jobs`` decides."""

    @property
    def config_hash(self) -> str:
        """Hash of everything that decides the run's numbers: runs with equal hashes are the same run."""
        identity = {
            "experiment": self.experiment.id,
            "settings": msgspec.Raw(msgspec.json.encode(hashed_settings(self.settings))),  # in the order of the fields
            "seed": self.seed,
            "corpus": self.corpus.sha256,
            "embeddings": self.embeddings.sha256 if self.embeddings else None,
            "max_tokens": self.corpus.max_tokens,
        }
        return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run."""
        return run_flops(self.settings, self.corpus.vocabulary, self.corpus.tokens)


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """A request resolved on this machine."""

    preset: str
    reason: str
    """Reason for this preset."""
    devices: tuple[str, ...]
    device_names: tuple[str, ...]
    device_keys: tuple[str, ...]
    """Device keys in the queue: ``cpu``, or UUIDs."""
    runs: tuple[ResolvedRun, ...]
    """One for each experiment, with the seed of the plan."""
    claims: tuple[Claim, ...] = ()
    """Claims of the plan that are to be registered, with ``--claims``."""
    warnings: tuple[str, ...] = ()
    captured: Captured | None = None
    """Code, packages and machine of this moment."""


def ask_here(request: RunRequest, report: Callable[[str], None] = lambda _: None) -> ProbeAnswer:
    """Resolve ``request`` in a child process; ``report`` receives messages if that takes long, in a thread.

    Raises LmconsoleError if the request or the machine is unsuitable.
    """
    return ask_child("lmconsole.engine.probe", request, ProbeAnswer, TIMEOUT_S, report)


def probe(request: RunRequest, environ: Mapping[str, str], cwd: Path, *, trains_here: bool = True) -> ProbeAnswer:
    """Resolve ``request`` on this machine, and record the code and the machine.

    ``trains_here``: runs train on machines like this one. Otherwise a GPU and the cores are taken on trust.

    Raises LmconsoleError.
    """
    with ThreadPoolExecutor(1) as pool:
        checkouts = pool.submit(find_checkouts, find_plan(request.experiments))  # git takes as long as importing torch
        answer = _resolve(request, environ, cwd, trains_here=trains_here)
        captured = capture(checkouts.result(), gpu=answer.device_keys != ("cpu",))
    return msgspec.structs.replace(answer, captured=captured)


def _resolve(request: RunRequest, environ: Mapping[str, str], cwd: Path, *, trains_here: bool) -> ProbeAnswer:
    """Resolve ``request`` as ``probe`` does."""
    from lmconsole.data.lookup import find_data, find_embeddings
    from lmconsole.lm import device

    plan = load_plan(request.experiments)
    experiments = [plan.experiment(number) for number in request.ids]
    everything = device.describe_devices() if trains_here else [device.describe_device("cpu"), device.unseen_gpu()]
    names = device.resolve_devices(request.device, everything)
    chosen = [each for each in everything if each.device in names]
    wants_data = request.preset == AUTO or any(
        plan.resolve(each, request.preset, request.overrides).settings.corpus == "tokens" for each in experiments
    )
    data = find_data(request.data, environ=environ, cwd=cwd) if wants_data else None
    embeddings = find_embeddings(request.embeddings, data) if wants_data else None
    preset, reason = request.preset, "from --preset"
    if preset == AUTO:
        given = [
            name
            for name, value in (
                ("--data", request.data),
                ("--embeddings", request.embeddings),
                ("LMCONSOLE_DATA", environ.get("LMCONSOLE_DATA")),
                ("--fetch", request.fetch),
            )
            if value
        ]
        preset, reason = choose_preset(given, data, embeddings, cuda=any(each.uuid for each in everything))
    cpus = cores() if trains_here else plan.slurm.merged(parse_sbatch(request.sbatch)).cpus_per_task
    resolver = _Resolver(plan, preset, request, data, embeddings, cpus)
    runs = tuple(resolver.resolve(experiment, chosen) for experiment in experiments)
    return ProbeAnswer(
        preset=preset,
        reason=reason,
        devices=tuple(names),
        device_names=tuple(each.name for each in chosen),
        device_keys=tuple(each.uuid or each.device for each in chosen),
        runs=runs,
        claims=plan.claims if request.claims else (),
        warnings=(
            *_unused_file_warnings(request, preset, runs),
            *(busy_gpu_warnings(chosen, request.runs) if trains_here else ()),
        ),
    )


def threads_for(flops: float, cores: int) -> int:
    """Return the CPU threads for training steps of ``flops`` floating-point operations on a machine with ``cores``.

    Nothing else counts, and in particular not how many runs are queued: the number of threads decides the last bits of
    a run's results, and a run queued alone must give the same as one among many.
    """
    return 1 if flops < ONE_THREAD_FLOPS else cores


def choose_preset(given: list[str], data: Path | None, embeddings: Path | None, *, cuda: bool) -> tuple[str, str]:
    """Return the preset that ``auto`` means here, and the reason. ``given`` holds the options by which the person named
    data: with any of them, a missing part is an error instead of a reason for the demo. Raises CorpusError or
    EmbeddingsError."""
    missing = [
        *([] if cuda else ["no CUDA device"]),
        *([] if data else ["no tokens"]),
        *([] if embeddings else ["no embeddings"]),
    ]
    if given:
        if data is None:
            raise CorpusError(f"{given[0]} implies the preset paper, but no tokens were found", hint=tokens_recipe())
        if embeddings is None:
            raise _lacks_gpt1(f"{given[0]} implies the preset paper, which also needs", data)
        return "paper", f"{given[0]} is given"
    if missing:
        offer = "; `lmconsole data fetch` downloads them" if cuda else ""
        return "demo", f"{', '.join(missing)} found{offer}"
    return "paper", "a CUDA device, tokens and embeddings were found"


def tokens_recipe() -> str:
    """Return what to do where no tokens were found."""
    from lmconsole.data.lookup import user_data_folder

    folder = user_data_folder()
    places = "./data" if folder is None else f"./data or {folder}"
    return f"""\
Download WikiText-2, GPT-1's tokenizer and its embeddings: lmconsole data fetch, or add --fetch to `run`.
Your own tokens: a folder with WikiText-2 as train.txt, valid.txt and test.txt, and GPT-1's encoder_bpe_40000.json and
vocab_40000.bpe next to them; or already tokenized as wiki.train.npz, wiki.validation.npz and wiki.test.npz (array
`tokens`: GPT-1 BPE ids plus 1, 0 is padding). Name it with --data or LMCONSOLE_DATA, or put the files into
{places}."""


EMBEDDINGS_RECIPE = """\
Download GPT-1's embeddings and the tokenizer they belong to: lmconsole data fetch gpt1, or add --fetch to `run`.
Or name a copy of model.safetensors of openai-community/openai-gpt with --embeddings, or put it next to the tokens. A
file embeddings.npz with float32 arrays `tokens` (V x C, row 0 for padding) and `position` (T x C) works as well."""

LEARN_HINT = "To learn the embeddings instead, with a tokenizer trained on a text: --preset scratch."


def _lacks_gpt1(subject: str, data: Path | None) -> EmbeddingsError:
    """Return the error that frozen embeddings, or the tokenizer that a text needs for them, were not found."""
    from lmconsole.data.layout import folder_of, is_text
    from lmconsole.data.lookup import EMBEDDINGS_FILES, find_tokenizer, user_data_folder
    from lmconsole.data.tokenizer import ENCODER_FILE, MERGES_FILE

    folders = (data and folder_of(data), user_data_folder())
    where = " or ".join(str(folder) for folder in dict.fromkeys(folders) if folder is not None)
    if data is not None and is_text(data) and find_tokenizer(data) is None:
        what = f"GPT-1's tokenizer for text: no {ENCODER_FILE} and {MERGES_FILE}"
    else:
        what = f"embeddings: no {' or '.join(EMBEDDINGS_FILES)}"
    return EmbeddingsError(f"{subject} {what} in {where}", hint=f"{EMBEDDINGS_RECIPE}\n{LEARN_HINT}")


class _Resolver:
    """Resolves experiments, and reads each corpus and each embedding table once."""

    def __init__(
        self, plan: Plan, preset: str, request: RunRequest, data: Path | None, embeddings: Path | None, cores: int
    ) -> None:
        self._plan, self._preset, self._request, self._cores = plan, preset, request, cores
        self._data, self._tables_file = data, embeddings
        self._corpora: dict[tuple[str, int, int, Path | None], CorpusInfo] = {}
        self._tables: dict[tuple[int, int, int], EmbeddingsInfo] = {}

    def resolve(self, experiment: Experiment, chosen: list["Device"]) -> ResolvedRun:
        """Resolve one experiment for the devices ``chosen``. Raises LmconsoleError."""
        from lmconsole.lm import device

        resolved = self._plan.resolve(experiment, self._preset, self._request.overrides)
        precisions = {device.resolve_precision(resolved.settings.precision, each) for each in chosen}
        if len(precisions) > 1:
            raise DeviceError(
                "--precision auto means a different precision on each of these devices",
                hint="Name one: --precision fp32 or --precision bf16.",
            )
        settings = msgspec.structs.replace(resolved.settings, precision=precisions.pop())
        corpus = self._corpus(settings)
        on_cpu = all(each.device == "cpu" for each in chosen)
        return ResolvedRun(
            experiment=experiment,
            preset=self._preset,
            settings=settings,
            seed=resolved.seed,
            origins=self._origins(resolved),
            corpus=corpus,
            embeddings=self._embeddings(settings, corpus) if settings.embeddings == "frozen" else None,
            threads=threads_for(step_flops(settings, corpus.vocabulary), self._cores) if on_cpu else self._cores,
        )

    def _origins(self, resolved: Resolved) -> dict[str, str]:
        auto = resolved.settings.precision == "auto"
        return resolved.origins | ({"precision": f"auto, {resolved.origins['precision']}"} if auto else {})

    def _corpus(self, settings: Settings) -> CorpusInfo:
        from lmconsole.data.corpus import describe, describe_targets, load_corpus

        tokenizer = self._gpt1_tokenizer(settings)
        key = settings.corpus, settings.vocabulary, settings.window_tokens, tokenizer
        if key not in self._corpora:
            if settings.corpus == "tokens" and self._data is None:
                hint = tokens_recipe()
                if settings.embeddings == "frozen":
                    hint += f"\n{EMBEDDINGS_RECIPE}"
                raise CorpusError(
                    f"preset {self._preset}: no tokens were found", hint=f"{hint}\nNo data yet? Try --preset demo."
                )
            corpus = load_corpus(
                settings.corpus,
                self._data,
                vocabulary=settings.vocabulary,
                max_tokens=self._request.max_tokens,
                tokenizer=tokenizer,
                report=report_progress,
            )
            targets = describe_targets(corpus, settings.window_tokens)
            self._corpora[key] = msgspec.convert({**describe(corpus), **targets}, CorpusInfo)
        return self._corpora[key]

    def _gpt1_tokenizer(self, settings: Settings) -> Path | None:
        """Return the folder of GPT-1's tokenizer if frozen embeddings need it for text.

        Raises EmbeddingsError if it or the tables are missing, before a long text is tokenized.
        """
        from lmconsole.data.layout import is_text
        from lmconsole.data.lookup import find_tokenizer

        if settings.embeddings != "frozen" or settings.corpus != "tokens" or self._data is None:
            return None
        tokenizer = find_tokenizer(self._data)
        if self._tables_file is None or (tokenizer is None and is_text(self._data)):
            raise _lacks_gpt1(f"preset {self._preset} needs", self._data)
        return tokenizer

    def _embeddings(self, settings: Settings, corpus: CorpusInfo) -> EmbeddingsInfo:
        from lmconsole.data.corpus import check_tokenizer_of_tables
        from lmconsole.lm.embedding import read_tables

        if self._tables_file is None:
            raise _lacks_gpt1(f"preset {self._preset} needs", self._data)
        check_tokenizer_of_tables(self._tables_file, corpus.name, corpus.kind, corpus.tokenizer)
        key = corpus.vocabulary, settings.channels, settings.window_tokens
        if key not in self._tables:
            tables = read_tables(self._tables_file, vocabulary=key[0], channels=key[1], window_tokens=key[2])
            self._tables[key] = EmbeddingsInfo(path=str(tables.path), sha256=tables.sha256)
        return self._tables[key]


def _unused_file_warnings(request: RunRequest, preset: str, runs: Sequence[ResolvedRun]) -> Iterator[str]:
    """Yield a warning for ``--data`` and ``--embeddings`` if no run reads them."""
    if request.data and not any(run.settings.corpus == "tokens" for run in runs):
        yield f"--data is not used by the preset {preset}"
    if request.embeddings and not any(run.embeddings for run in runs):
        yield f"--embeddings is not used by the preset {preset}"
    if request.fetch and not any(run.settings.corpus == "tokens" for run in runs):
        yield f"--fetch is not used by the preset {preset}, which needs no download"


def busy_gpu_warnings(chosen: list["Device"], store: Path) -> Iterator[str]:
    """Yield a warning for each GPU that processes other than the workers of the ``store`` are using."""
    if not any(each.uuid for each in chosen):
        return
    from lmconsole.runs.store import Store
    from lmconsole.telemetry.gpu import Gpus

    workers = [owner.pid for run in Store(store).runs() if run.status.active and (owner := run.worker())]
    gpus = Gpus.open()
    for each in chosen:
        others = gpus.other_processes(each.uuid, {*filter(None, workers), os.getpid()}) if each.uuid else None
        if others:
            yield (
                f"{each.device} ({each.name}) is in use by {others} other process{'es' if others > 1 else ''}: timings "
                "and memory will not be this run's alone"
            )
    gpus.close()


if __name__ == "__main__":
    sys.exit(
        answer_parent(
            RunRequest,
            lambda request: probe(request, os.environ, Path.cwd(), trains_here=request.executor == "local"),
        )
    )
