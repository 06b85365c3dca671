"""Compare one training step of ours with a recorded step of the reference.

    python -m benchmarks.parity DIR [--write FILE]

DIR is one of the folders that ``tests/fixtures/goldens/README.md`` explains. The model is rebuilt
from the recorded configuration, gets the recorded weights, inputs and mask, and everything that it
computes is compared with what the reference computed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.intermediates import trace
from benchmarks.reference import Reference, build
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.optim import (
    fairseq_eps,
    parameter_groups,
    scale_gradients,
    set_rates,
)
from d2v_pretrain.types import Batch, Mask, Tokens
from d2v_pretrain.weights import keymap

# The largest error allowed: relative to the tensor's largest value for results of the forward and
# for gradients, absolute for the weights after the step.
TOLERANCE = {"out": 2e-5, "grads": 1e-4, "after": 1e-5}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Golden:
    """A recorded training step of the reference.

    Args:
        config: the reference's configuration, and facts about the step.
        init: weights before the step, under the reference's names.
        io: inputs, mask and results of the forward.
        answers: all results to compare with; none in a folder of ``goldens/blind``.
    """

    config: dict
    init: Tensors
    io: Tensors
    answers: Tensors

    @classmethod
    def read(cls, folder: Path) -> Golden:
        """Read ``config.json`` and the safetensors files of a folder."""
        files = {name: folder / f"{name}.safetensors" for name in ("init", "io", "grads", "after")}
        tensors = {name: load_file(path) if path.exists() else {} for name, path in files.items()}
        answers = {name: t for name, t in tensors["io"].items() if name.startswith("out.")}
        answers |= {f"grads.{name}": t for name, t in tensors["grads"].items()}
        answers |= {f"after.{name}": t for name, t in tensors["after"].items()}
        config = json.loads((folder / "config.json").read_text())
        return cls(config, tensors["init"], tensors["io"], answers)


def run(golden: Golden) -> Tensors:
    """Run the whole step with our code. Returns every tensor under its recorded name."""
    reference = rebuilt(golden)
    batch, mask, noise = inputs(golden.io)
    traced = trace(reference, batch, mask, noise, golden.config["shapes"]["out"])
    computed = {f"out.{name}": t for name, t in traced.items()}

    model = reference.objective
    model.train()
    output = model(batch, mask, noise)
    output.loss_sum.backward()
    scale_gradients([p for p in model.parameters() if p.requires_grad], 1 / output.count)
    own = own_parameters(reference)
    grads = {name: p.grad.clone() for name, p in own.items() if p.grad is not None}
    computed |= _renamed("grads.", grads, reference.student, golden, "student")
    return computed | after_step(reference, golden)


def rebuilt(golden: Golden) -> Reference:
    """The model of a recorded step, with its recorded weights."""
    reference = build(golden.config["recipe"], golden.config["config"], golden.config)
    load(reference, golden.init)
    return reference


def load(reference: Reference, init: Tensors) -> None:
    """Put the recorded initial weights into student, predictor and teacher."""
    objective = reference.objective
    parts = {
        who: {k.removeprefix(f"{who}."): v for k, v in init.items() if k.startswith(f"{who}.")}
        for who in ("student", "teacher")
    }
    own = objective.state_dict()
    absent = {part for who in parts for part in _names(reference, who) if part not in parts[who]}
    if absent:
        rule = "are not in init.safetensors, and the model of config.json has them"
        raise ConfigError("parameters", ", ".join(sorted(absent)[:4]), rule)
    student = keymap.from_reference(parts["student"], reference.student, own)
    objective.load_state_dict(student, strict=False)
    objective.teacher.encoder.load_state_dict(objective.student.state_dict())
    encoder = objective.teacher.encoder
    teacher = keymap.from_reference(parts["teacher"], reference.teacher, encoder.state_dict())
    encoder.load_state_dict(teacher, strict=False)
    missing = own_parameters(reference).keys() - student.keys()
    assert not missing, f"no recorded value for {sorted(missing)}"


def _names(reference: Reference, who: str) -> Iterator[str]:
    """The reference's names of all parameters of ``student`` or ``teacher``."""
    for theirs in getattr(reference, who).values():
        yield from (theirs,) if isinstance(theirs, str) else theirs


def inputs(io: Tensors) -> tuple[Batch, Mask, Tensor | None]:
    """The recorded batch, the recorded mask, and what the decoder got at masked positions."""
    names = ("in.source", "in.target_tokens", "in.tokens", "in.image")
    raw = next(io[name] for name in names if name in io)
    lengths = None
    if "in.padding_mask" in io:
        lengths = (~io["in.padding_mask"]).sum(1)
    elif raw.dtype == torch.int64:
        lengths = (raw != 1).sum(1)  # 1 is the id of the padding token
    batch = Batch(raw, torch.arange(len(raw)), lengths)
    mask = Mask.of(io["in.mask"].bool().flatten(1))
    if mask.kept is not None:
        # Recorded tensors list visible tokens in another order than ours: the reference's sort is
        # unstable. The order makes no difference to attention.
        order = mask.masked.argsort(dim=1)
        mask = replace(mask, kept=order[:, : mask.kept.shape[1]], restore=order.argsort(dim=1))
    return batch, mask, io.get("in.decoder_in_at_masked", io.get("out.decoder_in"))


def own_parameters(reference: Reference) -> dict[str, torch.nn.Parameter]:
    """Parameters of student and predictor, by our names."""
    named = reference.objective.named_parameters()
    return {name: p for name, p in named if not name.startswith("teacher.")}


