"""verify(): check finished shards, their checksums, indexes and members; index(): write indexes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d2v_pretrain.errors import ConfigError, refuse_address
from datamodules.datasets.image_folder import ENDINGS as IMAGES
from datamodules.datasets.image_folder import decode
from datamodules.datasets.sound import ENDINGS as AUDIO
from datamodules.datasets.sound import mono
from datamodules.datasets.unusable import Unusable, reading
from datamodules.parallel import advance, spread
from datamodules.prepare.settings import Index, Verify
from datamodules.shards.index import build_index, index_path, load, scan
from datamodules.shards.npy import ids_of
from datamodules.shards.tar import MOST, Damaged

_SHOWN = 50  # faults that are printed


def verify(settings: Verify) -> int:
    """Check a folder of shards, or one tar file, and print what is wrong.

    Returns:
        0 if nothing is wrong, else 1.

    Raises:
        ConfigError: if there is no tar file.
    """
    tars = _tars(settings.input)
    there = Path(settings.input, "manifest.json").is_file()
    rows, largest, faults = _manifest(Path(settings.input), tars) if there else ({}, None, [])
    check = partial(check_shard, rows=rows, vocab_size=largest)
    total = sum(os.path.getsize(tar) for tar in tars)
    for found in spread(check, tars, settings.processes, total, "verifying", "MB", 10**6):
        faults += found
    for fault in faults[:_SHOWN]:
        print(shown(fault))
    shards = f"{len(tars):,} shards{'' if there else ' without a manifest'}"
    print(f"{settings.input}: {shards}, {len(faults):,} faults")
    return 1 if faults else 0


def index(settings: Index) -> int:
    """Write the index beside each tar file, and print the samples that a reader cannot use.

    Returns:
        0 if there are no such samples, else 1.
    """
    tars = _tars(settings.input)
    total = sum(os.path.getsize(tar) for tar in tars)
    faults = [
        one
        for found in spread(_index_one, tars, settings.processes, total, "indexing", "MB", 10**6)
        for one in found
    ]
    for one in faults[:_SHOWN]:
        print(shown(one))
    print(f"{settings.input}: {len(tars):,} indexes written, {len(faults):,} faults")
    return 1 if faults else 0


def _index_one(tar: str) -> list[str]:
    refused = build_index(tar)
    advance(os.path.getsize(tar))
    return [f"{os.path.basename(tar)}: {sample}: {reason}" for sample, reason in refused.items()]


def shown(text: str) -> str:
    """A text that can be printed, though names of files in it need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _tars(path: str) -> list[str]:
    refuse_address("input", path)
    if os.path.isfile(path):
        return [path]
    found = sorted(str(tar) for tar in Path(path).glob("*.tar"))
    if not found:
        remedy = "give a folder of shards, or a tar file"
        raise ConfigError("input", path, "has no .tar file in it", remedy)
    return found


def _manifest(
    folder: Path, tars: list[str]
) -> tuple[dict[str, dict[str, Any]], int | None, list[str]]:
    """The manifest's entry of each shard, its number of ids, and what does not agree with it."""
    file = folder / "manifest.json"
    try:
        with reading("cannot be read"):
            content = json.loads(file.read_text("utf-8"))
            rows = {row["name"]: row for row in content["shards"]}
            return rows, content.get("vocab_size"), list(_against(content, tars))
    except Unusable as error:
        raise ConfigError("input", file, str(error), "remove it to verify without it") from None


def _against(manifest: dict[str, Any], tars: list[str]) -> Iterator[str]:
    """Shards that are only in the manifest or only in the folder, and sums that do not agree."""
    named = {row["name"] for row in manifest["shards"]}
    there = {os.path.basename(tar) for tar in tars}
    yield from (f"{name}: missing" for name in sorted(named - there))
    yield from (f"{name}: not in the manifest" for name in sorted(there - named))
    for key in ("samples", "length", "bytes"):
        if (total := sum(row[key] for row in manifest["shards"])) != manifest[key]:
            yield f"manifest.json: {key} is {manifest[key]}, and the shards have {total}"


def check_shard(tar: str, rows: dict[str, dict[str, Any]], vocab_size: int | None) -> list[str]:
    """The faults of one shard, each with the names of shard and member.

    Args:
        tar: the file.
        rows: entries of the manifest by name of the shard. Checksums are compared only for
            shards that have an entry.
        vocab_size: every id of a ``npy`` member must be below it; None if it is not known.
    """
    name, row = os.path.basename(tar), rows.get(os.path.basename(tar))
    faults, samples = [], set()
    try:
        with reading("cannot be read to its end"):
            if row and row["sha256"] != _sha256(tar):
                faults.append(f"{name}: its bytes are not those that were written (SHA-256)")
            with tarfile.open(tar) as members:
                for member in members:
                    key, _, extension = os.path.basename(member.name).partition(".")
                    samples.add(os.path.join(os.path.dirname(member.name), key))
                    data = members.extractfile(member) if member.size <= MOST else None
                    if data is not None and (
                        reason := fault(extension.lower(), data.read(), vocab_size)
                    ):
                        faults.append(f"{name}: {member.name}: {reason}")
    except Unusable as error:
        faults.append(f"{name}: {error}")
    if (row or os.path.exists(index_path(tar))) and (reason := _index_fault(tar)):
        faults.append(f"{os.path.basename(index_path(tar))}: {reason}")
    if row and len(samples) != row["samples"]:
        faults.append(f"{name}: {len(samples):,} samples, and the manifest has {row['samples']:,}")
    advance(os.path.getsize(tar))
    return faults


def _index_fault(tar: str) -> str | None:
    """Why the index beside a tar does not belong to that tar; None if it does."""
    try:
        said = load(index_path(tar))
        with open(tar, "rb") as file:
            found = scan(file, os.path.getsize(tar))[0]
    except (OSError, Damaged) as error:
        return f"cannot be read ({error})"
    same = (said.tar_bytes, said.tar_crc) == (found.tar_bytes, found.tar_crc)
    if same and np.array_equal(said.entries, found.entries):
        return None
    command = f"python -m datamodules.prepare index input={tar}"
    return f"is not that of its tar; if the tar is right: {command}"


def fault(extension: str, data: bytes, vocab_size: int | None) -> str | None:
    """Why a member cannot be decoded, or None if it can, or is of an unknown kind."""
    check = _CHECKS.get(extension.rpartition(".")[2])
    try:
        with reading("cannot be decoded"):
            return check(data, vocab_size) if check else None
    except Unusable as error:
        return str(error)


def _sound(data: bytes, _: int | None) -> None:
    mono(io.BytesIO(data))


def _image(data: bytes, _: int | None) -> None:
    decode(io.BytesIO(data))


def _ids(data: bytes, vocab_size: int | None) -> str | None:
    ids = ids_of(data)
    if vocab_size is not None and not 0 <= ids.min() <= ids.max() < vocab_size:
        return f"has id {ids.max()}, and the tokenizer {vocab_size}"
    return None


def _json(data: bytes, _: int | None) -> None:
    json.loads(data)


def _number(data: bytes, _: int | None) -> None:
    int(data)


_CHECKS: dict[str, Callable[[bytes, int | None], str | None]] = {
    **{ending[1:]: _sound for ending in AUDIO},
    **{ending[1:]: _image for ending in IMAGES},
    "npy": _ids,
    "json": _json,
    "cls": _number,
}


def _sha256(file: str) -> str:
    with open(file, "rb") as bytes_:
        return hashlib.file_digest(bytes_, "sha256").hexdigest()
