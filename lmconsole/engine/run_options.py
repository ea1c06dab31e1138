"""Table of the options of `lmconsole run`: the fields of RunRequest.

The command line, its help and completions, the console's form and the request in a dry run's JSON are built from it. A
new option is a new field here, and the code that uses it.

Every command imports this module, so slow imports are inside functions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from lmconsole.engine.option_values import (
    EXECUTORS,
    parse_executor,
    parse_ids,
    parse_jobs,
    parse_max_tokens,
    parse_preset,
    parse_program,
    parse_sbatch_options,
    parse_seeds,
    parse_yes_no,
)

if TYPE_CHECKING:
    from lmconsole.plan.presets import Plan


class Option(NamedTuple):
    """Presentation of one field of RunRequest on the command line and in the form."""

    help: str
    metavar: str | None = None
    flag: str | None = None
    """Spelling on the command line, if it differs from ``--`` and the field's name."""
    positional: bool = False
    """Takes arguments instead of an option on the command line; they are joined by commas before ``parse``."""
    envvar: str | None = None
    shown_default: str | None = None
    """Text shown as the default by ``--help``, if ``str(default)`` says too little."""
    completions: tuple[str, ...] = ()
    """Values that the shell completes. Others may be valid too."""
    parse: Callable[[str, "Plan"], object] | None = None
    """Converts text to the value, and raises ValueError with one argument per problem. None: text is the value as it
    is. Flags and paths are not text, and are never parsed."""
    setting: bool = False
    """Whether the option overrides the field of ``plan.experiment.Settings`` with its name, and has its bounds."""
    form_placeholder: str | None = None
    """Text in the empty field of the console's form; None keeps the option out of the form."""


