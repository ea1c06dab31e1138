"""A SLURM cluster of real daemons on loopback: munged, slurmctld and some slurmd, all of the current user.

It needs neither systemd nor cgroups nor root. Debian and Ubuntu have the daemons in slurmctld, slurmd, slurm-client and
munge. By hand it runs until Ctrl+C, and prints what a shell needs to use it:

    python tests/slurm_rig.py --nodes 3 --gpus 4
"""

import argparse
import contextlib
import os
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import psutil

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "setpriv")
MISSING = "needs slurmctld, slurmd, slurm-client and munge"
PORTS = range(20_000, 32_000)
"""Ports of the daemons: below those that the kernel gives to clients, so that no connection takes one meanwhile."""
STARTS = 5
"""Attempts to start a daemon on other ports, should another process take one of them first."""
STOP_S = 10.0
"""Seconds that a daemon has to exit after SIGTERM."""
CRED_EXPIRE_S = 8
"""Lifetime of a job's credential in seconds. A requeued job waits for as long; below 8 s a node may refuse it."""

MESSAGE_TIMEOUT_S = 5
"""Seconds of one message between daemons: with the usual 10 s, a dead node is found later."""


@dataclass(frozen=True)
class ClusterJob:
    """A job, or a task of a job array, as squeue lists it."""

    id: str
    """``12``, or ``12_3`` for a task of an array; ``12_[3-5%2]`` for those that no node has seen yet."""
    state: str
    reason: str
    node: str
    restarts: int
    partition: str
    name: str


class SlurmError(RuntimeError):
    """A daemon did not start, or a state was not reached in time; has the end of the logs."""


