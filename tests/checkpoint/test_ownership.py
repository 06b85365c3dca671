"""ownership.py: of any number of processes one owns a folder; dead owners are replaced at once or,
on another machine, after a minute of silence; an owner that was replaced notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from d2v_pretrain.checkpoint import owner as owners
from d2v_pretrain.checkpoint import ownership
from d2v_pretrain.checkpoint.owner import is_first, job_and_launch, this_process
from d2v_pretrain.checkpoint.ownership import FILE, STALE, Lock, owned
from d2v_pretrain.errors import ConfigError

VARIABLES = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher around these tests, and little patience."""
    for name in (*VARIABLES, "MASTER_ADDR", "SLURM_PROCID", ownership.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ownership, "PATIENCE", 0.3)
    monkeypatch.setattr(ownership, "LOOK", 0.01)


def plant(folder: Path, silence: float = 0.0, **changes: object) -> None:
    """The file of another owner, last touched so many seconds ago."""
    folder.mkdir(exist_ok=True)
    other = replace(this_process(), id="other", host="node2", **changes)  # type: ignore[arg-type]
    (folder / FILE).write_text(json.dumps(asdict(other)))
    os.utime(folder / FILE, (time.time() - silence,) * 2)


def in_file(folder: Path) -> str:
    return json.loads((folder / FILE).read_text())["id"]


def ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


# Children take the folder in turn, and write down when they go in and out. Some die inside.
RIVALS = """
import os, random, sys, time
from pathlib import Path
from d2v_pretrain.checkpoint import ownership
folder, count, rounds, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
ownership.PATIENCE, ownership.LOOK = 120.0, 0.001
for child in range(count):
    if os.fork() == 0:
        draw = random.Random(seed * 1000 + child)
        log = os.open(folder.parent / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for _ in range(rounds):
            lock = ownership.Lock(folder)
            lock.take()
            os.write(log, b"in %d\\n" % child)
            time.sleep(draw.uniform(0, 0.004))
            lock.confirm()
            os.write(log, b"out %d\\n" % child)
            if draw.random() < 0.15:
                os._exit(0)  # without a word, as after SIGKILL
            lock.release()
        os._exit(0)
codes = [os.waitpid(-1, 0)[1] for _ in range(count)]
sys.exit(any(codes))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_one_at_a_time(tmp_path: Path, seed: int) -> None:
    """Sixteen processes and a dead owner to begin with; a zombie is dead, too."""
    folder = tmp_path / "run"
    plant(folder, machine=owners.this_machine(), pid=ended_pid())
    command = [sys.executable, "-c", RIVALS, str(folder), "16", "6", str(seed)]
    subprocess.run(command, check=True, timeout=120)
    words = (tmp_path / "log").read_text().split()
    lines = list(zip(words[::2], words[1::2]))
    assert [kind for kind, _ in lines] == ["in", "out"] * (len(lines) // 2)
    assert [child for _, child in lines[::2]] == [child for _, child in lines[1::2]]
    assert len({child for _, child in lines}) == 16
    left = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert not [name for name in left if name.endswith(".json") and name != FILE]


def test_a_second_one_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        began = time.monotonic()
        with pytest.raises(ConfigError) as refused:
            Lock(tmp_path / "run").take()
        assert time.monotonic() - began < 5
        said = str(refused.value)
        assert f"process {os.getpid()} on " in said and "name=…" in said and "\n" not in said
        assert f"kill {os.getpid()}" in said
    assert not (tmp_path / "run").exists()
    Lock(tmp_path / "run").take()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with owned(tmp_path / "run"):
        assert in_file(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": 0}, {"started": "1"}])
def test_a_process_of_this_machine_that_is_no_more(tmp_path: Path, changes: dict) -> None:
    """Also one whose id belongs to another process by now."""
    here = {"machine": owners.this_machine(), "pid": os.getpid()} | changes
    plant(tmp_path, **{**here, "pid": here["pid"] or ended_pid()})
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began < 0.3 and in_file(tmp_path) != "other"


@pytest.mark.parametrize("silence", [0.0, 25.0, STALE + 1])
def test_an_owner_elsewhere_is_known_by_its_heartbeat(tmp_path: Path, silence: float) -> None:
    """Its process id means nothing here, even if there is such a process."""
    plant(tmp_path, silence, machine="elsewhere", pid=ended_pid())
    if silence > STALE:
        with owned(tmp_path):
            assert in_file(tmp_path) != "other"
        return
    with pytest.raises(ConfigError) as refused:
        Lock(tmp_path).take()
    assert "on node2" in str(refused.value) and in_file(tmp_path) == "other"
    assert ("has given no sign of life for 25 s" in str(refused.value)) == (silence == 25)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_clock_of_the_disk_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock may be an hour ahead."""
    plant(tmp_path, machine="elsewhere")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    with pytest.raises(ConfigError, match="is in use"):
        Lock(tmp_path).take()


