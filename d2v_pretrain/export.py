"""A run's encoder as a folder for transformers or a bundle: ``python -m d2v_pretrain.export``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from d2v_pretrain.checkpoint.saved_run import Run, find
from d2v_pretrain.config import options as commands
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import convert, model_card, remote_code
from d2v_pretrain.huggingface.export_inputs import Inputs, inputs_of
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.redaction import redact
from d2v_pretrain.types import Batch
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.gate import Gate

# The file of an export that says how d2v_pretrain prepares inputs: a ``_target_`` below
# ``datamodules`` and its arguments without the data. transformers reads other files for this.
PREPARATION = "inputs.json"
# Differences of activations up to this share of the largest activation count as rounding errors.
_ROUNDING = 1e-5
_STANDARDISED = "each image is standardised by itself, which no processor of transformers does"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a run's encoder as a folder for transformers, or as a bundle for d2v_pretrain.load.

    The run may still be going on: its newest whole checkpoint is taken. The folder is read back and
    its activations are compared with the run's.

    Usage: d2v-pretrain export run=NAME [key=value …]
       or: python -m d2v_pretrain.export run=NAME [key=value …]

    Examples:
      d2v-pretrain export run=my_run
      d2v-pretrain export run=my_run format=bundle output=my_encoder
      d2v-pretrain export run=runs/my_run which=student step=5000
    """

    run: Annotated[str, "a run's name, or the path of its folder"]
    which: Annotated[Literal["teacher", "student"], "whose weights"] = "teacher"
    format: Annotated[
        Literal["hf", "bundle"],
        "hf is for transformers, as one of its classes or with code of its own; bundle is for "
        "d2v_pretrain",
    ] = "hf"
    trust: Annotated[
        str | None,
        "packages, with commas, whose classes the run's encoder may be made of; null allows only "
        "those of d2v_pretrain",
    ] = None
    step: Annotated[int | None, "of the checkpoint; null takes the newest", 0] = None
    output: Annotated[str | None, "a new or empty folder; null writes below runs/NAME/exports"] = (
        None
    )


@dataclass(frozen=True)
class Written:
    """A folder that was written, and how to use it.

    Args:
        what: what the folder is, in a few words.
        library: name of the library that loads the folder.
        use: how to load the folder, in Markdown.
        read_back: runs the encoder that was read back from the folder: batch -> activations.
    """

    what: str
    library: str
    use: str
    read_back: Callable[[Batch], Tensor]


def main(typed: Sequence[str]) -> Path:
    """Export the run that the typed options name; see ``export``."""
    options = commands.read(Options, typed)
    run = find(options.run, options.step, Gate.typed(options.trust))
    return export(run, options.which, options.format, options.output)


def export(run: Run, which: str, layout: str, output: str | None = None) -> Path:
    """Write a folder, read it back, compare activations, and write a card that says what it is.

    Args:
        run: see ``checkpoint.saved_run.find``.
        which: teacher or student.
        layout: hf or bundle.
        output: an empty folder, or one that does not exist yet. None writes to a folder below the
            run's and replaces an older export in it.

    Returns:
        The folder.

    Raises:
        ConfigError: ``output`` is not empty, or the checkpoint is damaged.
    """
    folder = Path(output or run.folder / "exports" / f"{layout}_{which}_{run.step}")
    if output and folder.exists() and any(folder.iterdir()):
        raise ConfigError("output", output, "is not empty", "type another one, or remove it")
    encoder = run.encoder(which)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = inputs_of(encoder)
    note = inputs.write(run, folder)
    _write_preparation(run, folder)
    written = FORMATS[layout](run, encoder, folder)
    difference = _difference(inputs.example(run), encoder, written.read_back)

    probe = run.report(f"probe_{which}_{run.step}.json") or run.report("probe.json")
    use = written.use.format(folder=folder.name, auto=inputs.auto)
    use += f"\n\nNote: {note}." if note else ""
    rows = how_it_was_made(run, encoder, probe)
    facts = model_card.Facts(run.cfg.name, which, use, rows, written.library, run.step, probe)
    readme = folder / "README.md"
    readme.write_text(model_card.text(facts), encoding="utf-8")
    for file in folder.glob("*.safetensors"):
        shutil.copymode(readme, file)  # safetensors makes files that only their owner may read
    print_line = Console(soft_wrap=True, highlight=False).print
    print_line(f"{folder}: the {which} of {run.cfg.name} at step {run.step:,}, {written.what}")
    if note:
        print_line(f"[yellow]Note: {note}.[/]")
    print_line(f"Read back, its activations differ by {difference:.1e}. See README.md for its use.")
    return folder


