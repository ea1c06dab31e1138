"""The front door: parse, call one function, turn errors into exit codes. Everything heavy is imported late."""

import io
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmconsole import __version__
from lmconsole.commands.interrupts import Interrupted, interrupted
from lmconsole.errors import ExitCode, LmconsoleError, escape_control_characters

if TYPE_CHECKING:
    from lmconsole.runs.store import Store

app = typer.Typer(
    name="lmconsole",
    help="Train, watch and compare small language models on one GPU box.\n\nWithout a command it opens the app.",
    epilog="First time here? Try: lmconsole --preset demo, then press a and r",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Corpora and embeddings.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data_app, name="data")

Runs = Annotated[Path, typer.Option("--runs", envvar="LMCONSOLE_RUNS", help="Run store.", metavar="DIR")]
Experiments = Annotated[
    Path | None, typer.Option("--experiments", help="experiments.toml to use.", metavar="FILE", show_default="built in")
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of token or text files.", metavar="DIR")]
Embeddings = Annotated[Path | None, typer.Option("--embeddings", help="File of embedding tables.", metavar="FILE")]
Preset = Annotated[
    str, typer.Option("--preset", help="auto, paper, scratch, demo, or one of your own.", metavar="NAME")
]
Theme = Annotated[str | None, typer.Option("--theme", help="Colours of the app; remembered.", metavar="NAME")]
Slow = Annotated[bool, typer.Option("--slow", help="For a slow line: draw less often, in fewer colours.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]

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
    theme: Theme = None,
    slow: Slow = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        from lmconsole.tui.open import open_console

        raise typer.Exit(open_console(preset, runs, experiments, data, embeddings, theme, slow=slow))


@app.command("list")
def list_experiments(experiments: Experiments = None, runs: Runs = STORE, json: Json = False) -> None:
    """List the experiments and how their latest runs stand."""
    from lmconsole.commands.listing import console, experiments_as_dicts, experiments_table
    from lmconsole.plan.load import load_plan
    from lmconsole.runs.store import Store, latest_by_experiment

    plan = load_plan(experiments)
    latest = latest_by_experiment(Store(runs).runs())
    if json:
        _print_json(experiments_as_dicts(plan, latest))
    else:
        console().print(experiments_table(plan, latest))


@app.command()
def run(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Experiments, such as 5 or 1-4.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All experiments; wait for those under way.")] = False,
    headless: Annotated[bool, typer.Option("--headless", help="Show progress here instead of the app.")] = False,
    preset: Preset = "auto",
    epochs: Annotated[int | None, typer.Option(help="Passes over the train split.", metavar="N")] = None,
    seeds: Annotated[str | None, typer.Option(help="1,2,3 or 1..10.", metavar="LIST")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="First N tokens only.", metavar="N")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0,cuda:1 or all.", metavar="NAME")] = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32, tf32 or bf16.", metavar="NAME")] = None,
    jobs: Annotated[
        str, typer.Option(help="Runs at once on one device; auto suits the size of each.", metavar="N")
    ] = "auto",
    data: Data = None,
    embeddings: Embeddings = None,
    experiments: Experiments = None,
    runs: Runs = STORE,
    fresh: Annotated[bool, typer.Option("--fresh", help="New runs, even where finished ones exist.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    no_export: Annotated[bool, typer.Option("--no-export", help="No exports when the queue drains.")] = False,
    on_finish: Annotated[
        str | None, typer.Option(help="Program to run when the queue drains (no shell).", metavar="CMD")
    ] = None,
    json: Json = False,
) -> None:
    """Train experiments and print the results."""
    from lmconsole.engine.run_options import run_options

    options = run_options(
        ids=ids or [],
        everything=everything,
        preset=preset,
        epochs=epochs,
        seeds=seeds,
        max_tokens=max_tokens,
        device=device,
        precision=precision,
        jobs=jobs,
        data=data,
        embeddings=embeddings,
        experiments=experiments,
        runs=runs,
        fresh=fresh,
        exports=None if no_export else Path(EXPORTS).absolute(),
        on_finish=on_finish,
        json=json,
    )
    if dry:
        from lmconsole.commands.dry_run import dry_run

        raise typer.Exit(dry_run(options))
    if not headless and not json:
        from lmconsole.tui.open import open_console, terminal_problem

        problem = terminal_problem()
        if problem is None:
            console = (preset, runs, experiments, data, embeddings, None)
            raise typer.Exit(open_console(*console, submit=options))
        typer.echo(f"{problem}: running as with --headless.", err=True)
    from lmconsole.commands.run import run_headless

    raise typer.Exit(run_headless(options))


@app.command()
def status(runs: Runs = STORE, json: Json = False) -> None:
    """Show the runs in the store."""
    from lmconsole.commands.listing import console, run_as_dict, status_table

    store = _store(runs)
    found = store.runs()
    if json:
        _print_json([run_as_dict(run) for run in found])
    elif not found:
        typer.echo(f"{store.root}: no runs yet. `lmconsole run ID` trains an experiment.", err=True)
    else:
        console().print(status_table(found))
        for run in found:
            if run.state.failed:
                _talk(f"{run.run}: {run.state.failed.message}\n  {run.state.failed.hint}")
            if run.state.damaged:
                _talk(f"{run.run}: warning: {run.state.damaged} damaged lines in its log were skipped")
    _warn_about(store)


@app.command()
def stop(
    wanted: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs or experiment numbers.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every active run.")] = False,
    runs: Runs = STORE,
) -> None:
    """Stop runs; each can be resumed."""
    from lmconsole.engine.submit import stop_runs

    store = _store(runs)
    chosen = [run for run in store.runs() if run.status.active] if everything else _find(store, wanted)
    for line in stop_runs(store, chosen) or [f"{store.root}: no active run"]:
        _talk(line)


@app.command()
def watch(
    wanted: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Runs or experiment numbers.")] = None,
    runs: Runs = STORE,
    json: Json = False,
) -> None:
    """Follow runs until they end.

    Without a name, all active ones. An interrupt leaves them running.
    """
    from lmconsole.commands.run import watch as watch_runs

    store = _store(runs)
    chosen = _find(store, wanted) if wanted else [run for run in store.runs() if run.status.active]
    if not chosen:
        typer.echo(f"{store.root}: no active run", err=True)
        return
    raise typer.Exit(watch_runs(store, [run.run for run in chosen], json=json))


@app.command()
def export(
    form: Annotated[
        Literal["all", "markdown", "latex", "csv", "json", "parquet"],
        typer.Option("--format", help="all is markdown, latex and csv; the last three are data only."),
    ] = "all",
    figures: Annotated[
        Literal["png", "pdf", "svg"], typer.Option("--figures", help="Figures as PNG, and as PDF or SVG too.")
    ] = "png",
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.", metavar="DIR")] = EXPORTS,
    output: Annotated[str | None, typer.Option("-o", help="- prints the results table instead.", metavar="-")] = None,
    preset: Annotated[str | None, typer.Option(help="The newest group of this preset.", metavar="NAME")] = None,
    imported: Annotated[bool, typer.Option("--imported", help="The newest group of imported runs.")] = False,
    of_run: Annotated[str | None, typer.Option("--run", help="The group of this run.", metavar="RUN")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare: published, imported, or a store's folder.", metavar="WHAT"),
    ] = None,
    siunitx: Annotated[bool, typer.Option("--siunitx", help="LaTeX numbers aligned by siunitx.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Export anew as runs go on, until none is active.")] = False,
    runs: Runs = STORE,
) -> None:
    """Write the results as figures, tables and a report.

    One export shows one group of comparable runs: by default that of the run which finished last. The paths written go
    to standard output.
    """
    from lmconsole.report.export import ExportOptions, keep_current, print_table
    from lmconsole.report.export import export as write

    store = _store(runs)
    options = ExportOptions(
        file_format=form,
        figure_format=figures,
        preset=preset,
        run=store.find(of_run).run if of_run else None,
        imported=imported or None,
        against=against,
        siunitx=siunitx,
    )
    if output is not None:
        if output != "-":
            raise LmconsoleError(f"-o {output!r}: only - is known, for standard output", hint="--out names a folder.")
        if watch:
            raise LmconsoleError("-o -: --watch writes files", hint="Leave one of the two out.")
        typer.echo(print_table(store, options), nl=False)
    elif watch:
        keep_current(store, out.absolute(), options, lambda paths: typer.echo(f"{len(paths)} files: {out.absolute()}"))
    else:
        for path in write(store, out.absolute(), options):
            typer.echo(path)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder of run folders, one run folder, or a CSV.", metavar="DIR")],
    experiments: Experiments = None,
    runs: Runs = STORE,
) -> None:
    """Take runs made elsewhere into the store.

    Each is a folder with args.json and valid_ppl.txt, a number per epoch, or rows of a CSV. docs/importing.md lists
    what they may hold. What cannot be read is reported, and the rest imported.
    """
    from lmconsole.importing.import_runs import import_runs
    from lmconsole.plan.load import load_plan

    report = import_runs(_store(runs), source, load_plan(experiments))
    for place, run in report.imported.items():
        typer.echo(f"{run}: imported from {escape_control_characters(place)}")
    for place, run in report.imported_before.items():
        typer.echo(f"{run}: imported before, from {escape_control_characters(place)}")
    for problem in report.problems:
        typer.echo(f"{escape_control_characters(problem)}: not imported", err=True)
    if report.problems:
        raise typer.Exit(ExitCode.RUN_FAILED if report.imported or report.imported_before else ExitCode.USAGE)


@data_app.command("info")
def data_info(
    data: Data = None,
    embeddings: Embeddings = None,
    preset: Preset = "auto",
    experiments: Experiments = None,
    json: Json = False,
) -> None:
    """Say which corpus and embeddings would be used, and what is in them."""
    from lmconsole.commands.data_info import data_report

    report, lines = data_report(data, embeddings, preset, experiments)
    if json:
        _print_json(report)
    else:
        for line in lines:
            typer.echo(line)


@app.command()
def doctor(data: Data = None, embeddings: Embeddings = None, runs: Runs = STORE, json: Json = False) -> None:
    """Check whether this machine is ready.

    Looks at GPU, PyTorch, data, embeddings, locale and disk.
    """
    from lmconsole.commands.doctor import examine, print_findings

    findings = examine(data=data, embeddings=embeddings, runs=runs)
    if json:
        import msgspec

        _print_json(msgspec.to_builtins(findings))
    else:
        print_findings(findings)


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.", metavar="NAME")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, tf32 or bf16.", metavar="NAME", show_default="the preset's")
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="paper, scratch, demo, or one of your own.", metavar="NAME")
    ] = "paper",
    experiments: Experiments = None,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains, in a minute.

    Needs no data. Tokens per second, share of what plain matrix products reach, memory, and how long all runs would
    take; `run` estimates its time from it.
    """
    from lmconsole.commands.bench import measure, print_result

    result = measure(preset, device, precision, experiments)
    if json:
        _print_json(result)
    else:
        print_result(result)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", metavar="N", min=1, max=65535)] = 8000,
    url: Annotated[
        str | None, typer.Option(help="Where browsers find it, if not there, as behind a proxy.", metavar="URL")
    ] = None,
    preset: Preset = "auto",
    runs: Runs = STORE,
    experiments: Experiments = None,
    data: Data = None,
    embeddings: Embeddings = None,
) -> None:
    """Show the app in a browser.

    It listens on this machine alone: ssh -L 8000:127.0.0.1:8000 brings it to yours.
    """
    from lmconsole.tui.serve import serve as serve_app

    named = {"--preset": preset, "--runs": runs.absolute(), "--experiments": experiments}
    named |= {"--data": data, "--embeddings": embeddings}
    serve_app(host, port, url, {name: str(value) for name, value in named.items() if value is not None})


def _store(root: Path) -> "Store":
    from lmconsole.runs.store import Store

    return Store(root)


def _find(store: "Store", wanted: list[str] | None) -> Any:
    if not wanted:
        raise LmconsoleError("name at least one run, or --all", hint="`lmconsole status` lists the runs there are.")
    return [store.find(name) for name in wanted]


def _warn_about(store: "Store") -> None:
    for name, problem in store.problems.items():
        _talk(f"warning: {name}: {problem}")


def _talk(message: str) -> None:
    """Words for a person, on standard error; nothing in them can steer the terminal."""
    typer.echo(escape_control_characters(message), err=True)


def _print_json(value: Any) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``lmconsole`` command: no traceback reaches a person."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our characters shows ? in their place
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever read our output has gone, as head does: end as cat would
    signal.signal(signal.SIGINT, interrupted)
    try:
        app(arguments)
    except LmconsoleError as error:
        print(f"lmconsole: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