@pytest.mark.parametrize(
    "theirs", [{"job": "Slurm job 7"}, {"job": "Slurm job 8", "stopping": True}]
)
def test_the_same_job_and_a_stopping_owner_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: dict, capsys
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plant(tmp_path, machine="elsewhere", **theirs)
    threading.Timer(0.6, (tmp_path / FILE).unlink).start()  # much longer than the patience
    with owned(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["job"] == "Slurm job 7"
    assert "waiting for process" in capsys.readouterr().out


def test_another_job_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plant(tmp_path, machine="elsewhere", job="Slurm job 8")
    with pytest.raises(ConfigError, match="Slurm job 8 trains there"):
        Lock(tmp_path).take()


def test_others_see_that_the_owner_is_stopping(tmp_path: Path) -> None:
    told = threading.Event()
    with owned(tmp_path, told.is_set):
        assert not owners.read(tmp_path / FILE).stopping  # type: ignore[union-attr]
        told.set()
        time.sleep(0.9)
        assert owners.read(tmp_path / FILE).stopping  # type: ignore[union-attr]


def test_an_owner_that_was_replaced_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended; a process of another machine has taken over. It leaves that one's file."""
    old, new = Lock(tmp_path), Lock(tmp_path)
    old.take()
    old.confirm()
    os.utime(tmp_path / FILE, (time.time() - STALE - 1,) * 2)
    monkeypatch.setattr(ownership, "this_machine", lambda: "elsewhere")
    new.take()
    with pytest.raises(ConfigError, match="no longer belongs to this process"):
        old.confirm()
    old.release()
    assert in_file(tmp_path) == new.me.id
    new.confirm()
    new.release()
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_touches_the_file_and_sees_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.1)
    with owned(tmp_path):
        os.utime(tmp_path / FILE, (0, 0))
        time.sleep(0.9)
        assert time.time() - (tmp_path / FILE).stat().st_mtime < 10 and not ownership.is_lost()
        (tmp_path / FILE).unlink()
        time.sleep(0.9)
        assert ownership.is_lost()
        with pytest.raises(ConfigError, match=r"owner\.json is gone"):
            ownership.confirm()


def test_a_killed_takeover_is_taken_over(tmp_path: Path) -> None:
    """A process died after it had created the successor's file, before it had renamed it."""
    plant(tmp_path, machine=owners.this_machine(), pid=ended_pid())
    half = replace(this_process(), id="half", pid=ended_pid())
    (tmp_path / ".owner.other.json").write_text(json.dumps(asdict(half)))
    with owned(tmp_path):
        assert in_file(tmp_path) not in ("other", "half")
        assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with owned(tmp_path), pytest.raises(ConfigError, match="is in use"):
        Lock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They must not look for a checkpoint while an earlier launch may still write one."""
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    plant(tmp_path, machine="elsewhere", launch="earlier", stopping=True)
    monkeypatch.setenv("RANK", "1")
    joined = threading.Event()

    def rank_1() -> None:
        with owned(tmp_path):
            ownership.join()
            joined.set()

    thread = threading.Thread(target=rank_1)
    thread.start()
    assert not joined.wait(0.5)
    monkeypatch.setenv("RANK", "0")
    (tmp_path / FILE).unlink()
    with owned(tmp_path):
        assert joined.wait(5)
        thread.join()
        assert in_file(tmp_path)  # the other rank has not removed it


def test_children_of_lightning_know_their_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owned(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        Lock(tmp_path).join()
        monkeypatch.delenv("LOCAL_RANK")
    assert ownership.VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "SLURM_PROCID": "1"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
    ],
)
def test_rank_0_is_found(environ: dict[str, str], first: bool) -> None:
    assert is_first(environ) == first


def test_jobs_and_launches_are_told_apart() -> None:
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    requeued = slurm | {"SLURM_RESTART_COUNT": "1"}
    assert job_and_launch({}) == ("", "")
    assert job_and_launch(slurm)[0] == job_and_launch(requeued)[0] == "Slurm job 7"
    assert job_and_launch(slurm)[1] != job_and_launch(requeued)[1]
    static = {"TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1"}
    assert job_and_launch(static)[0] == "" != job_and_launch(static)[1]
    assert job_and_launch({"TORCHELASTIC_RUN_ID": "x"})[0] == "torchrun x"


def test_a_look_costs_little(tmp_path: Path) -> None:
    """``confirm`` runs at every line of the log: below a thousandth of a 100 ms step, with room for
    a busy machine."""
    with owned(tmp_path):
        times = []
        for _ in range(200):
            began = time.perf_counter()
            ownership.confirm()
            times.append(time.perf_counter() - began)
        assert sorted(times)[len(times) // 2] < 1e-3
