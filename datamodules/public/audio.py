"""AudioSet: public datasets of audio files whose paths tell split and label."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.datasets.audio_folder import AudioFolder, Stretch
from datamodules.datasets.labels import LabelRow, hashed
from datamodules.datasets.probe_tasks import Labelled
from datamodules.public.fetch import demand, fetch


class AudioSet(AudioFolder):
    """Files of a known layout, at any depth below a folder.

    Test files of the probe are left out of pretraining.

    Args:
        root: folder of the set.
        min_seconds, max_seconds, max_bad_share, skipped_path: see ``AudioFolder``.
        pretrain: regular expression that is searched in the paths below the root (with ``/``);
            matching files are pretrained on.
        label: regular expression with a group ``label``, the class, and perhaps ``split``; None for
            no probe.
        task: what the label is ("digit").
        test_values: values of ``split`` in test files. If ``label`` has no group ``split``, the
            probe tests on one file in five.
        test_list: name of a file of the set that lists the test files in place of ``split``, or
            None.
        library_class, parts: see ``datamodules.public.fetch.fetch``.
        download: whether to download what is not there.
        get: which files to put where, for the error message if none are found.
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
        library_class: str | None,
        parts: Sequence[Mapping[str, Any]],
        download: bool,
        get: str,
    ) -> None:
        super().__init__(
            root, min_seconds, max_seconds, max_bad_share, skipped_path, None, None, None, ()
        )
        if download:
            fetch(root, library_class, parts)
        demand(os.path.isdir(root), root, "folder of the set", get)
        self.pretrain, self.label, self.task, self.get = re.compile(pretrain), label, task, get
        self.test_values, self.test_list = set(map(str, test_values)), test_list

    def _below(self, file: str) -> str:
        return Path(os.path.relpath(file, self.root)).as_posix()

    @cached_property
    def labelled_files(self) -> list[tuple[Stretch, LabelRow]]:
        """Files whose path has a label; [] unless there are some of each split."""
        if self.label is None:
            return []
        found = [
            (whole, re.search(self.label, self._below(file))) for file, whole in self.files.items()
        ]
        rows = [
            (whole, LabelRow(match.string, match["label"], self._tested(match)))
            for whole, match in found
            if match is not None
        ]
        return rows if len({row.test for _, row in rows}) == 2 else []

    def _tested(self, match: re.Match[str]) -> bool:
        if self.test_list is not None:
            return match.string in self._listed
        if "split" in match.re.groupindex:
            return match["split"] in self.test_values
        return hashed(match.string)

    @cached_property
    def _listed(self) -> set[str]:
        """Paths in the list of test files."""
        lists = sorted(Path(self.root).rglob(str(self.test_list)))
        demand(lists, self.root, f"{self.test_list} in it or below", self.get)
        return {
            self._below(str(path.parent / line))
            for path in lists
            for line in path.read_text("utf-8").split()
        }

    @cached_property
    def stretches(self) -> list[Stretch]:
        """The items to pretrain on."""
        held_out = {whole.file for whole, row in self.labelled_files if row.test}
        fitting = [
            whole for file, whole in self.files.items() if self.pretrain.search(self._below(file))
        ]
        what = f"file to pretrain on (looked for paths with {self.pretrain.pattern})"
        demand(fitting, self.root, what, self.get)
        kept = [whole for whole in fitting if whole.file not in held_out]
        return [part for whole in kept for part in self._parts(whole)]

    def labelled(self) -> list[Labelled[np.ndarray]]:
        """The classification by ``label``; [] if the set has no labels."""
        if not self.labelled_files:
            return []
        if self.test_list is not None:
            return [self.classification(self.task, f"tested on {self.test_list}")]
        values = ", ".join(sorted(self.test_values))
        note = f"tested where the split is {values}" if values else "tested on 1 in 5"
        return [self.classification(self.task, note)]


def transcripts(root: str) -> dict[str, str]:
    """Utterance id -> text of every ``*.trans.txt`` below a folder, as LibriSpeech has them."""
    lines = (
        line
        for path in sorted(Path(root).rglob("*.trans.txt"))
        for line in path.read_text("utf-8").splitlines()
    )
    return {name: text for name, _, text in (line.partition(" ") for line in lines) if name}
