"""Probe any checkpoint of a run, on any labelled data: ``python -m d2v_pretrain.evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console

from d2v_pretrain.atomic_files import atomic
from d2v_pretrain.checkpoint.saved_run import find
from d2v_pretrain.config import options as commands
from d2v_pretrain.config.options import Words
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.evaluation.probe import probe, table, verdict
from d2v_pretrain.weights.gate import Gate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Probe a checkpoint of a run: few-shot, linear and nearest-neighbour accuracy on frozen
    features, beside those of a random encoder and of raw features.

    Writes probe_WHICH_STEP.json, of the form of probe.json, into the run's folder.

    Usage: d2v-pretrain evaluate run=NAME [key=value …]
       or: python -m d2v_pretrain.evaluate run=NAME [key=value …]

    Examples:
      d2v-pretrain evaluate run=audio_data2vec2_tiny
      d2v-pretrain evaluate run=my_run step=5000 which=student
      d2v-pretrain evaluate run=my_run data.root=DIR data.labels=TABLE data.label_column=word
    """

    run: Annotated[str, "a run's name, or the path of its folder"]
    data: Annotated[
        Words,
        "other labelled data of the run's modality: data=… and data.KEY=… as in training, where "
        "data.root=DIR alone is a folder of files; by default the run's own data",
    ] = ()
    which: Annotated[Literal["teacher", "student"], "whose weights"] = "teacher"
    trust: Annotated[
        str | None,
        "packages, with commas, whose classes the run's encoder may be made of; null allows only "
        "those of d2v_pretrain",
    ] = None
    step: Annotated[int | None, "of the checkpoint; null takes the newest", 0] = None
    layers: Annotated[
        int | None, "average the outputs of this many last blocks; null takes half of them", 1
    ] = None


def main(typed: Sequence[str]) -> Path:
    """Print the tables and write the report.

    Returns:
        The report's file.

    Raises:
        ConfigError: no such run or checkpoint, or data without labels.
    """
    options = commands.read(Options, typed)
    run = find(options.run, options.step, Gate.typed(options.trust))
    transform = run.transform(options.data, run.folder)
    data = transform.dataset.describe()
    tasks = transform.probe_tasks()
    if not tasks:
        remedy = "give data.labels=… or other data"
        raise ConfigError("data", data, "has no labels to probe", remedy)
    encoders = {"random": run.untrained(), "pretrained": run.encoder(options.which)}
    results = [probe(task, encoders, options.layers) for task in tasks]
    console = Console(highlight=False)
    console.print(f"\nData: {data}\nThe {options.which} of {run.cfg.name} at step {run.step:,}")
    for result in results:
        console.print(table(result), verdict(result), "")
    about = {"data": data, "step": run.step, "which": options.which}
    file = run.folder / f"probe_{options.which}_{run.step}.json"
    report = results[0] | {"others": results[1:], **about}
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {file}", soft_wrap=True)
    return file


if __name__ == "__main__":
    commands.run(main, Options)