class SlurmCluster:
    """The cluster. Its nodes are ``n1``, ``n2``, …; partition ``debug`` is the default, and ``high`` preempts it.

    The daemons keep their files in a short temporary folder, ``root``: the path of a Unix socket has at most 107
    bytes, and that of munge's may have no space in slurm.conf, even in quotes. Jobs can run in any folder.

    ``nodes`` have ``cpus`` each and ``gpus`` that only pretend to be some. ``max_array_size`` is one more than the
    largest index of an array. A preempted job has ``grace_s`` seconds after SIGTERM, then it is requeued or cancelled
    according to ``preempt_mode``. A cancelled job, and one beyond its time limit, has ``kill_wait_s`` seconds.
    ``job_requeue`` says whether jobs may be requeued that do not say so themselves. A node is down when it has not
    answered for ``slurmd_timeout_s`` seconds. The controller forgets finished jobs after ``min_job_age_s`` seconds.
    """

    def __init__(
        self,
        *,
        nodes: int = 1,
        cpus: int = 8,
        gpus: int = 4,
        max_array_size: int = 1001,
        preempt_mode: Literal["REQUEUE", "CANCEL"] = "REQUEUE",
        grace_s: int = 5,
        kill_wait_s: int = 2,
        job_requeue: bool = True,
        slurmd_timeout_s: int = 120,
        min_job_age_s: int = 300,
    ) -> None:
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.gpus = gpus
        self.max_array_size = max_array_size
        self.preempt_mode = preempt_mode
        self.grace_s = grace_s
        self.kill_wait_s = kill_wait_s
        self.job_requeue = job_requeue
        self.slurmd_timeout_s = slurmd_timeout_s
        self.min_job_age_s = min_job_age_s
        self.root = Path()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def available() -> bool:
        """Return whether all programs are installed."""
        return all(shutil.which(name, path=_path()) for name in PROGRAMS)

    # Start and stop

    def __enter__(self) -> "SlurmCluster":
        try:
            for attempt in range(STARTS):
                try:
                    self._start()
                    break
                except SlurmError as error:
                    if "already in use" not in str(error) or attempt == STARTS - 1:
                        raise
                    self.stop()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        for name in ("state", "log", "run", "dev"):
            (self.root / name).mkdir()
        for folder in (self.root, self.root / "run"):
            folder.chmod(0o711)  # munged insists that all users can reach its socket
        self._write_config()
        key = self.root / "munge.key"
        key.touch(0o400)
        key.chmod(0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key, "socket": self._socket, "pid-file": self.root / "run/munged.pid"}
        files |= {"log-file": self.root / "log/munged.log", "seed-file": self.root / "run/munged.seed"}
        self._launch("munged", "--foreground", "--num-threads=2", *(f"--{name}={path}" for name, path in files.items()))
        self.wait_for(self._socket.exists, "munged to open its socket")
        self._launch("slurmctld", "-D", "-c")
        for node in self.nodes:
            (self.root / "spool" / node).mkdir(parents=True)
            self._launch(node, "-D", "-c", "-N", node)
        self.wait_for_nodes()

    def stop(self) -> None:
        """End all daemons and jobs, and remove the folder. Does nothing if there is none."""
        if self.root == Path():
            return
        self._kill_jobs()
        self._terminate(*(name for name in self._daemons if name != "munged"))
        self._terminate(*self._daemons)  # munged, which the others need to the end
        self._kill_jobs()  # started meanwhile
        shutil.rmtree(self.root)
        self.root = Path()

    def _launch(self, name: str, *arguments: str) -> None:
        """Start a daemon that the kernel ends together with this process."""
        program = name if name in ("munged", "slurmctld") else "slurmd"
        with (self.root / "log" / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, *arguments],
                cwd=self.root,  # for a memory dump, should it crash
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl+C is for the tests, which stop the daemons in order
            )

    def _terminate(self, *names: str) -> None:
        daemons = [self._daemons.pop(name) for name in names]
        children = [child for daemon in daemons for child in _descendants(daemon.pid)]
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _kill(children)

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        children = _descendants(daemon.pid)
        daemon.kill()
        daemon.wait()
        _kill(children)

    # Use

    @property
    def config(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def _socket(self) -> Path:
        return self.root / "run/munge.socket"

    def environment(self) -> dict[str, str]:
        """Return the variables with which SLURM's commands find this cluster, and the user's other ones."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**own, "PATH": _path(), "SLURM_CONF": str(self.config)}

    def run(self, *command: str, check: bool = True, timeout_s: float = 30) -> str:
        """Run a command in this cluster and return its output without the last line end.

        Raises ``SlurmError`` with what the command printed if it fails and ``check`` is true.
        """
        done = subprocess.run(
            command,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            encoding="utf-8",
            check=False,
        )
        if check and done.returncode:
            raise SlurmError(f"{shlex.join(command)}: {done.stdout.strip() or f'exit status {done.returncode}'}")
        return done.stdout.rstrip("\n")

    def submit(self, script: str, *options: str, folder: Path | None = None) -> str:
        """Submit a shell script, and return the number of the job."""
        chdir = [] if folder is None else [f"--chdir={folder}"]
        return self.run("sbatch", "--parsable", *chdir, *options, f"--wrap={script}")

    def jobs(self) -> dict[str, ClusterJob]:
        """Return the jobs that the controller remembers, finished ones too; tasks of an array one by one."""
        fields = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "Partition", "Name")
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-O", ",".join(f"{field}:|" for field in fields))
        found = {}
        for line in lines.splitlines():
            number, state, reason, node, restarts, partition, name = line.split("|", len(fields))[: len(fields)]
            found[number] = ClusterJob(number, state, reason, node, int(restarts), partition, name)
        return found

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        """Return when the condition holds. If it never does, raise ``SlurmError`` with the daemons' last words."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_daemons()
            if condition():
                return
            if time.monotonic() > deadline:
                now = self.run("sh", "-c", "squeue -r -t all; sinfo -N", check=False)
                raise SlurmError(f"Waited {timeout_s:g} s for {what}.\n{now}\n{self._logs()}")
            time.sleep(0.05)

    def skip_requeue_delay(self, *jobs: str) -> None:
        """Wait until the jobs are pending again, and let them start in two seconds.

        Otherwise they start when their old credential has expired, and are pending with reason ``BeginTime``. A job
        fails if its new credential is of the same second as the end of the old one ("Job credential revoked").
        """
        for job in jobs:
            self.wait_for_state(job, "PENDING")
        for job in jobs:
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def wait_for_state(self, job: str, state: str, timeout_s: float = 60) -> None:
        self.wait_for(lambda: self.jobs()[job].state == state, f"job {job} to be {state}", timeout_s)

    def wait_until_idle(self, timeout_s: float = 120) -> None:
        """Return when no job is pending, running or ending any more."""
        self.wait_for(lambda: not self.run("squeue", "-h", "-o", "%i"), "all jobs to end", timeout_s)

    def wait_for_nodes(self, state: str = "idle", nodes: Iterable[str] | None = None, timeout_s: float = 30) -> None:
        """Return when each of the nodes (all of them if None) is in a state, as ``sinfo`` names it."""
        wanted = list(self.nodes if nodes is None else nodes)

        def reached() -> bool:
            listed = self.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%N %t", check=False)
            states = dict(line.split(" ", 1) for line in listed.splitlines() if line.count(" ") == 1)
            return all(states.get(node, "").rstrip("*") == state for node in wanted)

        self.wait_for(reached, f"{', '.join(wanted)} to be {state}", timeout_s)

    # Faults

    def drain(self, node: str) -> None:
        """Give a node no further jobs; those on it go on."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def resume(self, node: str) -> None:
        """Give a node jobs again after ``drain``, or if it is down for another reason."""
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def kill_node(self, node: str) -> None:
        """End the node's daemon and all processes of its jobs at once, as when its power fails."""
        self._kill(node)
        self._kill_jobs(node)

    def partition_node(self, node: str) -> None:
        """End the node's daemon only. The controller takes the node for down, but its jobs go on, as without a network.

        Unlike there, a job that ends by itself still tells the controller.
        """
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def declare_down(self, node: str) -> None:
        """Tell the controller that a node is down, which it finds out itself only after 20 s or more."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    def start_node(self, node: str) -> None:
        """Start the node's daemon after ``kill_node`` or ``partition_node``; return when it is registered."""
        started = int(time.time())
        self._launch(node, "-D", "-b", "-N", node)  # -b: tell the controller of a restart of the machine

        def registered() -> bool:
            found = re.search(r"SlurmdStartTime=(\S+)", self.run("scontrol", "show", "node", node))
            return bool(found and found[1] != "None" and datetime.fromisoformat(found[1]).timestamp() >= started)

        self.wait_for(registered, f"{node} to register")

    def stop_controller(self) -> None:
        """Stop slurmctld in order; it saves its jobs, which go on. SLURM's commands fail until it is started."""
        self._terminate("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld with the jobs that it had, and return when it answers."""
        self._launch("slurmctld", "-D")
        self.wait_for(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld to answer")

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()

    def preempt(self, seconds: float, *options: str) -> str:
        """Submit a job that needs all CPUs of all nodes and preempts what runs there; return its number."""
        each = (f"--nodes={len(self.nodes)}", "--ntasks-per-node=1", f"--cpus-per-task={self.cpus}", "--mem=0")
        more = ("--partition=high", "--output=/dev/null", "--job-name=preempt", *options)
        return self.submit(f"sleep {seconds}", *each, *more, folder=self.root)

    def reset(self) -> None:
        """Undo all faults and cancel all jobs: return when every node is idle."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        self.run("scancel", f"--user={_user()}")
        for node in self.nodes:
            if node not in self._daemons:
                self.start_node(node)
        for node in self.nodes:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # refused for an idle one
        self.set_grace(self.grace_s)
        self.wait_until_idle()
        self.wait_for_nodes()

    def set_grace(self, seconds: int) -> None:
        """Change the grace time of preempted jobs until ``reset``. SLURM may end them 10 s later than that."""
        self.run("scontrol", "update", "PartitionName=debug", f"GraceTime={seconds}")

    # Parts

    def daemons(self) -> list[psutil.Process]:
        """Return munged, slurmctld and the slurmd that run, and their helpers."""
        found = [psutil.Process(daemon.pid) for daemon in self._daemons.values()]
        return [*found, *(child for daemon in found for child in daemon.children(recursive=True))]

    def processes(self, node: str | None = None) -> list[psutil.Process]:
        """Return the processes of all jobs, or of those on a node, and the slurmstepd that started each."""
        marks = {f"SLURM_CONF={self.config}".encode()}
        marks |= set() if node is None else {f"SLURMD_NODENAME={node}".encode()}
        logs = {str(self.root / "log" / f"{name}.log") for name in (self.nodes if node is None else [node])}
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name() == "slurmstepd":  # has overwritten its environment
                    if logs & {file.path for file in process.open_files()}:
                        found |= {each.pid: each for each in (process, *_descendants(process.pid))}
                    continue
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if marks <= set(variables) and any(each.startswith(b"SLURM_JOB_ID=") for each in variables):
                    found[process.pid] = process
        return list(found.values())

    def _kill_jobs(self, node: str | None = None) -> None:
        while found := self.processes(node):
            _kill(found)

    def _check_daemons(self) -> None:
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                raise SlurmError(f"{name} ended with exit status {daemon.returncode}.\n{self._logs()}")

    def _logs(self) -> str:
        """Return the last lines that each daemon has logged or printed."""
        lines = []
        for path in sorted((self.root / "log").glob("*")):
            if path.suffix == ".log" or not path.with_suffix(".log").exists() or path.stem == "munged":
                lines += [f"{path.name}: {line}" for line in path.read_text("utf-8", "replace").splitlines()[-30:]]
        return "\n".join(lines)

    def _write_config(self) -> None:
        root, ports = self.root, _free_ports(1 + len(self.nodes))
        user = _user()
        for number in range(self.gpus):  # any character device will do
            (root / f"dev/gpu{number}").symlink_to("/dev/null")
        resources = f" CPUs={self.cpus} RealMemory=8000" + (f" Gres=gpu:fake:{self.gpus}" if self.gpus else "")
        devices = f"Name=gpu Type=fake File={root}/dev/gpu[0-{self.gpus - 1}]\n" if self.gpus else ""
        (root / "gres.conf").write_text(f"AutoDetect=off\n{devices}")
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}{resources}"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        self.config.write_text(f"""\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={self._socket},cred_expire={CRED_EXPIRE_S}
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue={int(self.job_requeue)}
ReturnToService=2
MinJobAge={self.min_job_age_s}
MaxArraySize={self.max_array_size}
MaxJobCount=10000
KillWait={self.kill_wait_s}
SlurmctldTimeout=120
MessageTimeout={MESSAGE_TIMEOUT_S}
BatchStartTimeout=2
SlurmdTimeout={self.slurmd_timeout_s}
InactiveLimit=0
{nodes}
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 PreemptMode={self.preempt_mode} GraceTime={self.grace_s}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
""")


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _path() -> str:
    """Return PATH with the folders of daemons, which an ordinary user's PATH may not have."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise SlurmError(f"No {count} free ports between {PORTS.start} and {PORTS.stop}")


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End processes with SIGKILL, and return when they have."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=STOP_S)


def main() -> None:
    """Run a cluster until Ctrl+C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Start a SLURM cluster of real daemons on loopback until Ctrl+C.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=8, help="per node")
    parser.add_argument("--gpus", type=int, default=4, help="per node; they only pretend to be some")
    parser.add_argument("--preempt-mode", choices=("REQUEUE", "CANCEL"), default="REQUEUE")
    parser.add_argument("--slurmd-timeout", type=int, default=120, metavar="SECONDS")
    options = parser.parse_args()
    if not SlurmCluster.available():
        sys.exit(MISSING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with SlurmCluster(
        nodes=options.nodes,
        cpus=options.cpus,
        gpus=options.gpus,
        preempt_mode=options.preempt_mode,
        slurmd_timeout_s=options.slurmd_timeout,
    ) as cluster:
        print(f"export SLURM_CONF={cluster.config} PATH=$PATH:/usr/sbin", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
