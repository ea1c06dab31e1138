"""Resolution of a request in a short job, on a node like those that will train."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lmconsole.engine.child import ChildError, encode_request
from lmconsole.engine.probe import TIMEOUT_S, ProbeAnswer
from lmconsole.engine.run_options import RunRequest
from lmconsole.engine.slurm.batch import MAX_BYTES, folder_of, new_batch_id, write_script
from lmconsole.engine.slurm.commands import SlurmError, SlurmUnreachableError, cancel, describe_job, submit
from lmconsole.engine.slurm.probe import ANSWER, LOG, REQUEST, NodeRequest
from lmconsole.engine.slurm.reasons import describe_reason
from lmconsole.engine.slurm.script import minutes, probe_script
from lmconsole.errors import LmconsoleError, StoreError, escape_control_characters
from lmconsole.files import LineTail, atomic_write, read_file
from lmconsole.plan.executor import SlurmOptions, parse_sbatch
from lmconsole.plan.load import load_plan
from lmconsole.plan.presets import AUTO
from lmconsole.runs.cluster import LIVE
from lmconsole.runs.store import Store

POLL_S = 0.2
ASK_S = 5.0
"""Interval at which SLURM is asked about the job."""
PATIENCE_S = 60.0
"""Time after which the message says how to do without the job."""
VISIBLE_S = 60.0
"""Time in which a file that a node has written becomes visible here."""
LIMIT_MINUTES = 30


def slurm_options(request: RunRequest) -> SlurmOptions:
    """Return the options for SLURM of a request: its own over those of the file of experiments. Raises PlanError."""
    return load_plan(request.experiments).slurm.merged(parse_sbatch(request.sbatch))


def needs_node(request: RunRequest) -> bool:
    """Return whether anything in a request is decided by the machine that trains. Raises PlanError."""
    if request.preset == AUTO or request.device == AUTO:
        return True
    plan = load_plan(request.experiments)
    resolved = (plan.resolve(plan.experiment(each), request.preset, request.overrides) for each in request.ids)
    return any(each.settings.precision == AUTO for each in resolved)


def ask_node(request: RunRequest, report: Callable[[str], None]) -> ProbeAnswer:
    """Resolve ``request`` in a job, and wait for its answer; an interrupt cancels the job.

    Raises:
        SlurmError: the job cannot be submitted, or ended without an answer.
        LmconsoleError: the request or the node is unsuitable.
        StoreError: the store, through which the node answers, cannot be written.
    """
    store, batch = Store(request.runs), new_batch_id()
    folder = folder_of(store.root, batch)
    try:
        store.create()
        folder.mkdir(parents=True)
        with atomic_write(folder / REQUEST) as file:
            file.write(encode_request(NodeRequest(cwd=str(Path.cwd()), request=request)))
        script = folder / "probe.sh"
        options = slurm_options(request)
        limit = min(minutes(options.sbatch.get("time")) or LIMIT_MINUTES, LIMIT_MINUTES)
        write_script(script, probe_script(options, folder, batch, limit))
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    job = None
    try:
        job = submit(script)
        report(f"Job {job} checks data and devices on a node …")
        answer = _wait(job, folder, report)
        job = None
        return answer
    finally:
        if job is not None:
            with contextlib.suppress(SlurmError):
                cancel([job])
        shutil.rmtree(folder, ignore_errors=True)


def _wait(job: str, folder: Path, report: Callable[[str], None]) -> ProbeAnswer:
    """Wait for the answer of a job, and report why it waits."""
    tail, began_s, asked_s, ended_s = LineTail(folder / LOG), time.monotonic(), time.monotonic(), None
    last_line, state, told, advised = "", "", "", False
    while True:
        with contextlib.suppress(OSError):
            for line in tail.read_lines():
                last_line = line.strip() or last_line
                if line.startswith("progress: "):
                    report(line.removeprefix("progress: "))
        with contextlib.suppress(OSError):
            return _decode(read_file(folder / ANSWER, MAX_BYTES, follow=False))
        now_s = time.monotonic()
        if ended_s is not None and now_s - ended_s > (VISIBLE_S if not last_line else ASK_S):
            raise SlurmError(
                f"the job that checks data and devices ended without an answer: {last_line or 'it printed nothing'}",
                hint="Is this lmconsole, with its Python, and the store visible on the nodes? "
                "Name --preset, --device and --precision to do without that job.",
            )
        if now_s - began_s > TIMEOUT_S and state != "RUNNING":
            raise SlurmError(
                f"the job that checks data and devices has waited for {TIMEOUT_S / 60:.0f} min: {told}",
                hint="Name --preset, --device and --precision to do without it.",
            )
        if ended_s is None and now_s - asked_s > ASK_S:
            asked_s = now_s
            with contextlib.suppress(SlurmUnreachableError):
                try:
                    found = describe_job(job)
                except SlurmUnreachableError:
                    raise
                except SlurmError:
                    found = {}
                state = found.get("JobState", "")
                ended_s = None if state in LIVE else now_s
                word = describe_reason(state, found.get("Reason", ""))
                if word != told:
                    told = word
                    report(f"Job {job}: {word}")
                if not advised and now_s - began_s > PATIENCE_S and state == "PENDING":
                    advised = True
                    report("Name --preset, --device and --precision to queue runs without this job.")
        time.sleep(POLL_S)


def _decode(data: bytes) -> ProbeAnswer:
    try:
        found = msgspec.json.decode(data, type=ProbeAnswer | ChildError)
    except msgspec.MsgspecError as error:
        raise SlurmError(
            f"the node gave an answer that cannot be read: {escape_control_characters(str(error))}"
        ) from None
    if isinstance(found, ChildError):
        raise LmconsoleError(found.message, hint=found.hint)
    return found
