"""Owner: the process that a run's folder belongs to, and whether it still runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

ENDED = "ended"  # instead of the start of a process that has ended
UNKNOWN = ""  # instead of the start of a process of which the system says nothing


@dataclass(frozen=True)
class Owner:
    """The first process of a job, as it stands in ``owner.json``.

    Args:
        id: random; no two starts have the same.
        host: name of its machine, for people.
        machine: see ``this_machine``.
        pid, started: process id, and when the process was started, as its kernel counts it. Both
            together tell it from a later process with the same id.
        since: start of the ownership, for people.
        job: Slurm's or torchrun's id, which a requeued job keeps; empty without.
        launch: the same for all processes of one launch of a job; empty for a single process.
        stopping: it was told to stop and is about to end.
    """

    id: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    job: str
    launch: str
    stopping: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", {self.job}" if self.job else "")

    def runs(self) -> bool:
        """Whether an owner on this machine still runs. Its process id may belong to another process
        by now.
        """
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it belongs to another user
        return start_of(self.pid) in (self.started, UNKNOWN)


def this_process() -> Owner:
    """The owner that this process would be."""
    job, launch = job_and_launch(os.environ)
    return Owner(
        id=uuid4().hex,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=os.getpid(),
        started=start_of(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        job=job,
        launch=launch,
    )


def read(path: Path) -> Owner | None:
    """The owner in a file; None if there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):  # being written, on a file system without hard links
        return Owner("unreadable", "an unknown machine", "", 0, UNKNOWN, "just now", "", "")


def this_machine() -> str:
    """Equal for two processes if process ids mean the same to both: boot id of the kernel and
    namespace of process ids; the host's name where there is no ``/proc``.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def start_of(pid: int) -> str:
    """When a process was started, in a form to compare; ``ENDED`` also for one whose parent has not
    noticed its end yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ENDED if fields[0] in "ZX" else fields[19]
    except OSError:
        pass  # no /proc, or it hides the processes of other users
    ps = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    try:
        state, _, start = subprocess.run(ps, capture_output=True, text=True).stdout.partition(" ")
    except OSError:
        return UNKNOWN
    return ENDED if state.startswith("Z") else start.strip()


def job_and_launch(environ: Mapping[str, str]) -> tuple[str, str]:
    """``Owner.job`` and ``Owner.launch`` from the environment variables of Slurm and torchrun."""
    slurm, elastic = environ.get("SLURM_JOB_ID"), environ.get("TORCHELASTIC_RUN_ID", "none")
    job = f"Slurm job {slurm}" if slurm else ""
    if not slurm and elastic != "none":  # torchrun says "none" where no --rdzv-id is typed
        job = f"torchrun {elastic}"
    names = ["SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"]
    parts = [job, *(environ.get(name, "") for name in [*names, "MASTER_ADDR", "MASTER_PORT"])]
    return job, " ".join(parts) if any(parts) else ""


def is_first(environ: Mapping[str, str]) -> bool:
    """Whether this is rank 0 of its job, by the variables of torchrun, MPI, Slurm and Lightning."""
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK"):
        if name in environ:
            return environ[name] == "0"
    parts = ("SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")
    return all(environ.get(name, "0") == "0" for name in parts)