def after_step(reference: Reference, golden: Golden) -> Tensors:
    """Finish the step with the gradients that the parameters hold: clip them, step the optimizer,
    update the teacher. Returns all weights under their recorded names."""
    model, settings = reference.objective, golden.config["optimizer"]
    if "clip_norm" in settings:
        torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], settings["clip_norm"]
        )
    _optimize(reference, golden)
    model.teacher.update(model.student, 1)
    student = {name: p.detach() for name, p in own_parameters(reference).items()}
    teacher = model.teacher.encoder.state_dict()
    named = _renamed("after.student.", student, reference.student, golden, "student")
    named |= _renamed("after.teacher.", teacher, reference.teacher, golden, "teacher")
    return named | _outside(reference, golden)


def _renamed(prefix: str, state: Tensors, names: keymap.Names, golden: Golden, who: str) -> Tensors:
    """Our tensors under the reference's names, with ``prefix``, and in the reference's shapes.
    ``who`` is ``student`` or ``teacher``: whose recorded weights tell the shapes."""
    recorded = {k: t for k, t in golden.init.items() if k.startswith(f"{who}.")}
    shapes = {k.removeprefix(f"{who}."): t.shape for k, t in recorded.items()}
    return {f"{prefix}{k}": t for k, t in keymap.to_reference(state, names, shapes).items()}


def after_recorded(golden: Golden) -> Tensors:
    """Weights after the step if its gradients are the *recorded* ones and not our own.

    This compares clipping, optimizer and teacher alone. Our own gradients differ by rounding, and
    Adam's first step is ``lr g / (|g| + eps)``: where a gradient is all but zero, its rounding
    alone moves a weight by up to lr."""
    reference = rebuilt(golden)
    recorded = {
        k.removeprefix("grads."): t for k, t in golden.answers.items() if k.startswith("grads.")
    }
    own = own_parameters(reference)
    for name, gradient in keymap.from_reference(recorded, reference.student, own).items():
        own[name].grad = gradient.clone()
    return after_step(reference, golden)


def _outside(reference: Reference, golden: Golden) -> Tensors:
    """Recorded tensors that are no parameters of our model: fixed positions, the head in the
    teacher of data2vec 1.0 vision, fairseq's version number."""
    model, named = reference.objective, {}
    for name, tensor in golden.init.items():
        if name.endswith("fixed_positional_encoder.positions"):
            side = int(tensor.shape[1] ** 0.5)
            named[f"after.{name}"] = model.student.positions(Tokens(tensor, (side, side)))
        elif name.startswith("teacher.lm_head"):
            student = model.predictor.projection[0].get_parameter(name.rsplit(".", 1)[1])
            weight = 1 - golden.config["ema_decay_used"]
            named[f"after.{name}"] = tensor.lerp(student.detach(), weight)
        elif name.endswith(".version"):
            named[f"after.{name}"] = tensor
    return named


def _optimize(reference: Reference, golden: Golden) -> None:
    """Step the reference's optimizer, with the parameter groups of training. Weight decay is for
    every parameter, but in data2vec 1.0 vision not for those with one axis and the CLS token."""
    settings, vision1 = golden.config["optimizer"], golden.config["recipe"] == "data2vec 1.0 vision"
    groups = parameter_groups([reference.objective], "matrices" if vision1 else "all")
    optimizer = torch.optim.AdamW(groups, betas=tuple(settings["betas"]))
    eps = settings["eps"] if vision1 else fairseq_eps(settings["eps"], settings["betas"][1], 1)
    set_rates(optimizer, settings["lr"], settings["weight_decay"], eps)
    optimizer.step()


def errors(computed: Tensors, answers: Tensors) -> dict[str, float]:
    """The largest error of every recorded tensor; NaN for one that was not computed.

    Errors of weights after the step are absolute, others are relative to the tensor's largest
    value. A gradient that is zero up to rounding, such as that of a key's bias, which softmax
    ignores, would have a meaningless relative error. Therefore an error is never divided by less
    than 1e-5 of the largest value of all tensors of its kind."""
    largest = {name: expected.double().abs().max().item() for name, expected in answers.items()}
    kinds = {
        kind: max(v for n, v in largest.items() if n.startswith(kind))
        for kind in {n.split(".")[0] for n in largest}
    }
    table = {}
    for name, expected in answers.items():
        if name not in computed:
            table[name] = float("nan")
            continue
        error = (computed[name].double() - expected.double()).abs().max().item()
        scale = max(largest[name], 1e-5 * kinds[name.split(".")[0]])
        table[name] = error if name.startswith("after.") else error / scale
    return table


def main() -> int:
    """Compare, and print a line for every tensor. Returns 1 if an error is larger than allowed, and
    2 if the model is none that can be built here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a recorded step")
    parser.add_argument("--write", type=Path, help="write all tensors to this safetensors file")
    args = parser.parse_args()
    golden = Golden.read(args.folder)
    try:
        computed = run(golden)
    except ConfigError as error:
        print(f"{args.folder}: {error}", file=sys.stderr)
        return 2
    compared = computed | (after_recorded(golden) if golden.answers else {})
    table = errors(compared, golden.answers)
    bad = 0
    for name, error in sorted(table.items()):
        good = error <= TOLERANCE[name.split(".")[0]]
        bad += not good
        print(f"{'ok ' if good else 'BAD'} {error:9.2e}  {name}")
    print(f"{len(table)} tensors compared, {bad} out of tolerance; {len(computed)} computed")
    if table:
        whole = errors(computed, golden.answers)
        own = max(error for name, error in whole.items() if name.startswith("after."))
        print(
            "Tensors named after.* above come from a step with the recorded gradients.\n"
            f"With our own gradients the largest difference of a weight is {own:.1e}."
        )
    if args.write:
        save_file({name: t.clone().contiguous() for name, t in computed.items()}, args.write)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