def _write_preparation(run: Run, folder: Path) -> None:
    """Write how ``d2v_pretrain.load`` prepares inputs, unless the folder lacks the tokenizer that
    this needs."""
    has_tokens = "tokenizer" in run.part("transform")
    if has_tokens and not (folder / "vocab.json").exists():
        return
    settings = run.preparation()
    if has_tokens:
        settings |= {"tokenizer": ".", "cache": None}  # "." is the folder itself
    (folder / PREPARATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _as_transformers(run: Run, encoder: Encoder, folder: Path) -> Written:
    """Write a folder for ``AutoModel``: of a documented class if one computes the same as the
    encoder, else with the code of the encoder in it."""
    inputs = inputs_of(encoder)
    if run.gate.trust:
        rule = f"has no place for classes of {', '.join(run.gate.trust)}"
        raise ConfigError("format", "hf", rule, "type format=bundle")
    try:
        if run.cfg.transform.get("standardise"):
            raise convert.NoClass(_STANDARDISED)
        model = convert.model(encoder)
    except convert.NoClass as why:
        own_code = {"auto_map": remote_code.AUTO_MAP, "architectures": ["D2VModel"]}
        _save(run, encoder, folder, own_code)
        source = remote_code.flat(run.architecture)
        (folder / remote_code.FILE).write_text(source, encoding="utf-8")
        what = (
            f"with its own code, because transformers has no class for it ({why}): load it by "
            "AutoModel.from_pretrained(…, trust_remote_code=True). Without foreign code: "
            "format=bundle, for d2v_pretrain.load"
        )
        use = model_card.USE_REMOTE.replace("{why}", str(why))
        return Written(what, "transformers", use, _bundle_read_back(folder))
    model.save_pretrained(folder)
    name = type(model).__name__
    use = model_card.USE_CLASS.replace("{name}", name)
    read_back = _class_read_back(convert.load(folder)[0], inputs)
    return Written(f"as {name}", "transformers", use, read_back)


def _as_bundle(run: Run, encoder: Encoder, folder: Path) -> Written:
    _save(run, encoder, folder, {})
    what, use = "as a bundle for d2v_pretrain.load", model_card.USE_BUNDLE
    return Written(what, "d2v_pretrain", use, _bundle_read_back(folder, run.gate.trust))


FORMATS = {"hf": _as_transformers, "bundle": _as_bundle}


def _save(run: Run, encoder: Encoder, folder: Path, more: Mapping[str, Any]) -> None:
    """Write the encoder as a bundle, with further entries ``more`` in its config.json."""
    about = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "input_name": inputs_of(encoder).name,
        "standardise": bool(run.cfg.transform.get("standardise")),
    }
    bundle.save(folder, encoder, run.architecture, about | dict(more))


def _class_read_back(model: Callable[..., Any], inputs: Inputs) -> Callable[[Batch], Tensor]:
    def activations(batch: Batch) -> Tensor:
        mask = {}
        if batch.lengths is not None:
            mask = {"attention_mask": torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]}
        return model(**{inputs.name: batch.inputs}, **mask).last_hidden_state

    return activations


def _bundle_read_back(folder: Path, trust: Sequence[str] = ()) -> Callable[[Batch], Tensor]:
    return lambda batch: bundle.load(folder, trust).encode(batch).x


@torch.no_grad()
def _difference(batch: Batch, encoder: Encoder, read_back: Callable[[Batch], Tensor]) -> float:
    """Largest difference of activations at real positions between the run's encoder and what was
    read back."""
    ours, theirs = encoder.encode(batch), read_back(batch)
    real = slice(None) if ours.valid is None else ours.valid
    difference = float((ours.x - theirs)[real].abs().max())
    limit = _ROUNDING * float(ours.x.abs().max())
    assert difference <= limit, f"activations differ by {difference}"
    return difference


def how_it_was_made(run: Run, encoder: Encoder, probe: Mapping[str, Any] | None) -> dict[str, str]:
    """Label -> value, for the card's table. Paths are shortened to their last part,
    since they mean nothing on other machines."""
    cfg = run.cfg
    unknown: dict[str, Any] = {"command": [], "commit": "", "packages": {}, "gpus": []}
    start = (run.report("environment.json") or [unknown | {"system": ""}])[-1]
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    view = cfg.objective.view._target_.rpartition(".")[2]
    rows = {
        "data": probe["data"] if probe else cfg.data._target_.rpartition(".")[2],
        "command": redact(" ".join(start["command"])),
        "student sees": f"{view}, masks a sample: {cfg.objective.clones}",
        "targets": f"mean of the teacher's last {cfg.objective.targets.top_k} blocks",
        "masking": ", ".join(f"{k} {v}" for k, v in cfg.masking.items() if k != "_target_"),
        "encoder": f"{millions:.1f} M parameters, {encoder.depth} blocks of width {encoder.width}",
        "updates": f"{run.step:,} of {cfg.steps:,}, {cfg.global_batch} samples each",
        "learning rate": f"{cfg.lr:g}, warm-up {cfg.warmup:,}",
        "seed": cfg.seed,
        "commit": start["commit"],
        "versions": ", ".join(f"{name} {v}" for name, v in start["packages"].items() if v),
        "hardware": ", ".join(start["gpus"]) or start["system"],
    }
    known = {label: str(value) for label, value in rows.items() if value not in ("", None)}
    return {label: re.sub(r"[^\s=:]*/", "", value) for label, value in known.items()}


if __name__ == "__main__":
    commands.run(main, Options)
