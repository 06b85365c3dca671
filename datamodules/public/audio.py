"""AudioSet: standard sets of audio files, whose paths tell what is pretrained on and the labels of
a probe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.datasets.audio_folder import AudioFolder, Piece
from datamodules.datasets.labels import Item, hashed, labelled
from datamodules.datasets.probe_tasks import Labelled
from datamodules.public.fetch import demand, fetch


class AudioSet(AudioFolder):
    """Files of a known layout below a folder, at any depth. Test files of the probe are left out of
    pretraining.

    Args:
        root: folder of the set.
        min_seconds, max_seconds, max_bad_share, skipped_path: see ``AudioFolder``.
        pretrain: regular expression that finds itself in the path below the root (with ``/``) of
            what is pretrained on.
        label: one with a group ``label``, the class, and perhaps ``split``; None for no probe.
        task: what the label is ("digit").
        test_values: values of ``split`` that are tested; without that group one file in five is.
        test_list: name of a file of the set that lists the test files in place of ``split``, or
            None.
        dataset, parts: see ``datamodules.public.fetch.fetch``.
        download: whether to fetch what is not there.
        get: what to put where, for the error if nothing is there.
    """

    def __init__(
        self,
        root: str,
        min_seconds: float,
        max_seconds: float,
        max_bad_share: float,
        skipped_path: str | None,
        pretrain: str,
        label: str | None,
        task: str,
        test_values: Sequence[str | int],
        test_list: str | None,
        dataset: str | None,
        parts: Sequence[Mapping[str, Any]],
        download: bool,
        get: str,
    ) -> None:
        super().__init__(
            root, min_seconds, max_seconds, max_bad_share, skipped_path, None, None, None, ()
        )
        if download:
            fetch(root, dataset, parts)
        demand(os.path.isdir(root), root, "folder of the set", get)
        self.pretrain, self.label, self.task, self.get = re.compile(pretrain), label, task, get
        self.test_values, self.test_list = set(map(str, test_values)), test_list

    def _below(self, file: str) -> str:
        return Path(os.path.relpath(file, self.root)).as_posix()

    @cached_property
    def _items(self) -> list[tuple[Piece, Item]]:
        """Labelled files, if there are some of each split."""
        if self.label is None:
            return []
        found = [
            (piece, re.search(self.label, self._below(file))) for file, piece in self.files.items()
        ]
        items = [
            (piece, Item(m.string, m["label"], self._tested(m)))
            for piece, m in found
            if m is not None
        ]
        return items if len({item.test for _, item in items}) == 2 else []

    def _tested(self, match: re.Match[str]) -> bool:
        if self.test_list is not None:
            return match.string in self._listed
        return (
            match["split"] in self.test_values
            if "split" in match.re.groupindex
            else hashed(match.string)
        )

    @cached_property
    def _listed(self) -> set[str]:
        lists = sorted(Path(self.root).rglob(str(self.test_list)))
        demand(lists, self.root, f"{self.test_list} in it or below", self.get)
        return {
            self._below(str(path.parent / line))
            for path in lists
            for line in path.read_text("utf-8").split()
        }

    @cached_property
    def pieces(self) -> list[Piece]:
        """The utterances to pretrain on."""
        held_out = {piece.file for piece, item in self._items if item.test}
        fitting = [
            piece for file, piece in self.files.items() if self.pretrain.search(self._below(file))
        ]
        demand(
            fitting,
            self.root,
            f"file to pretrain on (looked for paths with {self.pretrain.pattern})",
            self.get,
        )
        return [
            part for piece in fitting if piece.file not in held_out for part in self._parts(piece)
        ]

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The class that the path tells; [] where the set has none."""
        pieces = {item.key: piece for piece, item in self._items}
        items = [item for _, item in self._items]
        return (
            [labelled(self.task, items, lambda key: self._decode(pieces[key]), self._note())]
            if items
            else []
        )

    def _note(self) -> str:
        if self.test_list is not None:
            return f"tested on {self.test_list}"
        values = ", ".join(sorted(self.test_values))
        return f"tested where the split is {values}" if values else "tested on 1 in 5"


def transcripts(root: str) -> dict[str, str]:
    """Utterance id -> text of every ``*.trans.txt`` below a folder (LibriSpeech's form, "id TEXT" a
    line)."""
    lines = (
        line
        for path in sorted(Path(root).rglob("*.trans.txt"))
        for line in path.read_text("utf-8").splitlines()
    )
    return {name: text for name, _, text in (line.partition(" ") for line in lines) if name}