class RunRequest(NamedTuple):
    """Request for runs, from the command line or the console's form. Fields without an Option are set by
    ``parse_request`` or its caller.

    It is a named tuple, because importing msgspec or dataclasses would slow down every command.
    """

    ids: Annotated[
        tuple[int, ...],
        Option(help="Experiments to train, such as 5 or 1-4.", metavar="ID...", positional=True, parse=parse_ids),
    ] = ()
    keep_order: bool = False
    """Whether runs are trained in the order of ``ids``. Set if the ids contain no range."""
    wait_for_active: bool = False
    """Whether active runs are waited for; otherwise the request is refused. Set by ``--all``, and by the console."""
    everything: Annotated[
        bool, Option(help="Train all experiments, and wait for those already queued or running.", flag="--all")
    ] = False
    claims: Annotated[
        bool,
        Option(help="Register the claims of the file of experiments, and train the runs that they need."),
    ] = False
    headless: Annotated[bool, Option(help="Show progress in this terminal instead of opening the console.")] = False
    preset: Annotated[
        str,
        Option(
            help="Use this preset: auto, paper, scratch, demo, or one of your own.",
            metavar="NAME",
            completions=("auto", "paper", "scratch", "demo"),
            parse=parse_preset,
            form_placeholder="auto, paper, scratch, demo, or your own",
        ),
    ] = "auto"
    epochs: Annotated[
        int | None,
        Option(
            help="Train for N passes over the train split.",
            metavar="N",
            setting=True,
            form_placeholder="passes over the train split; empty: the preset's",
        ),
    ] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Option(
            help="Train with each of these seeds, such as 1,2,3 or 1..10.",
            metavar="LIST",
            parse=parse_seeds,
            form_placeholder="1,2,3 or 1..10; empty: the preset's",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        Option(
            help="Use the first N training tokens, and a tenth as many of the other splits.",
            metavar="N",
            parse=parse_max_tokens,
        ),
    ] = None
    device: Annotated[
        str,
        Option(
            help="Train on this device: auto, cpu, cuda, all, or a list such as cuda:0,cuda:1.",
            metavar="NAME",
            completions=("auto", "cpu", "cuda", "all"),
            form_placeholder="auto, cpu, cuda, all, or a list such as cuda:0,cuda:1",
        ),
    ] = "auto"
    precision: Annotated[
        str | None,
        Option(
            help="Compute in this precision: auto, fp32, tf32 or bf16.",
            metavar="NAME",
            completions=("auto", "fp32", "tf32", "bf16"),
            setting=True,
            form_placeholder="auto, fp32, tf32 or bf16; empty: the preset's",
        ),
    ] = None
    jobs: Annotated[
        int | Literal["auto"],
        Option(
            help="Train N runs at once on each device; auto chooses by the size of the model.",
            metavar="N",
            completions=("auto",),
            parse=parse_jobs,
            form_placeholder="auto, or runs at once on each device",
        ),
    ] = "auto"
    executor: Annotated[
        str,
        Option(
            help="Train on this machine (local), or on a cluster (slurm).",
            metavar="NAME",
            completions=EXECUTORS,
            parse=parse_executor,
            form_placeholder="local, or slurm: on a cluster",
        ),
    ] = "local"
    sbatch: Annotated[
        tuple[str, ...],
        Option(
            help="Options of sbatch for --executor slurm, such as '--partition=gpu --gres=gpu:1 --time=4:00:00'. They "
            "take precedence over [executor.slurm] in experiments.toml.",
            metavar="OPTIONS",
            parse=parse_sbatch_options,
            form_placeholder="--partition=gpu --gres=gpu:1 --time=4:00:00",
        ),
    ] = ()
    data: Annotated[
        Path | None,
        Option(
            help="Read this text file, text or tokens from this folder, or the Hugging Face data set "
            "hub:OWNER/NAME[/CONFIG].",
            metavar="PATH",
        ),
    ] = None
    embeddings: Annotated[Path | None, Option(help="Read embedding tables from this file.", metavar="FILE")] = None
    fetch: Annotated[
        bool, Option(help="First download what is missing of WikiText-2 and GPT-1's tokenizer and embeddings.")
    ] = False
    experiments: Annotated[
        Path | None,
        Option(
            help="Read experiments from this file.",
            metavar="FILE",
            shown_default="./experiments.toml, or built in",
        ),
    ] = None
    runs: Annotated[Path, Option(help="Use the run store in this folder.", metavar="DIR", envvar="LMCONSOLE_RUNS")] = (
        Path("runs")
    )
    fresh: Annotated[bool, Option(help="Train new runs, even where finished ones exist.")] = False
    no_test: Annotated[
        bool,
        Option(
            help="Train to choose settings, without a test. The same command without this option tests the finished "
            "run later, and does not train it again.",
            parse=parse_yes_no,
            form_placeholder="yes: train to choose settings, without a test",
        ),
    ] = False
    dry_run: Annotated[bool, Option(help="Show what would be done, without doing it.")] = False
    no_export: Annotated[bool, Option(help="Do not export when the queue is empty.")] = False
    export_folder: Path = Path("exports")
    """Folder for the exports when the queue is empty."""
    on_finish: Annotated[
        tuple[str, ...],
        Option(help="Run this program when the queue is empty (no shell).", metavar="CMD", parse=parse_program),
    ] = ()
    on_event: Annotated[
        tuple[str, ...],
        Option(
            help="Give this program (no shell) a JSON object when a run stalls, diverges, is lost, fails or ends, and "
            "when the queue is empty.",
            metavar="CMD",
            parse=parse_program,
        ),
    ] = ()
    json: Annotated[bool, Option(help="Print JSON on standard output.")] = False

    @property
    def overrides(self) -> dict[str, object]:
        """Settings that the request overrides, by name."""
        settings = {name: getattr(self, name) for name, option in OPTIONS.items() if option.setting}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def exports(self) -> Path | None:
        """Absolute folder for the exports; None if nothing is exported."""
        return None if self.no_export else self.export_folder.absolute()


OPTIONS: dict[str, Option] = {
    name: part
    for name, kind in RunRequest.__annotations__.items()
    for part in get_args(kind)
    if isinstance(part, Option)
}
"""Options by field, in the order of the help text."""


def flag(name: str) -> str:
    """Return the spelling of an option on the command line: ``--max-tokens`` for ``max_tokens``."""
    return OPTIONS[name].flag or f"--{name.replace('_', '-')}"
