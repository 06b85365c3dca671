"""Passwords and tokens that a user types reach the server, and no file and no line of output."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from d2v_pretrain import cli, evaluate, extract, redaction
from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import find
from d2v_pretrain.config import compose, show, stored
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.redaction import MARK, conceal, conceal_word, concealed, redact, reveal, revealed
from d2v_pretrain.training.run import pretrain
from datamodules.datasets.scan import Skipped
from datamodules.datasets.unusable import Unusable
from datamodules.shards import fetch, retries
from datamodules.shards.names import expand, shown
from datamodules.shards.store import Cache
from tests.shards.server import Handler, Server
from tests.shards.test_run import settings
from tests.shards.tiny_shards import sounds

PASSWORDS = ("Hunter2%40x", "AnotherOne77")
TOKENS = ("tok-a81f00d", "tok-b92beef")
SIGNED = "X-Amz-Signature=5e1f77aa&X-Amz-Credential=AKIA55TEST&X-Amz-Date=20260101T000000Z"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have concealed is forgotten, and what these conceal too."""
    monkeypatch.setenv(redaction._KEPT, "[]")


class Locked(Handler):
    """Answers 401 without user and password, 403 without a token."""

    def do_GET(self) -> None:
        told = self.headers["Authorization"] or ""
        known = {f"me:{word}".replace("%40", "@") for word in PASSWORDS}
        if base64.b64decode(told.removeprefix("Basic ")).decode() not in known:
            self.send_error(401)
        elif parse_qs(urlsplit(self.path).query).get("token", [""])[0] not in TOKENS:
            self.send_error(403)
        else:
            super().do_GET()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a server that wants user, password and token for the shards in a folder."""
    sounds(tmp_path / "far", shards=9)
    server = Server(tmp_path / "far")
    server.RequestHandlerClass = Locked
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.url.removeprefix("http://")
    server.shutdown()
    server.server_close()


def leaks(folder: Path, *texts: str) -> list[str]:
    """Every place where a secret of these tests stands, in files below a folder and in texts."""
    secrets = [s.encode() for s in (*PASSWORDS, *TOKENS, "Hunter2@x", "5e1f77aa", "AKIA55TEST")]
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    held |= {Path(f"output {n}"): text.encode() for n, text in enumerate(texts)}
    found = [f"{path}: {s!r}" for path, text in held.items() for s in secrets if s in text]
    return found + [str(path) for path in held if any(s.decode() in str(path) for s in secrets)]


def far(locked: str, n: int) -> str:
    place, token = f"http://me:{PASSWORDS[n]}@{locked}", TOKENS[n]
    return "[" + ",".join(f"'{place}/s-{s:03}.tar?token={token}'" for s in range(9)) + "]"


def test_a_run_whose_data_are_behind_a_password(
    locked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Trained, gone on with under another password and token, and its features taken."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for n, steps in enumerate((6, 9)):
        words = [w for w in settings("audio", far(locked, n)) if not w.startswith("steps=")]
        monkeypatch.setattr(sys, "argv", ["train.py", *words, f"steps={steps}"])
        cli.train(sys.argv[1:])
    said = capfd.readouterr()
    assert "going on from" in said.out
    assert leaks(home, said.out, said.err) == []
    run = find("run")
    assert run.step == 9 and MARK in run.content["data"]["root"][0]
    starts = json.loads((run.folder / "environment.json").read_text())
    assert [any(MARK in word for word in start["command"]) for start in starts] == [True, True]

    typed = [f"data.root={far(locked, 1)}", "data=shards", "data.cache_folder=cache"]
    out = extract.main(["run=run", "output=out", *typed, "data.min_seconds=0.1"])
    assert len(np.load(out / "features.npy")) > 10
    monkeypatch.setenv(redaction._KEPT, "[]")  # as in a process that was told nothing
    with pytest.raises(ConfigError, match=r"was stored without its password or token; type"):
        evaluate.main(["run=run"])
    said = capfd.readouterr()
    assert leaks(home, said.out, said.err) == []


def test_a_wrong_password_is_told_without_it(
    locked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    words = settings("audio", far(locked, 0).replace("me:", "you:"))
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as stop:
        cli.train(words)
    said = capfd.readouterr()
    assert stop.value.code == 2 and "the server says HTTP Error 401" in said.err
    assert leaks(tmp_path / "home", said.out, said.err) == []


def test_a_server_that_is_not_there_is_told_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also for addresses that no command line has brought."""
    monkeypatch.setattr(retries, "TRIES", 2)
    monkeypatch.setattr(retries, "WAIT", 0.01)
    url = f"http://me:{PASSWORDS[1]}@127.0.0.1:9/x.tar?token={TOKENS[0]}&{SIGNED}"
    commands = [url, f"pipe:false # --token={TOKENS[0]} -u me:{PASSWORDS[1]} {url}"]
    for name in commands:
        with pytest.raises((Unusable, ConfigError)) as error:
            fetch.fetch(name, tmp_path / "x")
        Skipped(str(tmp_path / "skipped.jsonl")).start({name: f"{name} {error.value}"})
        Skipped(str(tmp_path / "skipped.jsonl")).add(name, f"{name}: {error.value}")
        cached = Cache(str(tmp_path / "cache"), 1).path(f"{name}/a")
        told = str(ConfigError("data.root", [name], f"has {name}", f"look at {error.value}"))
        said = capfd.readouterr()
        assert leaks(tmp_path, said.out, said.err, told, shown(name), str(cached)) == []


