"""Shards in an object store, which a local S3 server (moto) plays: listed, read through faults,
refused. Needs ``pip install -e '.[s3]' 'moto[server]'``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

pytest.importorskip("s3fs", reason="needs the extra s3: pip install -e '.[s3]'")
pytest.importorskip("moto.moto_server", reason="needs pip install 'moto[server]'")

from d2v_pretrain.errors import ConfigError
from datamodules.shards import retries
from datamodules.shards.index import build_index
from tests.resume import processes
from tests.shards.s3 import BUCKET, KEY, Store, storing
from tests.shards.test_run import make, settings
from tests.shards.tiny_shards import audio, sounds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Five shards with 21 sounds, one of them with an index."""
    sounds(tmp_path / "a")
    build_index(tmp_path / "a" / "s-002.tar")
    return tmp_path / "a"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(retries, "WAIT", 0.002)
    with storing() as server:
        told(monkeypatch, server)
        yield server


def told(monkeypatch: pytest.MonkeyPatch, server: Store, **other: str) -> None:
    """Let this process find the server."""
    for name, value in {**server.environment(), **other}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()


def same(dataset: Any, made: Path, tmp: Path) -> None:
    here = audio(made, tmp, skipped_path=None)
    assert len(dataset) == len(here) == 21
    assert all((dataset.read(i) == here.read(i)).all() for i in range(21))


@pytest.mark.parametrize("end", ["", "/", "/*.tar", "/s-{000..004}.tar"])
def test_a_folder_is_listed(tmp_path: Path, made: Path, store: Store, end: str) -> None:
    (made / "notes.txt").write_text("no shard")
    url = store.upload(made)
    dataset = audio(url + end, tmp_path)
    assert dataset.names == [f"{url}/s-{n:03d}.tar" for n in range(5)]
    same(dataset, made, tmp_path)


def test_through_503s(
    tmp_path: Path,
    made: Path,
    store: Store,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = store.upload(made)
    store.temper = 0.5
    for name in ("TRIES", "AT_START"):
        monkeypatch.setattr(retries, name, 40)
    same(audio(url, tmp_path), made, tmp_path)
    said = capfd.readouterr().err
    assert f"{url}/s-002.idx: OSError" in said and "trying again" in said and "2 of 40" in said


@pytest.mark.parametrize(
    "root, key, rule",
    [
        ("s3://nowhere/set", KEY, "data.root=s3://nowhere/set cannot be listed: it is not there"),
        ("s3://nowhere/{0..3}.tar", KEY, "has no index beside it and is not there"),
        (f"s3://{BUCKET}/other", KEY, f"s3://{BUCKET}/other cannot be listed: it is not there"),
        (f"s3://{BUCKET}/set", "wrong", r"may not be read \(.*; check the credentials"),
        (f"s3://{BUCKET}/set/s-000.tar", "wrong", r"has no index beside it and may not be read"),
    ],
)
def test_what_no_patience_helps_is_told_at_once(
    tmp_path: Path,
    made: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    key: str,
    rule: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store.upload(made)
    told(monkeypatch, store, AWS_ACCESS_KEY_ID=key)
    with pytest.raises(ConfigError, match=rule):
        len(audio(root, tmp_path))
    assert "trying again" not in capfd.readouterr().err
    assert not [*(tmp_path / "cache").glob("*.shard"), *(tmp_path / "cache").glob("*.part")]


@pytest.mark.parametrize("end", ["", "/s-{000..004}.tar"])
def test_an_endpoint_that_does_not_answer(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told(monkeypatch, store, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"does not answer: 6 times tried .* Could not connect"):
        len(audio(f"s3://{BUCKET}/set{end}", tmp_path))
    said = capfd.readouterr().err
    assert said.count("trying again") == 5 and "127.0.0.1:9" in said


def test_credentials_that_run_out_while_training_lose_no_sample(
    tmp_path: Path, made: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tar in made.glob("*.tar"):
        build_index(tar)
    dataset = audio(store.upload(made), tmp_path)
    assert len(dataset) == 21
    told(monkeypatch, store, AWS_ACCESS_KEY_ID="expired")
    with pytest.raises(ConfigError, match=r"s-000.tar may not be read any more: .* renew"):
        dataset.read(0)
    assert (tmp_path / "skipped.jsonl").read_text() == ""
    told(monkeypatch, store)
    same(audio(f"s3://{BUCKET}/set", tmp_path), made, tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, store: Store) -> None:
    """From a store that answers a fifth of all requests with 503, against the disk."""
    make("audio", tmp_path / "shards")
    url = store.upload(tmp_path / "shards")
    store.temper = 0.2
    here, far = tmp_path / "here", tmp_path / "far"
    processes.finish(here, settings("audio", str(tmp_path / "shards")))
    command = [sys.executable, str(ROOT / "train.py"), *settings("audio", url), "workers=1"]
    environment = {**os.environ, **store.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    far.mkdir()
    first = subprocess.Popen(command, cwd=far, env=environment, start_new_session=True)
    checkpoints = far / "runs" / "run" / "checkpoints"
    assert processes.waits(lambda: len(list(checkpoints.glob("step=*.ckpt"))) >= 2, [], 120)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command, cwd=far, env=environment, check=True)
    ours, theirs = processes.outcome(far), processes.outcome(here)
    assert list(processes.differences(ours, theirs)) == []
