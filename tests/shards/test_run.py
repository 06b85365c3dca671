"""Whole runs on shards: trained, gone on with, and bit-identical after kills, from the disk and
from a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from d2v_pretrain import cli
from tests.resume import processes
from tests.resume.processes import COMMON, RUNS
from tests.shards.server import serving
from tests.shards.tiny_shards import npy, png, sounds, write


def make(modality: str, root: Path) -> None:
    """A few small shards of a modality."""
    if modality == "audio":
        sounds(root, shards=9)
        return
    one = {
        "vision": lambda i: ("png", png(i, (40, 36))),
        "text": lambda i: ("npy", npy([0, *_ids(i), 2])),
    }[modality]
    for s in range(6):
        write(
            root / f"{s}.tar",
            [(f"{s}-{i}.{one(s * 7 + i)[0]}", one(s * 7 + i)[1]) for i in range(4 + s)],
        )


def _ids(i: int) -> list[int]:
    return np.random.default_rng(i).integers(5, 270, 8 + i % 5).tolist()


def settings(modality: str, root: str) -> list[str]:
    """Of a tiny model, with windows of two shards."""
    mine = [a for a in RUNS[modality] if not a.startswith(("data.", "data="))]
    short = {"audio": ["data.min_seconds=0.1"], "vision": [], "text": []}[modality]
    return [
        *mine,
        "data=shards",
        f"data.root={root}",
        "data.cache_folder=cache",
        "window_shards=2",
        *short,
        *COMMON,
    ]


@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_a_run_on_shards(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    modality: str,
) -> None:
    """With one damaged sample, which is named and changes nothing else; the same command goes
    on."""
    make(modality, tmp_path / "shards")
    tar = sorted((tmp_path / "shards").glob("*.tar"))[1]
    content = tar.read_bytes()
    monkeypatch.chdir(tmp_path)
    argv = [
        a for a in settings(modality, "shards") if not a.startswith(("steps=", "checkpoint.every"))
    ]
    for steps in (6, 15):
        monkeypatch.setattr(
            sys, "argv", ["train.py", *argv, f"steps={steps}", "checkpoint.every_steps=2"]
        )
        cli.train(sys.argv[1:])
        tar.write_bytes(
            content[:1024] + bytes([255] * 512) + content[1536:]
        )  # the headers of samples, later
    said, run = capfd.readouterr(), tmp_path / "runs" / "run"
    assert "going on from" in said.out and "shards" in said.out
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][
        -1
    ] == 15
    assert (
        len({json.loads(line)["file"] for line in (run / "skipped.jsonl").read_text().splitlines()})
        >= 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_killed_on_shards(tmp_path: Path, modality: str) -> None:
    """From the disk, and from a server with a temper and a cache of its own: the same bits as a run
    never killed."""
    make(modality, tmp_path / "shards")
    reference, killed, far = tmp_path / "whole", tmp_path / "killed", tmp_path / "far"
    processes.finish(reference, settings(modality, str(tmp_path / "shards")))
    for kills in (5, 13, 22):
        [process] = processes.start(
            killed, [*settings(modality, str(tmp_path / "shards")), "workers=1"]
        )
        processes.waits(lambda kills=kills: processes.trained(killed) >= kills, [process])
        processes.kill(process)
    processes.finish(killed, [*settings(modality, str(tmp_path / "shards")), "workers=1"])
    with serving(tmp_path / "shards", temper=0.2) as server:
        names = ",".join(
            f"{server.url}/{tar.name}" for tar in sorted((tmp_path / "shards").glob("*.tar"))
        )
        argv = [*settings(modality, f"[{names}]"), "workers=2"]
        [process] = processes.start(far, argv)
        processes.waits(lambda: processes.trained(far) >= 9, [process])
        processes.kill(process)
        processes.finish(far, argv)
    for other in (killed, far):
        assert (
            list(processes.differences(processes.outcome(other), processes.outcome(reference)))
            == []
        )
        assert processes.history(other) == processes.history(reference)
    *complete, _ = processes.passes(processes.history(reference))
    assert complete and all(sorted(ids) == list(range(len(complete[0]))) for ids in complete)
