"""The folder of shards: whose it is, what of it is finished, and the manifest at the end."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from d2v_pretrain.errors import ConfigError
from datamodules.prepare.settings import Build
from datamodules.prepare.tar import Written

_WORKING = ".prepare"  # in the output folder while the work is not finished; then it is gone
_PACKAGES = ("numpy", "soundfile", "torchaudio", "pillow", "tokenizers")
# Where, how fast and how strictly, not what. The files of the tokenizer are in the hash of the
# transform.
_ELSEWHERE = {"input", "output", "processes", "max_bad_share", "tokenizer"}
_LICENCE_FILES = re.compile(r"(licen[cs]e|copying|readme)(\.\w+)?", re.IGNORECASE)
_LICENCE_CHARACTERS = 10_000


@dataclass(frozen=True)
class Record:
    """One finished shard; files that it should hold and that could not be used, with reasons."""

    name: str
    written: Written
    skipped: dict[str, str]


class Finished(Exception):
    """An earlier start of the same command, on the same input, has done everything."""


class Output:
    """A folder that one command fills; a later start of the same command goes on with it.

    Args:
        settings: of the command. command: its name.
    """

    def __init__(self, settings: Build, command: str) -> None:
        self.settings, self.command, self.folder = settings, command, Path(settings.output)
        self.working, self.manifest = self.folder / _WORKING, self.folder / "manifest.json"
        kept = {key: value for key, value in asdict(settings).items() if key not in _ELSEWHERE}
        self.recipe = {
            "command": command,
            **kept,
            "packages": {name: _version(name) for name in _PACKAGES},
        }

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the folder for this process.

        Raises:
            ConfigError: if it holds something else, is at work in another process, or was begun
                with other settings.
        """
        if self.folder.resolve().is_relative_to(Path(self.settings.input).resolve()):
            rule = "is in the input, where a later start would read it"
            raise ConfigError("output", self.folder, rule, "give one outside")
        if self.manifest.exists():
            self._check(_read(self.manifest).get("recipe", {}), "was made")
            shutil.rmtree(self.working, ignore_errors=True)  # killed between the manifest and this
            yield
            return
        if not self.working.exists():
            there = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
            if there or self.folder.is_file():
                rule = f"holds something else ({', '.join(there[:3]) or 'it is a file'})"
                raise ConfigError(
                    "output", self.folder, rule, "give a new folder, or remove what is there"
                )
        self.working.mkdir(parents=True, exist_ok=True)
        with (self.working / "lock").open("w") as lock:
            try:
                fcntl.flock(
                    lock, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the system frees it, however the process ends
            except BlockingIOError:
                raise ConfigError(
                    "output", self.folder, "is being filled by another process", "wait for it"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def begin(self, transform: dict[str, Any]) -> None:
        """Note what is made of what, or compare it with what an earlier start noted; remove what
        was half written.

        Args:
            transform: of the input: at least ``hash``, another one for another input.

        Raises:
            ConfigError: if they differ.
            Finished: if there is nothing left to do.
        """
        state = self.working / "state.json"
        known = next((file for file in (self.manifest, state) if file.exists()), None)
        if known:
            before = _read(known)
            self._check(before["recipe"], "was begun")
            if before["transform"] != transform:
                rule = "is of another input: other files, sizes, or another tokenizer"
                raise ConfigError(
                    "output", self.folder, rule, "give another output, or remove this one"
                )
        if known == self.manifest:
            raise Finished
        for half in self.working.glob("*.half"):
            half.unlink()
        write_json(state, {"recipe": self.recipe, "transform": transform})

    def _check(self, before: dict[str, Any], verb: str) -> None:
        differing = [key for key in self.recipe if before.get(key) != self.recipe[key]]
        if differing:
            key, *others = differing
            rule = f"differs from {before.get(key)}, with which {self.folder} {verb}"
            rule += f"; so do {', '.join(others)}" if others else ""
            raise ConfigError(
                key, self.recipe[key], rule, "give another output, or remove this one"
            )

    def record_path(self, name: str) -> Path:
        """Where the record of a shard is; it is written last, so a shard with a record is whole."""
        return self.working / f"{name}.json"

    def finished(self, name: str) -> Record | None:
        """The record of a shard, if it is finished and there."""
        if not self.record_path(name).exists():
            return None
        row = _read(self.record_path(name))
        record = Record(row["name"], Written(**row["written"]), row["skipped"])
        tar, index = self.folder / f"{name}.tar", self.folder / f"{name}.idx"
        there = tar.exists() and tar.stat().st_size == record.written.bytes and index.exists()
        return record if there or record.written.samples == 0 else None

    def check_space(self, needed: float) -> None:
        """Raise ConfigError unless this many bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            rule = f"needs about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free"
            raise ConfigError(
                "output", self.folder, rule, "free some space, or give a folder on another disk"
            )

    def finish(
        self,
        records: Iterable[Record],
        skipped: dict[str, str],
        transform: dict[str, Any],
        facts: dict[str, Any],
    ) -> dict[str, Any]:
        """Write ``skipped.jsonl`` and ``manifest.json`` (returned), and remove the working folder.

        Args:
            records: of all shards. skipped: before any packing, file -> reason. transform, facts:
                into the manifest.
        """
        records = sorted(records, key=lambda record: record.name)
        reasons = skipped | {
            file: reason for record in records for file, reason in record.skipped.items()
        }
        rows = [
            {"file": file, "reason": reason, "at": "prepare"}
            for file, reason in sorted(reasons.items())
        ]
        replace(
            self.folder / "skipped.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
        shards = [
            {"name": f"{r.name}.tar", **asdict(r.written)} for r in records if r.written.samples
        ]
        everything = "".join(r.written.sha256 for r in records)
        manifest = {
            "made_by": "datamodules.prepare",
            "version": 1,
            **facts,
            "samples": sum(r.written.samples for r in records),
            "length": sum(r.written.length for r in records),
            "bytes": sum(r.written.bytes for r in records if r.written.samples),
            "skipped": len(reasons),
            "hash": hashlib.sha256(everything.encode()).hexdigest(),
            "licence": _licence(self.settings),
            "transform": transform,
            "recipe": self.recipe,
            "shards": shards,
        }
        write_json(self.manifest, manifest)
        shutil.rmtree(self.working)
        return manifest


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is, at every moment, the old one or the whole new one."""
    half = path.with_name(path.name + ".half")
    with half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def write_json(path: Path, content: Any) -> None:
    """``replace`` with JSON, one key a line."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(
            "output", path, f"cannot be read ({error})", "remove this output folder"
        ) from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _licence(settings: Build) -> dict[str, str] | None:
    """What was given; else the first licence file in the input or above it, or what its README says
    of a licence."""
    if settings.licence is not None:
        return {"text": settings.licence, "from": "licence="}
    transform = Path(settings.input)
    for folder in ([transform] if transform.is_dir() else []) + [transform.resolve().parent]:
        for name in sorted(filter(_LICENCE_FILES.fullmatch, os.listdir(folder)), key=str.lower):
            if not (folder / name).is_file():
                continue
            text = (folder / name).read_text("utf-8", errors="replace")
            if name.lower().startswith("readme"):
                text = "\n".join(
                    line
                    for line in text.splitlines()
                    if re.search("licen[cs]e", line, re.IGNORECASE)
                )
            if text.strip():
                return {"text": text[:_LICENCE_CHARACTERS], "from": name}
    return None
