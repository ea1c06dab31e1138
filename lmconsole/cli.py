"""The command line: parse, call one function, turn errors into exit codes. Everything heavy is imported late."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lmconsole import __version__
from lmconsole.commands.interrupts import Interrupted, raise_interrupted
from lmconsole.commands.root_options import hand_down, refuse_unused
from lmconsole.commands.run_parameters import (
    COMPLETE,
    completion,
    expand_if_path,
    expand_path,
    parameter,
    takes_run_request,
)
from lmconsole.commands.streams import prepare_streams
from lmconsole.errors import ExitCode, LmconsoleError

app = typer.Typer(
    name="lmconsole",
    help="Train, watch and compare small language models on one GPU machine.\n\nWithout a command, open the console.",
    epilog="First time here? Try: lmconsole --preset demo, then press a and r",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=COMPLETE in os.environ,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Inspect and download corpora and embeddings.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data_app, name="data")

Preset = Annotated[str, parameter("preset")]
Data = Annotated[Path | None, parameter("data")]
Embeddings = Annotated[Path | None, parameter("embeddings")]
Experiments = Annotated[Path | None, parameter("experiments")]
Runs = Annotated[Path, parameter("runs")]
Json = Annotated[bool, parameter("json")]
RunNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="RUN...", help="Runs or experiment numbers.", **completion("runs")),
]

STORE = Path("runs")
EXPORTS = Path("exports")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lmconsole {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    preset: Preset = "auto",
    runs: Runs = STORE,
    experiments: Experiments = None,
    data: Data = None,
    embeddings: Embeddings = None,
    theme: Annotated[
        str | None, typer.Option(help="Use these colors in the console, and save the choice.", metavar="NAME")
    ] = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="Draw less often and in fewer colors, for a slow connection.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        from lmconsole.tui.open import open_console

        raise typer.Exit(open_console(preset, runs, experiments, data, embeddings, theme, slow=slow))
    hand_down(context)


@data_app.callback()
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        refuse_unused(context.parent, context)


@app.command("list")
def list_experiments(experiments: Experiments = None, runs: Runs = STORE, json: Json = False) -> None:
    """List the experiments and the status of their latest runs."""
    from lmconsole.commands.list_experiments import list_experiments

    list_experiments(experiments, runs, json=json)


@app.command()
@takes_run_request
def run(**given: object) -> None:
    """Train experiments, in the console or headless in this terminal."""
    from lmconsole.engine.parse_request import parse_request

    request = parse_request(given)
    if request.fetch or str(request.data or os.environ.get("LMCONSOLE_DATA")).startswith("hub:"):
        from lmconsole.commands.fetch import fetch_for_run

        if not fetch_for_run(request):
            return
    if request.dry_run:
        from lmconsole.commands.dry_run import dry_run

        raise typer.Exit(dry_run(request))
    if not request.headless and not request.json:
        from lmconsole.tui.open import open_console_on, terminal_problem

        problem = terminal_problem()
        if problem is None:
            raise typer.Exit(open_console_on(request))
        typer.echo(f"lmconsole: {problem}; continuing as with --headless", err=True)
    from lmconsole.commands.run import run_headless

    raise typer.Exit(run_headless(request))


@app.command()
def status(
    runs: Runs = STORE,
    digest: Annotated[
        bool, typer.Option("--digest", help="Show the outcome of the last queue, and the best run so far.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the runs in the store."""
    from lmconsole.commands.status import show_digest, show_status

    if digest:
        show_digest(runs, json=json)
    else:
        show_status(runs, json=json)