def test_a_password_is_not_sent_to_where_a_server_redirects(tmp_path: Path) -> None:
    """Each of two servers writes down who asked."""
    asked: dict[str, list[str | None]] = {"first": [], "second": []}

    class Second(Handler):
        def do_GET(self) -> None:
            asked["second"].append(self.headers["Authorization"])
            super().do_GET()

    class First(Handler):
        def do_GET(self) -> None:
            asked["first"].append(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", f"{servers[1].url}/x.tar")
            self.send_header("Content-Length", "0")
            self.end_headers()

    (tmp_path / "x.tar").write_bytes(b"bytes of a shard")
    servers = [Server(tmp_path), Server(tmp_path)]
    for server, handler in zip(servers, (First, Second), strict=True):
        server.RequestHandlerClass = handler
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://me:{PASSWORDS[0]}@{servers[0].url.removeprefix('http://')}/x.tar"
        fetch.fetch(conceal(url), tmp_path / "got")
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert (tmp_path / "got").read_bytes() == b"bytes of a shard"
    basic = base64.b64encode(b"me:Hunter2@x").decode()
    assert asked == {"first": [f"Basic {basic}"], "second": [None]}


def test_a_sweep_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra writes the words of a sweep into a file of its own."""
    monkeypatch.chdir(tmp_path)
    root = f"data.root='https://me:{PASSWORDS[1]}@host/x.tar?token={TOKENS[0]}'"
    words = ["-m", "modality=audio", "data=shards", root, "seed=0,1", "name=s_${seed}", "lr=-1"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit):
        cli.train(words)
    assert "data.root=" in next(tmp_path.rglob("multirun.yaml")).read_text()
    assert leaks(tmp_path) == []


def test_secrets_from_files_and_the_environment_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that were not typed: set in the program, or taken by Hydra from the environment."""
    monkeypatch.chdir(tmp_path)
    url = f"https://me:{PASSWORDS[1]}@host/x.tar"
    monkeypatch.setenv("SHARDS", f"{url}?token={TOKENS[0]}")
    cfg = compose.load(["modality=audio", "data=shards", "data.root=${oc.env:SHARDS}"])
    for root in (cfg.data.root, [url, url]):
        cfg.data.root = root
        assert MARK in (text := stored.text_of(cfg)) and leaks(tmp_path, text) == []
    cfg = compose.load(["modality=audio", "steps=1", "warmup=0", "lr=-1", f"init_from={url}"])
    with pytest.raises(ConfigError) as error:
        pretrain(cfg)
    assert leaks(tmp_path, str(error.value)) == []


def test_cfg_job_shows_no_secret(tmp_path: Path) -> None:
    words = ["modality=audio", "data=shards", f"data.root=https://me:{PASSWORDS[1]}@host/x.tar"]
    words += ["logger=wandb", f"+logger.settings.api_key={TOKENS[0]}"]
    text = show.job(words)
    assert text.count(MARK) >= 4 and leaks(tmp_path, text) == []


SAME = [
    "data.root=https://host/train-{000..127}.tar",
    "data.root=s3://bucket/train-???.tar",
    "data.root=abfss://container@account.dfs.core.windows.net/x.tar",
    "data.root=sftp://bob@host/x.tar",
    "data.root=https://host:8080/a@2x.tar?download=1",
    "data.root=http://[::1]:80/x.tar",
    "data.root='pipe:aws s3 cp s3://bucket/x.tar -'",
    "data.label_key=json.speaker",
    "masking=token",
    "max_tokens=100000",
    "transform.tokenizer=a/tokenizer.json",
    "name=token",
    "labels=auth",
    "architecture.stem.masked=true",
]


def test_what_is_no_secret_stays() -> None:
    assert [conceal_word(word) for word in SAME] == SAME
    assert [redact(word) for word in SAME] == SAME


HIDDEN = {
    "data.root=https://u:SECRET@host/x.tar": 1,
    "data.root=https://SECRET@host/x.tar": 1,
    "data.root=ftp://u:SECRET@host:21/x.tar": 1,
    "data.root=s3://KEY:SECRET@bucket/x.tar": 1,
    "data.root=https://u:SEC/RET@host/x.tar": 1,
    "data.root=https://u:S@CRET@host/x.tar": 1,
    "'data.root=https://host/x.tar?a=SECRET1&sig=SECRET2#access_token=SECRET3'": 3,
    "'data.root=https://host/x.tar?SECRET'": 1,
    "data.root=[https://u:SECRET1@a/x.tar,https://u:SECRET2@b/x.tar]": 2,
    "'data.root=pipe:curl -u u:SECRET1 -H \"Authorization: Bearer SECRET2\" https://h/x?t=RET'": 3,
    "'data.root=pipe:get --api-key SECRET1 --password=SECRET2 x'": 2,
    "'data.root=pipe:S3_ACCESS_KEY=SECRET1 aws s3 cp s3://b/x.tar -'": 1,
    "+logger.settings.api_key=SECRET": 1,
    "++data.storage.accessToken=SECRET": 1,
    "+data.password='SEC RET'": 1,
    "+wandb_key=SECRET": 1,
}  # fmt: skip


@pytest.mark.parametrize("word", HIDDEN)
def test_what_is_a_secret_is_hidden_and_found_again(word: str) -> None:
    hidden = conceal_word(word)
    assert "SECRET" not in hidden.replace(MARK, "") and "RET" not in hidden.replace(MARK, "")
    assert hidden.count(MARK) == HIDDEN[word]
    assert reveal(hidden) == word and conceal_word(hidden) == hidden
    key, _, value = word.strip("+'").partition("=")
    node = {key.rpartition(".")[2]: [value]} if "root" in key else {key.rpartition(".")[2]: value}
    assert revealed(concealed(node)) == node and "SECRET" not in str(concealed(node)).replace(
        MARK, ""
    )


def test_a_secret_in_the_words_of_a_library_is_hidden() -> None:
    conceal("https://me:Long-Password@host/x.tar?token=abcdefgh")
    said = redact("cannot log in as me with Long-Password (abcdefgh)")
    assert "Long" not in said and "abcdefgh" not in said


def test_equal_secrets_have_equal_marks_and_others_do_not() -> None:
    one, two, again = (conceal(f"https://host/x.tar?token={t}") for t in ("a", "b", "a"))
    assert one == again != two
    assert expand([one, two]) == sorted([one, two])


def test_object_stores_take_no_password_in_the_address() -> None:
    with pytest.raises(ConfigError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in"):
        expand(conceal("s3://KEY:SECRETKEY@bucket/x.tar"))


def test_processes_of_a_run_know_its_secrets() -> None:
    hidden = conceal("https://me:Long-Password@host/x.tar")
    program = "import sys; from d2v_pretrain.redaction import reveal; print(reveal(sys.argv[1]))"
    words = [sys.executable, "-c", program, hidden]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "https://me:Long-Password@host/x.tar"


def test_errors_that_nobody_catches_show_no_secret() -> None:
    program = (
        "from d2v_pretrain.redaction import conceal_tracebacks; conceal_tracebacks();"
        "raise OSError('https://me:Long-Password@host/x.tar')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError: https://HIDDEN" in done.stderr
    assert done.stderr.count("Long-Password") == 0


def test_checkpoints_of_older_versions_are_cleaned_when_they_are_compared(tmp_path: Path) -> None:
    """A configuration that was stored with its password is the same as the one without."""
    url = f"https://me:{PASSWORDS[1]}@host/x.tar"
    content = {"data": {"labels": url}, "name": "x"}
    path = tmp_path / "last.ckpt"
    whole = {"global_step": 1, "position": {}, "config": json.dumps(content), "state_dict": {}}
    checkpoint.write(whole, path)
    assert concealed(stored.plain(checkpoint.config_of(path), path)) == concealed(content)
