"""The model card of an export: what it is, how to use it, how it was made, what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRICS = {"few_shot": "few-shot, 5 labels a class", "linear": "linear", "knn": "20-NN"}
_SOURCES = ("floor", "random", "pretrained")

USE_CLASS = """\
```python
from transformers import {auto}, AutoModel

model = AutoModel.from_pretrained("{folder}")
inputs = {auto}.from_pretrained("{folder}")
```

Without transformers: `d2v_pretrain.load("{folder}").encoder(inputs)`, or the class
`d2v_pretrain.{name}.from_pretrained("{folder}")`."""
USE_REMOTE = """\
transformers has no class for this encoder ({why}), so the folder carries its own code:

```python
from transformers import {auto}, AutoModel

model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)
inputs = {auto}.from_pretrained("{folder}")
```

With d2v_pretrain, no foreign code is run: `d2v_pretrain.load("{folder}").encoder(inputs)`."""
USE_BUNDLE = """\
```python
import d2v_pretrain as d2v

model = d2v.load("{folder}")
# waveforms, images or texts -> features.x (B, T, D), features.lengths
features = model.encoder(inputs)
network = model.network  # a torch.nn.Module: d2v_pretrain.models.encoder.Encoder
```"""


@dataclass(frozen=True)
class Facts:
    """The content of a card.

    Args:
        name: of the run.
        which: student or teacher.
        use: how to load the model, in Markdown.
        rows: label -> value, for the table of how it was made.
        library: ``transformers`` or ``d2v_pretrain``, for the card's header.
        step: updates after which the weights were saved.
        probe: content of ``probe.json``; None if the run was not probed.
    """

    name: str
    which: str
    use: str
    rows: Mapping[str, Any]
    library: str
    step: int
    probe: Mapping[str, Any] | None


def text(facts: Facts) -> str:
    """The card, in Markdown with the header that model hubs read."""
    tags = "[data2vec, self-supervised, d2v_pretrain]"
    header = f"---\nlibrary_name: {facts.library}\ntags: {tags}\n---\n"
    made = "\n".join(f"| {label} | {value} |" for label, value in facts.rows.items())
    parts = (
        f"{header}\n# {facts.name}",
        f"The encoder of a data2vec pretraining, the {facts.which}'s weights."
        " It gives features; no head was trained.",
        f"## Use\n\n{facts.use}",
        f"## How it was made\n\n| | |\n|---|---|\n{made}",
        f"## What it scored\n\n{_scores(facts)}",
    )
    return "\n\n".join(parts) + "\n"


def _scores(facts: Facts) -> str:
    if facts.probe is None:
        return "Not measured: the run has not been probed."
    tasks = [task for task in (facts.probe, *facts.probe.get("others", [])) if "few_shot" in task]
    which, step = facts.probe.get("which", "teacher"), facts.probe["step"]
    note = f"Probes on frozen features of the {which} at step {step:,}"
    note += "" if step == facts.step else f" (these weights are of step {facts.step:,})"
    if not tasks:
        return f"{note}: the data has no labels, so nothing was classified."
    tables = "\n\n".join(map(_table, tasks))
    return f"{note}, against a random encoder and raw features.\n\n{tables}"


def _table(task: Mapping[str, Any]) -> str:
    title = f"{task['task']}, {task['classes']} classes"
    lines = [f"| {title} | {task['floor_name']} | random encoder | pretrained |"]
    lines.append("|---|---|---|---|")
    for metric, label in METRICS.items():
        values = " | ".join(f"{task[metric][source]:.3f}" for source in _SOURCES)
        lines.append(f"| {label} | {values} |")
    return "\n".join(lines)
