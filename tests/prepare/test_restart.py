"""Killed and started again: nothing finished is done twice, the bytes are those of an uninterrupted
run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.prepare import output, packing, tokens
from tests.prepare.commands import command, files, images, manifest, prepare, said, sounds

WORDS = {
    "audio": ("shard_samples=1", "encode=flac"),
    "vision": ("shard_samples=1", "short_side=10"),
    "text": ("shard_samples=1", "block=8", "vocab_size=300", "part_mb=0.0002"),
}


def source(modality: str, root: Path) -> Path:
    if modality == "text":
        root.mkdir(parents=True)
        for n in range(3):
            (root / f"{n}.txt").write_text("".join(f"Line {i} of file {n}.\n" for i in range(20)))
        return root
    return (sounds if modality == "audio" else images)(root)


def stop_after(calls: int, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, until it has been called so often: then Ctrl-C."""
    count = 0

    def limited(task: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return function(task)

    return limited


@pytest.mark.parametrize("modality", WORDS)
def test_stopped_at_several_places(
    modality: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = source(modality, tmp_path / "in"), tmp_path / "out"
    assert prepare(modality, root, tmp_path / "whole", *WORDS[modality]) == 0
    places = [(tokens, "_tokenise")] if modality == "text" else []
    for module, name in (*places, (packing, "_pack_one"), (packing, "_pack_one")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop_after(2, getattr(module, name)))
            assert prepare(modality, root, out, *WORDS[modality]) == 130
    assert "the same command goes on where this one stopped" in said(capsys)
    stamps = {tar.name: tar.stat().st_mtime_ns for tar in out.glob("*.tar")}
    assert len(stamps) == 4
    assert prepare(modality, root, out, *WORDS[modality]) == 0
    assert files(out) == files(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    assert "4 of " in said(capsys)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waits(until: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.005)
    return until()


@pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="reads the children of a process from /proc"
)
def test_sigkill_leaves_no_process_and_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    root, out = sounds(tmp_path / "in", 60, 1.0), tmp_path / "out"
    words = ["encode=flac", "shard_samples=1"]
    assert prepare("audio", root, tmp_path / "whole", *words) == 0
    argv = command("audio", f"input={root}", f"output={out}", "processes=2", *words)
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        assert waits(lambda: len(list(out.glob("*.tar"))) >= 20, 240)
        below = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(below) >= 2 and waits(lambda: not any(map(alive, below)), 30)
    assert not (out / "manifest.json").exists()
    stamps = {
        record.stem: (out / f"{record.stem}.tar").stat().st_mtime_ns
        for record in (out / ".prepare").glob("shard-*.json")
    }
    assert prepare("audio", root, out, *words) == 0
    assert files(out) == files(tmp_path / "whole")
    assert len(stamps) >= 18 and all(
        (out / f"{name}.tar").stat().st_mtime_ns == stamp for name, stamp in stamps.items()
    )


def test_the_same_input_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    root = source("vision", tmp_path / "in")
    copy = tmp_path / "disk" / "elsewhere"
    for file in sorted(root.rglob("*.*"), reverse=True):
        (copy / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(root)).write_bytes(file.read_bytes())
    assert prepare("vision", root, tmp_path / "a") == prepare("vision", copy, tmp_path / "b") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert prepare("vision", root, tmp_path / "c", "seed=1") == 0
    assert files(tmp_path / "a")["shard-000000.tar"] != files(tmp_path / "c")["shard-000000.tar"]


def test_a_finished_folder_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = source("audio", tmp_path / "in"), tmp_path / "out"
    assert prepare("audio", root, out) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert prepare("audio", root, out) == 0 and "is finished already" in said(capsys)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert prepare("audio", root, out, "seed=3") == 2
    assert f"seed=3 differs from 0, with which {out} was made" in said(capsys)
    next(root.rglob("*.wav")).unlink()
    assert prepare("audio", root, out) == 2 and "is of another input: other files" in said(capsys)


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = source("audio", tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    assert prepare("audio", root, out) == 2 and "holds something else (thesis.doc)" in said(capsys)
    assert prepare("audio", root, root) == 2 and "is in the input, where" in said(capsys)
    (out / "thesis.doc").rename(out / "manifest.json")
    assert prepare("audio", root, out) == 2
    assert [p.name for p in out.iterdir()] == ["manifest.json"]


def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An input and an output with two shards."""
    root, out = source("audio", tmp_path / "in"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_pack_one", stop_after(2, packing._pack_one))
        assert prepare("audio", root, out, *WORDS["audio"]) == 130
    return root, out


def test_another_input_or_other_settings_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = begun(tmp_path, monkeypatch)
    assert prepare("audio", root, out, *WORDS["audio"], "max_seconds=9", "seed=4") == 2
    assert (
        "seed=4 differs from 0, with which" in (told := said(capsys))
        and "so do max_seconds" in told
    )
    next(root.rglob("*.wav")).unlink()
    assert prepare("audio", root, out, *WORDS["audio"]) == 2
    assert "is of another input: other files" in said(capsys)


def test_two_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = begun(tmp_path, monkeypatch)
    codes = []
    pack_one = packing._pack_one

    def and_another(task: Any) -> Any:
        if not codes:
            codes.append(prepare("audio", root, out, *WORDS["audio"]))
        return pack_one(task)

    monkeypatch.setattr(packing, "_pack_one", and_another)
    assert prepare("audio", root, out, *WORDS["audio"]) == 0
    assert codes == [2] and "is being filled by another process" in said(capsys)


def test_too_little_space_is_told_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for modality, words in WORDS.items():
        assert (
            prepare(
                modality, source(modality, tmp_path / modality), tmp_path / "out" / modality, *words
            )
            == 2
        )
        assert "MB are free; free some space" in said(capsys)
        assert not list((tmp_path / "out" / modality).glob("*.tar"))


def test_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "shard-000000.tar.half")

    root, out = source("audio", tmp_path / "in"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_tar", full)
        assert prepare("audio", root, out) == 2
    assert "No space left on device; once that is mended, the same command goes on" in said(capsys)
    assert prepare("audio", root, out) == 0


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("LICENSE", "MIT\nfor all", "MIT\nfor all"),
        ("README.md", "# Digits\n- Licence: CC BY 4.0\n- made in 2020", "- Licence: CC BY 4.0"),
        ("README.md", "nothing of the kind", None),
    ],
)
def test_the_licence_is_found(name: str, content: str, kept: str | None, tmp_path: Path) -> None:
    root = source("vision", tmp_path / "data" / "in")
    (root.parent / name).write_text(content)
    assert prepare("vision", root, tmp_path / "out") == 0
    found = manifest(tmp_path / "out")["licence"]
    assert found == (kept and {"text": kept, "from": name})
    assert prepare("vision", root, tmp_path / "given", "licence=mine") == 0
    assert manifest(tmp_path / "given")["licence"]["text"] == "mine"
