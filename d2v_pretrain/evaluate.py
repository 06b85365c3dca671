"""The probe again, of any checkpoint of a run and on other data: behind ``python -m
d2v_pretrain.evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from d2v_pretrain.checkpoint.run import PARTS, find
from d2v_pretrain.config import options as commands
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.evaluation.probe import probe, table, verdict
from d2v_pretrain.files import atomic
from d2v_pretrain.training.run import build_encoder

USAGE = """Probe a checkpoint of a run: python -m d2v_pretrain.evaluate run=NAME

  run=NAME          the run, or the path of its folder
  data.root=DIR     other labelled data of its modality; data=… and data.key=… as for training; without, the run's own
  which=teacher     teacher or student
  step=N            another checkpoint than the newest
  layers=N          how many of the last blocks to average; half of them by default
"""
OPTIONS = {"run": commands.NEEDED, "which": "teacher", "step": None, "layers": None}


def main(typed: Sequence[str]) -> Path:
    """Print the tables and write ``probe_<which>_<step>.json``, of the form of ``probe.json``, into
    the run's folder.

    Raises:
        ConfigError: no such run, or data without labels.
    """
    data, words = commands.split(typed, "data")
    chosen = commands.options(words, OPTIONS)
    which = commands.one_of("which", chosen["which"], list(PARTS))
    run = find(str(chosen["run"]), commands.whole_number("step", chosen["step"]))
    transform = run.transform(data, run.folder)
    tasks = transform.probe_tasks()
    if not tasks:
        raise ConfigError(
            "data",
            transform.dataset.describe(),
            "has no labels to probe",
            "give data.labels=… or other data",
        )
    layers = commands.whole_number("layers", chosen["layers"])
    encoders = {"random": build_encoder(run.cfg), "pretrained": run.encoder(which)}
    results = [probe(task, encoders, layers) for task in tasks]
    console = Console()
    console.print(
        f"\nData: {transform.dataset.describe()}\nThe {which} of {run.cfg.name} at step {run.step:,}",
        highlight=False,
    )
    for result in results:
        console.print(table(result), verdict(result), "", highlight=False)
    report = results[0] | {
        "others": results[1:],
        "data": transform.dataset.describe(),
        "step": run.step,
        "which": which,
    }
    file = run.folder / f"probe_{which}_{run.step}.json"
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {file}", highlight=False, soft_wrap=True)
    return file


if __name__ == "__main__":
    commands.run(main, USAGE)
