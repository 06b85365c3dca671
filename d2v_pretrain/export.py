"""A run's encoder as a folder for transformers or as a bundle: ``python -m d2v_pretrain.export
run=NAME``.

run=NAME          the run, finished or going on (its newest whole checkpoint), or the path of its
folder
which=teacher     teacher or student
format=hf         hf: for transformers, as one of its classes or with code of its own; bundle: for
d2v_pretrain
step=N            another checkpoint than the newest
output=DIR        where to; runs/NAME/exports/… by default
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from d2v_pretrain.checkpoint.run import PARTS, Run, find
from d2v_pretrain.config import options as commands
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import convert, model_card, remote_code
from d2v_pretrain.huggingface.export_inputs import INPUTS, Inputs
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.types import Batch
from d2v_pretrain.weights import bundle

OPTIONS = {"run": commands.NEEDED, "which": "teacher", "format": "hf", "step": None, "output": None}
_AGREE = 1e-5  # largest difference of activations that counts as rounding, relative to the largest activation


@dataclass(frozen=True)
class Written:
    """What a format made of an encoder.

    Args:
        what: in a few words.
        library: that loads it.
        use: Markdown on how.
        again: the encoder read back, (batch) -> activations.
    """

    what: str
    library: str
    use: str
    again: Callable[[Batch], Tensor]


def main(typed: Sequence[str]) -> Path:
    """Export what was typed; see ``export``."""
    chosen = commands.options(typed, OPTIONS)
    which = commands.one_of("which", chosen["which"], list(PARTS))
    layout = commands.one_of("format", chosen["format"], list(FORMATS))
    run = find(str(chosen["run"]), commands.whole_number("step", chosen["step"]))
    return export(run, which, layout, chosen["output"])


def export(run: Run, which: str, layout: str, output: str | None = None) -> Path:
    """Write a folder, read it back, compare activations, and say what it is.

    Args:
        run: see ``trained.find``. which: teacher or student. layout: hf or bundle.
        output: an empty folder, or one to make; below the run's by default, where an older export
            is replaced.

    Raises:
        ConfigError: there is something in ``output`` already; the checkpoint is damaged.
    """
    folder = Path(output or run.folder / "exports" / f"{layout}_{which}_{run.step}")
    if output and folder.exists() and any(folder.iterdir()):
        raise ConfigError("output", output, "is not empty", "type another one, or remove it")
    encoder = run.encoder(which)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = INPUTS[type(encoder.stem)]
    note = inputs.write(run, folder)
    written = FORMATS[layout](run, encoder, folder)
    difference = _difference(run, encoder, written.again)
    use = written.use.format(folder=folder.name, auto=inputs.auto) + (
        f"\n\nNote: {note}." if note else ""
    )
    name, probe = (
        str(run.cfg.name),
        run.report(f"probe_{which}_{run.step}.json") or run.report("probe.json"),
    )
    rows = made(run, encoder, probe["data"] if probe else _last(run.cfg.data._target_))
    facts = model_card.Facts(name, which, use, rows, written.library, run.step, probe)
    (folder / "README.md").write_text(model_card.text(facts), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        shutil.copymode(
            folder / "README.md", file
        )  # safetensors makes files that only their owner may read
    say = Console(soft_wrap=True, highlight=False).print
    say(f"{folder}: the {which} of {name} at step {run.step:,}, {written.what}")
    if note:
        say(f"[yellow]Note: {note}.[/]")
    say(
        f"Read back, its activations differ by {difference:.1e}. README.md there says how to load it."
    )
    return folder


def _hf(run: Run, encoder: Encoder, folder: Path) -> Written:
    """As a class of transformers, or with code of its own where it has none."""
    try:
        if _standardised(run):
            raise convert.NoClass(
                "each image is standardised by itself, which no processor of transformers does"
            )
        model = convert.model(encoder)
    except convert.NoClass as why:
        return _remote(run, encoder, folder, str(why))
    model.save_pretrained(folder)
    name = type(model).__name__
    use = model_card.USE_CLASS.replace("{name}", name)
    return Written(
        f"as {name}",
        "transformers",
        use,
        _called(convert.load(folder)[0], INPUTS[type(encoder.stem)]),
    )


def _called(model: Callable[..., Any], inputs: Inputs) -> Callable[[Batch], Tensor]:
    """A model of the family as a function of our batches."""

    def again(batch: Batch) -> Tensor:
        mask = {}
        if batch.lengths is not None:
            mask = {"attention_mask": torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]}
        return model(**{inputs.name: batch.inputs}, **mask).last_hidden_state

    return again


def _remote(run: Run, encoder: Encoder, folder: Path, why: str) -> Written:
    _save(run, encoder, folder, {"auto_map": remote_code.AUTO_MAP, "architectures": ["D2VModel"]})
    (folder / remote_code.FILE).write_text(remote_code.flat(run.architecture), encoding="utf-8")
    what = f"with its own code, because transformers has no class for it ({why}): load it by AutoModel.from_pretrained"
    what += (
        "(…, trust_remote_code=True). Without foreign code: format=bundle, for d2v_pretrain.load"
    )
    use = model_card.USE_REMOTE.replace("{why}", why)
    return Written(what, "transformers", use, lambda batch: bundle.load(folder).encode(batch).x)


def _bundle(run: Run, encoder: Encoder, folder: Path) -> Written:
    _save(run, encoder, folder, {})
    what = "as a bundle for d2v_pretrain.load"
    return Written(
        what,
        "d2v_pretrain",
        model_card.USE_BUNDLE,
        lambda batch: bundle.load(folder).encode(batch).x,
    )


FORMATS = {"hf": _hf, "bundle": _bundle}


def _save(run: Run, encoder: Encoder, folder: Path, more: dict[str, Any]) -> None:
    sizes = {"hidden_size": encoder.width, "num_hidden_layers": encoder.depth}
    reads = {"input_name": INPUTS[type(encoder.stem)].name, "standardise": _standardised(run)}
    bundle.save(folder, encoder, run.architecture, sizes | reads | more)


def _standardised(run: Run) -> bool:
    """Whether every image is normalised by its own mean colour and contrast."""
    return "standardise" in run.cfg.transform and bool(run.cfg.transform.standardise)


@torch.no_grad()
def _difference(run: Run, encoder: Encoder, again: Callable[[Batch], Tensor]) -> float:
    """Largest difference of activations at real positions between the run's encoder and what was
    read back."""
    batch = INPUTS[type(encoder.stem)].example(run)
    ours, theirs = encoder.encode(batch), again(batch)
    real = slice(None) if ours.valid is None else ours.valid
    difference = float((ours.x - theirs)[real].abs().max())
    assert difference <= _AGREE * float(ours.x.abs().max()), f"activations differ by {difference}"
    return difference


def made(run: Run, encoder: Encoder, data: str) -> dict[str, Any]:
    """How a run was made, for its card. Paths, which are of this machine, are cut to their last
    part."""
    cfg, starts = run.cfg, run.report("environment.json")
    last: dict[str, Any] = (
        starts[-1]
        if starts
        else {"command": [], "commit": "", "packages": {}, "gpus": [], "system": ""}
    )
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    rows = {
        "data": data,
        "command": " ".join(last["command"]),
        "student sees": f"{_last(cfg.objective.view._target_)}, masks a sample: {cfg.objective.clones}",
        "targets": f"mean of the teacher's last {cfg.objective.targets.top_k} blocks",
        "masking": ", ".join(f"{k} {v}" for k, v in cfg.masking.items() if k != "_target_"),
        "encoder": f"{millions:.1f} M parameters, {encoder.depth} blocks of width {encoder.width}",
        "updates": f"{run.step:,} of {cfg.steps:,}, {cfg.global_batch} samples each",
        "learning rate": f"{cfg.lr:g}, warm-up {cfg.warmup:,}",
        "seed": cfg.seed,
        "commit": last["commit"],
        "versions": ", ".join(
            f"{name} {version}" for name, version in last["packages"].items() if version
        ),
        "hardware": ", ".join(last["gpus"]) or last["system"],
    }
    return {
        label: re.sub(r"[^\s=:]*/", "", str(value))
        for label, value in rows.items()
        if value not in ("", None)
    }


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


if __name__ == "__main__":
    commands.run(main, __doc__)
