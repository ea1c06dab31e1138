"""The table [executor.slurm] of experiments.toml: options for jobs of SLURM.

Keys are sbatch's own long options, and a few of ours. sbatch checks the values of its options itself.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

MAX_RESTARTS = 1_000
MAX_AT_ONCE = 100_000
MAX_WARNING_S = 65_535
"""Largest value that sbatch takes."""
WARNING_S = 120
OPTION = re.compile(r"[a-z][a-z0-9-]{0,63}")
RESERVED: Mapping[str, str] = {
    "array": "lmconsole numbers the runs; use at_once to limit how many train at once",
    "chdir": "jobs start in the store",
    "dependency": "lmconsole orders its jobs",
    "error": "the output of each task is in the store, under .slurm",
    "export-file": "",
    "input": "tasks read no input",
    "job-name": "lmconsole finds its jobs by their names",
    "kill-on-invalid-dep": "",
    "nodes": "a run trains on one node",
    "ntasks": "a run is one process",
    "ntasks-per-node": "a run is one process",
    "open-mode": "the output of a task that starts again is appended",
    "output": "the output of each task is in the store, under .slurm",
    "parsable": "",
    "quiet": "",
    "requeue": "it is the default; no-requeue = true turns it off",
    "signal": "use warning_s",
    "test-only": "`lmconsole run --dry-run` does that",
    "wait": "",
    "wrap": "the job is lmconsole's",
}
"""Options of sbatch that lmconsole sets or that make no sense here, and why; an empty reason is obvious."""
OWN = ("setup", "at_once", "restarts", "warning_s", "last")

Report = Callable[[str], None]


class SlurmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for the jobs of a submission."""

    sbatch: dict[str, str | None] = {}
    """Options of sbatch without dashes, such as ``partition``, and their values; None for a flag."""
    last: dict[str, str | None] = {}
    """Other options for the last job, which exports: it needs a processor and no GPU."""
    setup: str = ""
    """Lines of shell that prepare the job, run as they are written."""
    at_once: int | None = None
    """Runs that train at once; None: as many as SLURM allows."""
    restarts: int = 10
    """Times in a row that a run is started again without getting on, before it counts as failed."""
    warning_s: int | None = None
    """Time before the time limit in seconds at which a run saves a checkpoint and ends, to be started again. None for
    ``WARNING_S``, or half of a shorter time limit."""

    @property
    def cpus_per_task(self) -> int:
        """CPUs of each task, as far as the options say: 1 if they do not, as in SLURM."""
        value = self.sbatch.get("cpus-per-task") or self.sbatch.get("cpus-per-gpu") or "1"
        return max(1, int(value)) if value.isdecimal() else 1

    def merged(self, sbatch: Mapping[str, str | None]) -> "SlurmOptions":
        """Return these options, overridden by those of the command line."""
        return msgspec.structs.replace(self, sbatch={**self.sbatch, **sbatch})


def read_executor(data: object, report: Report) -> SlurmOptions:
    """Return the options in the table [executor], and report what is wrong in it."""
    if not isinstance(data, dict):
        report("[executor]: expected the table [executor.slurm]")
        return SlurmOptions()
    for name in data:
        if name != "slurm":
            report(f"[executor]: {name}: unknown key; known: slurm")
    table = data.get("slurm", {})
    if not isinstance(table, dict):
        report("[executor.slurm]: expected a table of options of sbatch")
        return SlurmOptions()
    own: dict[str, Any] = {}
    for key in OWN:
        if key == "last" or key not in table:
            continue
        if problem := _own_problem(key, table[key]):
            report(f"[executor.slurm]: {key}: {problem}")
        else:
            own[key] = "\n".join(table[key]) if isinstance(table[key], list) else table[key]
    last = table.get("last", {})
    if not isinstance(last, dict):
        report("[executor.slurm]: last: expected a table of options of sbatch")
        last = {}
    return SlurmOptions(
        sbatch=_options({k: v for k, v in table.items() if k not in OWN}, "[executor.slurm]", report),
        last=_options(last, "[executor.slurm.last]", report),
        **own,
    )


def _options(table: Mapping[str, object], place: str, report: Report) -> dict[str, str | None]:
    """Return the options of sbatch in a table, and report what is wrong."""
    options: dict[str, str | None] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        problem = option_problem(name)
        if problem is None and not isinstance(value, str | int | float):
            problem = "expected text, a number, true or false"
        if problem is None and not isinstance(value, bool):
            problem = value_problem(str(value))
        if problem:
            report(f"{place}: {key}: {problem}")
        elif value is not False:
            options[name] = None if value is True else str(value)
    return options


def _own_problem(key: str, value: object) -> str | None:
    """Return what is wrong with a value of ours."""
    if key == "setup":
        lines = value if isinstance(value, list) else [value]
        if not all(isinstance(line, str) for line in lines):
            return "expected lines of shell, as text or a list of texts"
        return "expected no NUL characters" if any("\0" in str(line) for line in lines) else None
    low, high = {"at_once": (1, MAX_AT_ONCE), "restarts": (0, MAX_RESTARTS), "warning_s": (1, MAX_WARNING_S)}[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        return f"expected a whole number from {low:,} to {high:,}"
    return None


def option_problem(name: str) -> str | None:
    """Return why an option of sbatch cannot be given; None if it can."""
    if not OPTION.fullmatch(name):
        return "expected a long option of sbatch, such as partition"
    if name in RESERVED:
        return f"set by lmconsole{f': {RESERVED[name]}' if RESERVED[name] else ''}"
    if name.replace("-", "_") in OWN:
        return f"not an option of sbatch; write {name.replace('-', '_')} in [executor.slurm]"
    return None


def value_problem(value: str) -> str | None:
    """Return why the value of an option cannot be written into a job script; None if it can."""
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        return "expected one line without control characters"
    return None


def parse_sbatch(words: Iterable[str]) -> dict[str, str | None]:
    """Return the options of sbatch in ``words``, such as ``--partition=gpu``. Raises ValueError with one argument per
    problem."""
    options: dict[str, str | None] = {}
    problems = []
    last = None
    for word in words:
        if not word.startswith("--"):
            if last is None:
                problems.append(f"{word!r}: expected long options of sbatch, such as --partition=gpu")
            else:
                options[last] = word
            last = None
            continue
        name, separator, value = word[2:].partition("=")
        last = None if separator else name
        options[name] = value if separator else None
    for name, given in options.items():
        if (problem := option_problem(name)) or (problem := value_problem(given or "")):
            problems.append(f"--{name}: {problem}")
    if problems:
        raise ValueError(*problems)
    return options