@app.command()
def stop(
    names: RunNames = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop every active run.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the workers have ended.")] = False,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Stop runs; each can be resumed."""
    from lmconsole.commands.stop import stop

    raise typer.Exit(stop(runs, names or [], everything=everything, wait=wait, json=json))


@app.command()
def note(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs or experiment numbers.")],
    message: Annotated[
        str | None, typer.Option("-m", "--message", help="Set the note; an empty one removes it.", metavar="TEXT")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Add this tag.", metavar="TAG")] = None,
    untag: Annotated[list[str] | None, typer.Option("--untag", help="Remove this tag.", metavar="TAG")] = None,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Show or change the note and the tags of runs.

    They change no result. The console shows them, edits them (n) and finds them (tag:good).
    """
    from lmconsole.commands.note import note

    note(runs, names, message, tag or [], untag or [], json=json)


@app.command()
def watch(names: RunNames = None, runs: Runs = STORE, json: Json = False) -> None:
    """Follow runs until they have finished, stopped or failed.

    Without a name, follow all active runs. Ctrl+C leaves them running.
    """
    from lmconsole.commands.watch import watch

    raise typer.Exit(watch(runs, names or [], json=json))


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Run, or experiment number (its latest run).", **completion("runs"))
    ],
    device: Annotated[
        str, typer.Option(help="Train on this device; auto is one like the run's own.", metavar="NAME")
    ] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again, even if a reproduction has finished.")] = False,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Train a finished run again and compare the two, bit by bit.

    Settings, seed, corpus and threads are those of its run.json, not of today's experiments.toml. The reproduction is
    marked as such and never takes the place of the run. The name of a reproduction compares it with its original.
    """
    from lmconsole.commands.reproduce import reproduce

    raise typer.Exit(reproduce(runs, name, device, fresh=fresh, json=json))


@app.command()
def export(
    form: Annotated[
        Literal["all", "markdown", "latex", "html", "csv", "json", "parquet", "tensorboard"],
        typer.Option(
            "--format",
            help="File format; all means Markdown, LaTeX and CSV. html is one file with the whole report; csv, json "
            "and parquet contain data only; tensorboard means event files of all runs.",
        ),
    ] = "all",
    figures: Annotated[
        Literal["png", "pdf", "svg"], typer.Option("--figures", help="Draw figures as PNG, and as PDF or SVG too.")
    ] = "png",
    out: Annotated[
        Path, typer.Option("--out", help="Write into this folder.", metavar="DIR", parser=expand_path)
    ] = EXPORTS,
    output: Annotated[
        str | None,
        typer.Option("-o", help="Print the results table to standard output instead of writing files.", metavar="-"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Export the newest group of this preset.", metavar="NAME", **completion("presets")),
    ] = None,
    imported: Annotated[bool, typer.Option("--imported", help="Export the newest group of imported runs.")] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Export the group of this run.", metavar="RUN", **completion("runs")),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with these results: published, imported, or another store's folder.",
            metavar="WHAT",
            parser=expand_if_path,
        ),
    ] = None,
    template: Annotated[
        Literal["course", "general"] | None,
        typer.Option(
            help="Structure of the report: course answers the questions of the assignment, general has a method and an "
            "appendix on reproducibility. By default, course for the twelve experiments, else general."
        ),
    ] = None,
    siunitx: Annotated[bool, typer.Option("--siunitx", help="Align LaTeX numbers with siunitx.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Export again as runs progress, until none is active.")
    ] = False,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Export figures, tables and the report.

    An export shows one group of comparable runs: by default that of the run that finished last. Event files for
    TensorBoard show all runs, or those of --preset, --imported or --run. The paths of the files go to standard output.
    """
    from lmconsole.commands.export import export
    from lmconsole.report.export_options import ExportOptions

    options = ExportOptions(
        file_format=form,
        figure_format=figures,
        preset=preset,
        run=run or None,
        imported=imported or None,
        against=against,
        siunitx=siunitx,
        template=template,
    )
    export(runs, options, out, output=output, watch=watch, json=json)


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of run folders, one run folder, or a CSV.", metavar="PATH", parser=expand_path),
    ],
    experiments: Experiments = None,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Import runs made elsewhere into the store.

    Each run is a folder with args.json and valid_ppl.txt, one number per epoch, or rows of a CSV. docs/importing.md
    lists what they may hold. What cannot be read is reported, and the rest is imported.
    """
    from lmconsole.commands.import_runs import import_runs

    raise typer.Exit(import_runs(runs, source, experiments, json=json))


@data_app.command("info")
def data_info(
    data: Data = None,
    embeddings: Embeddings = None,
    preset: Preset = "auto",
    experiments: Experiments = None,
    json: Json = False,
) -> None:
    """Show the corpus and embeddings that a run would use."""
    from lmconsole.commands.data_info import show_data

    show_data(data, embeddings, preset, experiments, json=json)


@data_app.command("fetch")
def data_fetch(
    what: Annotated[
        str,
        typer.Argument(
            help="wikitext-2, gpt1 (tokenizer and embeddings), all (both), or a data set as hub:OWNER/NAME[/CONFIG].",
            metavar="[WHAT]",
            **completion(("all", "gpt1", "wikitext-2")),
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Save into this folder.",
            metavar="DIR",
            parser=expand_path,
            show_default="LMCONSOLE_DATA, ./data if it has a part of the data, or the user data folder",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files",
            help="Read the files of the hub from this folder instead of downloading them.",
            metavar="DIR",
            parser=expand_path,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Download what the preset paper needs, or a data set of the Hugging Face Hub.

    Downloads resume where they were interrupted. HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are honored. The
    folder goes to standard output.
    """
    from lmconsole.commands.fetch import fetch

    fetch(what, out, files, json=json)


@app.command()
def doctor(data: Data = None, embeddings: Embeddings = None, runs: Runs = STORE, json: Json = False) -> None:
    """Check whether this machine is ready.

    Check the GPU, PyTorch, data, embeddings, locale, disk space for the queue, and what could end runs overnight.
    """
    from lmconsole.commands.doctor import diagnose

    diagnose(data, embeddings, runs, json=json)


@app.command()
def bench(
    device: Annotated[
        str, typer.Option(help="Measure this device: auto, cpu, cuda or cuda:0.", metavar="NAME")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Compute in this precision: auto, fp32, tf32 or bf16.", metavar="NAME", show_default="the preset's"
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="Use the sizes of paper, scratch, demo, or one of your own.",
            metavar="NAME",
            **completion("presets"),
        ),
    ] = "paper",
    experiments: Experiments = None,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains, in a minute.

    Needs no data. Shows tokens per second, the share of the peak matmul throughput, memory, and how long all runs would
    take; `run` estimates its time from the results, or from similar runs once some have finished.
    """
    from lmconsole.commands.bench import run_bench

    run_bench(preset, device, precision, experiments, json=json)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Listen on this address.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen on this port.", metavar="N", min=1, max=65535)] = 8000,
    url: Annotated[
        str | None, typer.Option(help="Give this URL to browsers, for example behind a proxy.", metavar="URL")
    ] = None,
    preset: Preset = "auto",
    runs: Runs = STORE,
    experiments: Experiments = None,
    data: Data = None,
    embeddings: Embeddings = None,
    json: Json = False,
) -> None:
    """Show the console in a browser.

    By default it listens only on this machine. To reach it from yours:

    ssh -L 8000:127.0.0.1:8000 HOST
    """
    from lmconsole.tui.serve import serve as serve_console

    named = {"--preset": preset, "--runs": runs.absolute(), "--experiments": experiments}
    named |= {"--data": data, "--embeddings": embeddings}
    given = {name: str(value) for name, value in named.items() if value is not None}
    serve_console(host, port, url, given, json=json)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Write this file.", metavar="FILE", parser=expand_path)] = Path(
        "experiments.toml"
    ),
    json: Json = False,
) -> None:
    """Write an experiments.toml with comments, to start your own.

    It adds an experiment and a preset to the built-in ones, and lists all settings. A JSON Schema is written next to
    it, with which editors complete and check the file. Existing files are never overwritten.
    """
    from lmconsole.commands.init import init

    init(file, json=json)


@app.command()
def schema(
    name: Annotated[
        Literal["experiments", "run", "events", "output"] | None,
        typer.Argument(metavar="[NAME]", help="Print experiments, run, events or output; without a name, list them."),
    ] = None,
    json: Json = False,
) -> None:
    """Print the JSON Schema of a file or of the JSON output."""
    from lmconsole.commands.schema import show_schema

    show_schema(name, json=json)


@app.command()
def claims(runs: Runs = STORE, json: Json = False) -> None:
    """Show what the registered claims of a store come to.

    `lmconsole run --claims` registers them.
    """
    from lmconsole.commands.claims import show_claims

    raise typer.Exit(show_claims(runs, json=json))


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="CSV with one run on each row.", metavar="FILE.csv", parser=expand_path)],
    by: Annotated[str, typer.Option(help="Column that names the setting.", metavar="COLUMN")],
    metric: Annotated[str, typer.Option(help="Column to compare.", metavar="COLUMN")],
    where: Annotated[
        list[str] | None, typer.Option(help="Compare only these rows; may be repeated.", metavar="COLUMN=VALUE")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare each setting with this one, not all pairs.", metavar="VALUE")
    ] = None,
    pair_by: Annotated[
        str | None, typer.Option(help="Pair rows by this column, if that was planned.", metavar="COLUMN")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Largest difference that does not matter, fixed beforehand.", metavar="X")
    ] = None,
    planned: Annotated[
        int | None, typer.Option(help="Planned runs of each setting; with fewer, no verdict.", metavar="N", min=1)
    ] = None,
    higher_is_better: Annotated[
        bool, typer.Option("--higher-is-better", help="A diverged run counts as lowest, not highest.")
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="Compare logarithms, as for perplexities.")] = False,
    json: Json = False,
) -> None:
    """Compare settings in a CSV of results, yours or of any other program."""
    from lmconsole.commands.compare import compare_table

    raise typer.Exit(
        compare_table(
            file,
            by,
            metric,
            where=where or (),
            baseline=baseline,
            pair_by=pair_by,
            delta=delta,
            planned=planned,
            higher_is_better=higher_is_better,
            log=log,
            json=json,
        )
    )


@app.command()
def skill(json: Json = False) -> None:
    """Print instructions for coding agents (SKILL.md)."""
    from lmconsole.commands.skill import show_skill

    show_skill(json=json)


@app.command()
def keys(json: Json = False) -> None:
    """Print the keys of the console, as a file to change and save."""
    from lmconsole.commands.output import print_data, print_json, print_message
    from lmconsole.tui.keys import keys_file
    from lmconsole.tui.list_keys import key_entries, keys_toml

    entries, problem = key_entries()
    if json:
        print_json(entries)
    else:
        print_data(keys_toml(entries))
    if problem is not None:
        raise problem
    file = keys_file()
    if file is not None and not json:
        print_message(f"{'In use' if file.exists() else 'Save it as'}: {file}")


def main(arguments: list[str] | None = None) -> None:
    """Run the ``lmconsole`` command. Errors meant for a person become a message and an exit code, never a traceback."""
    prepare_streams()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of a pipe has gone, as head does: end as cat would
    signal.signal(signal.SIGINT, raise_interrupted)
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()
    except LmconsoleError as error:
        print(f"lmconsole: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
