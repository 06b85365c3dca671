"""Output: the folder of shards that a command fills, which shards are finished, and the
manifest."""

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

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.errors import ConfigError
from datamodules.prepare.settings import Build
from datamodules.shards.tar import Written

_WORKING = ".prepare"  # a folder in the output, removed when the work is finished
_PACKAGES = ("numpy", "soundfile", "torchaudio", "pillow", "tokenizers")
# Settings that do not change the output, or (input, tokenizer) whose files are compared by hashes.
_NOT_COMPARED = {"input", "output", "processes", "max_bad_share", "tokenizer"}
_LICENCE_FILES = re.compile(r"(licen[cs]e|copying|readme)(\.\w+)?", re.IGNORECASE)
_LICENCE_CHARACTERS = 10_000


@dataclass(frozen=True)
class Record:
    """A finished shard, and its items that could not be used, each with the reason."""

    name: str
    written: Written
    skipped: dict[str, str]


class Finished(Exception):
    """An earlier start of the same command on the same input has done everything."""


class Output:
    """A folder that one command fills. The same command, started again, continues to fill it.

    Args:
        settings: options of the command.
        command: name of the command.
    """

    def __init__(self, settings: Build, command: str) -> None:
        self.settings, self.command, self.folder = settings, command, Path(settings.output)
        self.working, self.manifest = self.folder / _WORKING, self.folder / "manifest.json"
        kept = {key: value for key, value in asdict(settings).items() if key not in _NOT_COMPARED}
        self.recipe = {
            "command": command,
            **kept,
            "packages": {name: _version(name) for name in _PACKAGES},
        }

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder for this process.

        Raises:
            ConfigError: if it holds something else, another process is filling it, or it was begun
                with other settings.
        """
        if self.folder.resolve().is_relative_to(Path(self.settings.input).resolve()):
            rule = "is in the input, where a later start would read it"
            raise ConfigError("output", self.folder, rule, "give one outside")
        if self.manifest.exists():
            self._check(_read(self.manifest).get("recipe", {}), "was made")
            # A process that was killed right after it wrote the manifest leaves this folder.
            shutil.rmtree(self.working, ignore_errors=True)
            yield
            return
        if not self.working.exists():
            there = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
            if there or self.folder.is_file():
                rule = f"holds something else ({', '.join(there[:3]) or 'it is a file'})"
                remedy = "give a new folder, or remove what is there"
                raise ConfigError("output", self.folder, rule, remedy)
        self.working.mkdir(parents=True, exist_ok=True)
        with (self.working / "lock").open("w") as lock:
            try:
                # The system frees the lock, however the process ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rule = "is being filled by another process"
                raise ConfigError("output", self.folder, rule, "wait for it") from None
            except OSError:  # a file system without locks
                pass
            yield

    def begin(self, source: dict[str, Any]) -> None:
        """Store the settings and the input of the command, or compare them with those that an
        earlier start has stored.

        Half written files are removed.

        Args:
            source: what identifies the input, see ``source_of``.

        Raises:
            ConfigError: if the settings or the input differ.
            Finished: if there is nothing left to do.
        """
        state = self.working / "state.json"
        known = next((file for file in (self.manifest, state) if file.exists()), None)
        if known:
            before = _read(known)
            self._check(before["recipe"], "was begun")
            if before["source"] != source:
                rule = "is of another input: other files, sizes, or another tokenizer"
                remedy = "give another output, or remove this one"
                raise ConfigError("output", self.folder, rule, remedy)
        if known == self.manifest:
            raise Finished
        for half in self.working.glob("*.half"):
            half.unlink()
        write_json(state, {"recipe": self.recipe, "source": source})

    def _check(self, before: dict[str, Any], verb: str) -> None:
        differing = [key for key in self.recipe if before.get(key) != self.recipe[key]]
        if differing:
            key, *others = differing
            more = f"; so do {', '.join(others)}" if others else ""
            rule = f"differs from {before.get(key)}, with which {self.folder} {verb}{more}"
            remedy = "give another output, or remove this one"
            raise ConfigError(key, self.recipe[key], rule, remedy)

    def record_path(self, name: str) -> Path:
        """Where the record of a shard is. It is written last, so a shard with a record is whole."""
        return self.working / f"{name}.json"

    def finished(self, name: str) -> Record | None:
        """The record of a shard, if the shard is finished and its file still exists."""
        if not self.record_path(name).exists():
            return None
        row = _read(self.record_path(name))
        record = Record(row["name"], Written(**row["written"]), row["skipped"])
        tar, index = self.folder / f"{name}.tar", self.folder / f"{name}.idx"
        there = tar.exists() and tar.stat().st_size == record.written.bytes and index.exists()
        return record if there or record.written.samples == 0 else None

    def check_space(self, needed: float) -> None:
        """Raise a ``ConfigError`` unless this many bytes are free."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            rule = f"needs about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free"
            remedy = "free some space, or give a folder on another disk"
            raise ConfigError("output", self.folder, rule, remedy)

    def finish(
        self,
        records: Iterable[Record],
        skipped: dict[str, str],
        source: dict[str, Any],
        facts: dict[str, Any],
    ) -> dict[str, Any]:
        """Write ``skipped.jsonl`` and ``manifest.json`` (returned), and remove the working folder.

        Args:
            records: the records of all shards.
            skipped: files that were left out before packing -> the reason.
            source, facts: for the manifest.
        """
        records = sorted(records, key=lambda record: record.name)
        reasons = skipped | {
            file: reason for record in records for file, reason in record.skipped.items()
        }
        rows = [
            {"file": file, "reason": reason, "at": "prepare"}
            for file, reason in sorted(reasons.items())
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        replace(self.folder / "skipped.jsonl", lines.encode())
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
            "source": source,
            "recipe": self.recipe,
            "shards": shards,
        }
        write_json(self.manifest, manifest)
        shutil.rmtree(self.working)
        return manifest


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. A kill may leave a ``*.half``, which ``begin`` removes."""
    with atomic(path, path.with_name(path.name + ".half")) as half:
        half.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """``replace`` with JSON, one key on each line."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        rule = f"cannot be read ({error})"
        raise ConfigError("output", path, rule, "remove this output folder") from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _licence(settings: Build) -> dict[str, str] | None:
    """The licence of the data: from the setting, else from the first licence file in the input or
    above it, else from the lines of a README."""
    if settings.licence is not None:
        return {"text": settings.licence, "from": "licence="}
    root = Path(settings.input)
    for folder in ([root] if root.is_dir() else []) + [root.resolve().parent]:
        for name in sorted(filter(_LICENCE_FILES.fullmatch, os.listdir(folder)), key=str.lower):
            if not (folder / name).is_file():
                continue
            text = (folder / name).read_text("utf-8", errors="replace")
            if name.lower().startswith("readme"):
                lines = text.splitlines()
                text = "\n".join(x for x in lines if re.search("licen[cs]e", x, re.IGNORECASE))
            if text.strip():
                return {"text": text[:_LICENCE_CHARACTERS], "from": name}
    return None
