"""Shards from elsewhere: the same samples in the same order as from the disk, through every fault
of a server."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.unusable import Unusable
from datamodules.module import MicroBatches
from datamodules.order import EpochOrder, StepSampler
from datamodules.shards import fetch, retries
from datamodules.shards.index import build_index
from datamodules.shards.names import expand, shown
from datamodules.shards.store import Cache
from datamodules.transforms.audio import AudioTransform
from tests.shards.server import nginx, serving
from tests.shards.tiny_shards import audio, batches, sounds

PATTERN = "/s-{000..004}.tar"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL", 0.4)
    monkeypatch.setattr(retries, "WAIT", 0.002)
    monkeypatch.setattr(retries, "TRIES", 30)
    monkeypatch.setattr(retries, "AT_START", 30)


def indexed(root: Path) -> Path:
    sounds(root)
    for tar in root.glob("*.tar"):
        build_index(tar)
    return root


def same_as_here(
    root: Path, tmp: Path, far: object, workers: int, world: int = 1, **more: object
) -> None:
    """Two passes from elsewhere, against those from the disk: equal to the bit, nothing lost,
    nothing repeated."""
    here = AudioTransform(audio(root, tmp, skipped_path=None), 5, 0)
    there = AudioTransform(audio(far, tmp, **more), 5, 0)
    assert here.lengths.tolist() == there.lengths.tolist()
    plan = EpochOrder(there.dataset.shard_sizes, 0, 3, there.lengths, window=2)
    [near] = batches(here, plan, slots=2)
    loaders = batches(there, plan, workers, world, slots=2)
    steps = (
        next(loader) for _ in itertools.count() for loader in loaders for _ in range(2 // world)
    )
    for a, b in zip(itertools.islice(near, 20), steps):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.inputs, b.inputs) and b.weight is None
    assert json.loads((tmp / "skipped.jsonl").read_text() or "null") is None


@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (1, 2)])
def test_a_server_with_a_temper(
    tmp_path: Path, workers: int, world: int, capfd: pytest.CaptureFixture[str]
) -> None:
    root = indexed(tmp_path / "a")
    with serving(root, temper=0.9) as server:
        same_as_here(root, tmp_path, server.url + PATTERN, workers, world)
        assert {"500", "cut", "short", "stall", "whole"} & server.done.keys()
        told = capfd.readouterr().err
        retries = sum(n for kind, n in server.done.items() if kind not in ("fine", "whole"))
        assert told.count("trying again from byte") == retries > 3
        assert server.url in told and any(
            cause in told for cause in ("HTTP Error 50", "broke off", "timed out")
        )
    assert len(list((tmp_path / "cache").glob("*.shard"))) == 5 and not list(
        (tmp_path / "cache").glob("*.part")
    )


def test_what_broke_off_is_gone_on_with(tmp_path: Path) -> None:
    """Ranges only of the same version: a file that is replaced meanwhile is fetched from its
    beginning."""
    (tmp_path / "a").mkdir()
    file, content = tmp_path / "a" / "x", os.urandom(3_000_000)
    file.write_bytes(content)
    with serving(tmp_path / "a") as server:
        part = fetch._Download(f"{server.url}/x", tmp_path / "part")
        server.draw.choice, server.temper = lambda _: "cut", 1.0  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(OSError, match=r"broke off|reset"):
                part.go_on()
        assert 0 < part.done < len(content) and server.ranges == 1
        file.write_bytes(content[::-1])
        server.temper = 0.0
        part.go_on()
    assert (tmp_path / "part").read_bytes() == content[::-1]


def test_shards_without_an_index_there_are_fetched_and_indexed_once(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    bare = shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns("*.idx"))
    with serving(bare) as server:
        same_as_here(root, tmp_path, server.url + PATTERN, 0)
        asked = server.asked.copy()
        assert len(audio(server.url + PATTERN, tmp_path)) == 21 and server.asked == asked


def test_a_bounded_cache_keeps_what_was_used_last(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    sizes = sorted(tar.stat().st_size for tar in root.glob("*.tar"))
    room = sum(sizes[-4:]) / 1e9  # the windows of now and next
    with serving(root) as server:
        same_as_here(root, tmp_path, server.url + PATTERN, 1, cache_gb=room)
        assert sum(f.stat().st_size for f in (tmp_path / "cache").glob("*.shard")) <= room * 1e9
        assert sum(n for name, n in server.asked.items() if name.endswith(".tar")) > 5, (
            "some were fetched again"
        )
        dataset = audio(server.url + PATTERN, tmp_path, cache_gb=sizes[-1] / 1e9)
        with pytest.raises(
            ConfigError, match=r"data.cache_gb=.* GB of the 5 shards .* a smaller window_shards"
        ):
            dataset.prefetch(range(5))


def test_a_cache_that_is_too_small_loses_no_sample(tmp_path: Path) -> None:
    """Room for one shard, two workers that delete one another's: slow, but all of it, in order."""
    root = indexed(tmp_path / "a")
    with serving(root) as server:
        there = AudioTransform(audio(server.url + PATTERN, tmp_path, cache_gb=1e-7), 5, 0)
        plan = EpochOrder(there.dataset.shard_sizes, 0, 2, there.lengths)
        stream = itertools.islice(StepSampler(plan, 1), 33)
        seen = list(DataLoader(MicroBatches(there), None, sampler=list(stream), num_workers=2))
        assert sorted(i for batch in seen[:11] for i in batch.ids.tolist()) == list(range(21))
        assert all(batch.weight is None for batch in seen)


def test_a_file_of_the_users_is_never_deleted(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    before = {file: file.read_bytes() for file in root.iterdir()}
    with serving(root) as server:
        dataset = audio(server.url + PATTERN, tmp_path, cache_folder=str(root), cache_gb=1e-6)
        assert all(dataset.read(i) is not None for i in range(21))
    assert {file: file.read_bytes() for file in before} == before


def test_ahead_fetches_in_the_background(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    with serving(root) as server:
        dataset = audio(server.url + PATTERN, tmp_path)
        dataset.prefetch([3, 1])
        until = time.monotonic() + 20
        while len(list((tmp_path / "cache").glob("*.shard"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert {name for name in server.asked if name.endswith(".tar")} == {
            "s-003.tar",
            "s-001.tar",
        }
        dataset.read(3)
        assert server.asked["s-001.tar"] == 1


def test_what_is_gone_there(tmp_path: Path) -> None:
    """A shard with an index but no bytes is named, once; one with neither stops the start."""
    root = indexed(tmp_path / "a")
    (root / "s-001.tar").unlink()
    changed = bytearray((root / "s-003.tar").read_bytes())
    changed[3000] ^= 1
    (root / "s-003.tar").write_bytes(changed)
    with serving(root) as server:
        dataset = audio(f"{server.url}{PATTERN}?secret=1", tmp_path, max_bad_share=0.9)
        assert [i for i in range(21) if dataset.read(i) is None] == [*range(3, 9), *range(12, 18)]
        assert server.asked["s-001.tar"] == 1, "404 is final"
        (root / "s-004.tar").unlink(), (root / "s-004.idx").unlink()
        with pytest.raises(ConfigError, match=r"s-004.tar has no index beside it and .*404"):
            len(audio(server.url + PATTERN, tmp_path, cache_folder=str(tmp_path / "other")))
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    named = {line["file"]: line["reason"] for line in lines}
    assert len(named) == len(lines) == 2 and not any("secret" in name for name in named)
    assert (
        "404" in named[f"{server.url}/s-001.tar"]
        and "size or checksum" in named[f"{server.url}/s-003.tar"]
    )


def test_tries_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "TRIES", 3)
    with serving(indexed(tmp_path / "a"), temper=1.0) as server:
        server.draw.choice = lambda _: "500"  # type: ignore[method-assign]
        with pytest.raises(Unusable, match=r"3 times tried .*HTTP Error 500"):
            fetch.fetch(f"{server.url}/s-000.tar", tmp_path / "x")
        assert server.asked["s-000.tar"] == 3


def test_a_disk_that_is_full_or_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told at once: no server is waited for, and nothing half written is left."""
    root = indexed(tmp_path / "a")
    with serving(root) as server:
        dataset = audio(server.url + PATTERN, tmp_path, max_bad_share=0.9)
        assert len(dataset) == 21
        monkeypatch.setattr(fetch.zlib, "crc32", _full)
        full = rf"data.cache_folder={tmp_path}/cache cannot take .* \S+tar \(No space left"
        with pytest.raises(ConfigError, match=full):
            dataset.read(0)
        assert server.asked["s-000.tar"] == 1 and (tmp_path / "skipped.jsonl").read_text() == ""
        assert not list((tmp_path / "cache").glob("*.part"))
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"data.cache_folder=\S+file cannot be written"):
            len(audio(server.url + PATTERN, tmp_path, cache_folder=str(tmp_path / "file")))


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_pipes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A command that fails every other time; read into the cache once."""
    root = indexed(tmp_path / "a")
    flaky = (
        "pipe:if [ -e {0}.once ]; then cat {0}; else touch {0}.once; head -c 5000 {0}; exit 3; fi"
    )
    same_as_here(root, tmp_path, [flaky.format(root / f"s-00{i}.tar") for i in range(5)], 1)
    assert capfd.readouterr().err.count("the command ended with code 3; trying again") == 5


@pytest.mark.parametrize("code, tries", [(3, 3), (127, 1)])
def test_a_pipe_whose_command_fails(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, tries: int
) -> None:
    """Soon, and told each time; a command that is not there is not tried again."""
    command = f"echo asked >> {tmp_path}/asked; exit {code}"
    with pytest.raises(ConfigError, match=rf"has no index beside it and .*code {code}"):
        len(audio([f"pipe:{command}"], tmp_path))
    assert (tmp_path / "asked").read_text().count("asked") == tries
    assert capfd.readouterr().err.count("trying again") == tries - 1


def test_an_empty_download_is_not_kept(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    (root / "s-002.tar").write_bytes(b"")
    (root / "s-003.idx").unlink(), (root / "s-003.tar").write_bytes(b"")
    with serving(root) as server:
        dataset = audio(server.url + "/s-002.tar", tmp_path)
        assert dataset.read(0) is None and "is empty" in (tmp_path / "skipped.jsonl").read_text()
        with pytest.raises(ConfigError, match=r"s-003.tar has no index beside it and is empty"):
            len(audio(server.url + "/s-003.tar", tmp_path))
    kept = {file.suffix for file in (tmp_path / "cache").iterdir()}
    assert kept == {".idx", ".lock"}


def test_a_store_that_does_not_answer_stops_the_run_and_blames_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is listed: with the server back, every sample is read."""
    monkeypatch.setattr(retries, "TRIES", 3)
    with serving(indexed(tmp_path / "a")) as server:
        there = AudioTransform(audio(server.url + PATTERN, tmp_path), 5, 0)
        plan = EpochOrder(there.dataset.shard_sizes, 0, 3, there.lengths)
    [loader] = batches(there, plan, workers=1)
    batch = next(loader)
    assert "does not answer: 3 times tried" in batch.fault and "refused" in batch.fault
    assert batch.weight is not None and not batch.weight.any()
    assert (tmp_path / "skipped.jsonl").read_text() == ""


def test_a_folder_of_a_web_server_is_read_from_its_manifest(tmp_path: Path) -> None:
    root = indexed(tmp_path / "a")
    with serving(root) as server:
        rule = r"names no shards: a folder of a web server cannot be listed.*404"
        rule += r".*type all names, such as 'http://\S+/shard-\{000000..000127\}.tar'"
        with pytest.raises(ConfigError, match=rule):
            len(audio(server.url, tmp_path))
        rows = [{"name": tar.name} for tar in sorted(root.glob("*.tar"))]
        (root / "manifest.json").write_text(json.dumps({"shards": rows}))
        same_as_here(root, tmp_path, f"{server.url}/", 0)


@pytest.mark.parametrize("manifest", [False, True])
def test_a_folder_of_a_store(tmp_path: Path, manifest: bool) -> None:
    """Its tars, and those that only the manifest still names."""
    root, store = indexed(tmp_path / "a"), fsspec.filesystem("memory")
    folder = f"folder{manifest}"
    for file in root.iterdir():
        store.pipe(f"/{folder}/{file.name}", file.read_bytes())
    store.pipe(f"/{folder}/notes.txt", b"")
    if manifest:
        rows = [{"name": name} for name in ("s-000.tar", "s-009.tar")]
        store.pipe(f"/{folder}/manifest.json", json.dumps({"shards": rows}).encode())
    found = expand(f"memory://{folder}")
    assert [name[-9:] for name in found] == [f"s-00{n}.tar" for n in (*range(5), *[9] * manifest)]
    if not manifest:
        same_as_here(root, tmp_path, f"memory://{folder}/", 0)
    with pytest.raises(ConfigError, match="cannot be listed: it is not there"):
        expand("memory://nowhere")


def test_a_store_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for end in ("", "/{0..3}.tar", "/*.tar"):
        rule = r"needs a package that is not installed .*s3fs.*; type pip install -e '\.\[s3\]'"
        with pytest.raises(ConfigError, match=rule):
            len(audio(f"s3://bucket/set{end}", tmp_path))
    with pytest.raises(ConfigError, match="Protocol not known: nonsense"):
        expand("nonsense://bucket/set")


def test_any_store_that_fsspec_knows(tmp_path: Path) -> None:
    root, store = indexed(tmp_path / "a"), fsspec.filesystem("memory")
    for file in root.iterdir():
        store.pipe(f"/bucket/{file.name}", file.read_bytes())
    same_as_here(root, tmp_path, "memory://bucket/s-*.tar", 0)


def _get(folder: str, url: str) -> None:
    os.close(Cache(folder, 1.0).open(url, None))


def test_one_process_of_a_node_fetches(tmp_path: Path) -> None:
    with serving(indexed(tmp_path / "a")) as server:
        fork = multiprocessing.get_context("fork")
        url = f"{server.url}/s-001.tar"
        processes = [
            fork.Process(target=_get, args=(str(tmp_path / "cache"), url)) for _ in range(6)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 6 and server.asked[
            "s-001.tar"
        ] == 1


def test_secrets_are_not_shown() -> None:
    assert shown("https://me:password@host/a/b.tar?token=x") == "https://host/a/b.tar"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("nginx") or os.path.exists("/usr/sbin/nginx")),
    reason="nginx is not installed",
)
def test_a_real_nginx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fifth of all requests fails, a fifth is slow."""
    tmp_path.chmod(0o755)  # its workers are another user
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    root = indexed(tmp_path / "a")
    with nginx(root, tmp_path / "nginx") as url:
        same_as_here(root, tmp_path, url + PATTERN, 2)
        log = (tmp_path / "nginx" / "access.log").read_text()
    assert " 500 " in log
    assert capfd.readouterr().err.count("HTTP Error 500") == log.count(" 500 ")
