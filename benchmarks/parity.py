"""Compare one training step with a recorded step of the reference: ``python -m benchmarks.parity
DIR [--write FILE]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.reference import Reference, build
from d2v_pretrain.models.encoder import Encoded
from d2v_pretrain.objective.predictors import ConvDecoder
from d2v_pretrain.training.optim import fairseq_eps, scale_gradients, set_rates
from d2v_pretrain.types import Batch, Mask, Tokens
from d2v_pretrain.weights import keymap

# Largest error allowed, relative to the tensor's largest value (forward, gradients) or absolute
# (after the step).
TOLERANCE = {"out": 2e-5, "grads": 1e-4, "after": 1e-5}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Golden:
    """A recorded step, as its folder holds it: configuration, initial weights, inputs and (unless
    blind) the answers."""

    config: dict
    init: Tensors
    io: Tensors
    answers: Tensors

    @classmethod
    def read(cls, folder: Path) -> Golden:
        """Read ``config.json`` and the safetensors files of ``folder``."""
        files = {name: folder / f"{name}.safetensors" for name in ("init", "io", "grads", "after")}
        tensors = {name: load_file(path) if path.exists() else {} for name, path in files.items()}
        answers = {name: t for name, t in tensors["io"].items() if name.startswith("out.")}
        answers |= {f"grads.{name}": t for name, t in tensors["grads"].items()}
        answers |= {f"after.{name}": t for name, t in tensors["after"].items()}
        return cls(
            json.loads((folder / "config.json").read_text()),
            tensors["init"],
            tensors["io"],
            answers,
        )


def run(golden: Golden) -> Tensors:
    """Rebuild the model, run the step and return every tensor under the names of the goldens'
    README."""
    reference = build(golden.config["recipe"], golden.config["config"], golden.config)
    load(reference, golden.init)
    batch, mask, noise = inputs(golden.io)
    wanted = golden.config["shapes"]["out"]
    computed = {
        f"out.{name}": t for name, t in trace(reference, batch, mask, noise, wanted).items()
    }
    gradients(reference, batch, mask, noise)
    grads = {
        name: p.grad.clone() for name, p in own_parameters(reference).items() if p.grad is not None
    }
    computed |= {
        f"grads.{k}": v for k, v in _renamed(grads, reference.student, golden, "student").items()
    }
    return computed | after_step(reference, golden)


def load(reference: Reference, init: Tensors) -> None:
    """Put the recorded initial weights into student, predictor and teacher."""
    objective = reference.objective
    parts = {
        who: {k.removeprefix(f"{who}."): v for k, v in init.items() if k.startswith(f"{who}.")}
        for who in ("student", "teacher")
    }
    own = objective.state_dict()
    student = keymap.from_reference(parts["student"], reference.student, own)
    objective.load_state_dict(student, strict=False)
    objective.teacher.encoder.load_state_dict(objective.student.state_dict())
    encoder = objective.teacher.encoder
    encoder.load_state_dict(
        keymap.from_reference(parts["teacher"], reference.teacher, encoder.state_dict()),
        strict=False,
    )
    missing = {n for n, _ in objective.named_parameters() if not n.startswith("teacher.")} - set(
        student
    )
    assert not missing, f"no recorded value for {sorted(missing)}"


def inputs(io: Tensors) -> tuple[Batch, Mask, Tensor | None]:
    """The recorded batch, mask and decoder noise."""
    raw = next(
        io[f"in.{name}"]
        for name in ("source", "target_tokens", "tokens", "image")
        if f"in.{name}" in io
    )
    lengths = None
    if "in.padding_mask" in io:
        lengths = (~io["in.padding_mask"]).sum(1)
    elif raw.dtype == torch.int64:
        lengths = (raw != 1).sum(1)
    batch = Batch(raw, torch.arange(len(raw)), lengths)
    mask = Mask.of(io["in.mask"].bool().flatten(1))
    if mask.kept is not None:
        # The reference sorts unstably, so its visible tokens are not in ascending order; attention
        # does not mind.
        order = mask.masked.argsort(dim=1)
        mask = replace(mask, kept=order[:, : mask.kept.shape[1]], restore=order.argsort(dim=1))
    return batch, mask, io.get("in.decoder_in_at_masked", io.get("out.decoder_in"))


@torch.no_grad()
def trace(
    reference: Reference, batch: Batch, mask: Mask, noise: Tensor | None, wanted: Iterable[str]
) -> Tensors:
    """The intermediates named in ``wanted``, by calling the parts one after the other."""
    model = reference.objective
    entered: list[Tensor] = []
    hook = model.student.blocks[reference.prenet].register_forward_pre_hook(
        lambda _, args: entered.append(args[0])
    )
    local = model.student.stem(batch)
    encoded = model.view(model.student, batch, local.repeat(model.clones), mask)
    hook.remove()
    pred = model.predictor(encoded.tokens, mask, local.grid, noise).float()
    target = model(batch, mask, noise).target
    named = {"pred": pred, "target": target, "loss_per_position": model.loss(pred, target)}
    named |= {
        "student_encoder": encoded.x,
        "student_prenet_out": entered[0],
        "student_norm_out": encoded.x,
    }
    named |= {"features_projected": local.x, "local_features": local.x}
    if local.valid is not None:
        named["frame_padding"] = ~local.valid
    named |= _teacher_layers(reference, batch, local, mask, wanted) | _stem_features(
        reference, batch
    )
    named |= _visible(reference, encoded, local.grid, mask, noise) | _cls(
        reference, encoded, batch, local, mask
    )
    return {name: named[name] for name in wanted}


def _teacher_layers(
    reference: Reference, batch: Batch, local: Tokens, mask: Mask, wanted: Iterable[str]
) -> Tensors:
    """The last of the teacher's layers, as many as are wanted; with extra tokens for feed-forward
    outputs, as recorded."""
    model = reference.objective
    outputs: list[Tensor] = []
    which = 1 if model.targets.tensor == "ffn" else 0
    extra = 0 if which else model.student.extra_tokens
    hooks = [
        block.register_forward_hook(lambda _, __, out: outputs.append(out[which][:, extra:]))
        for block in model.teacher.encoder.blocks
    ]
    model.target(batch, local, mask)
    for hook in hooks:
        hook.remove()
    names = sorted(name for name in wanted if name.startswith(("teacher_ffn", "teacher_block")))
    return dict(zip(names, outputs[-len(names) :], strict=True))


def _cls(
    reference: Reference, encoded: Encoded, batch: Batch, local: Tokens, mask: Mask
) -> Tensors:
    model = reference.objective
    if not model.cls_weight:
        return {}
    pred, target = (
        encoded.x[:, 0],
        model.target(batch, local, mask).mean(1).repeat_interleave(model.clones, 0),
    )
    per_row = model.cls_weight * mask.count * model.loss(pred, target)
    return {"cls_pred": pred, "cls_target": target, "cls_loss_per_row": per_row}


def _stem_features(reference: Reference, batch: Batch) -> Tensors:
    stem = reference.objective.student.stem
    return {"features": stem.features(batch.inputs)} if hasattr(stem, "features") else {}


def _visible(
    reference: Reference, encoded: Encoded, grid: tuple[int, ...], mask: Mask, noise: Tensor | None
) -> Tensors:
    """What only exists where masked tokens are dropped."""
    model = reference.objective
    if not isinstance(model.predictor, ConvDecoder) or mask.kept is None or mask.restore is None:
        return {}
    decoder_in = model.predictor.fill(encoded.tokens, mask, noise)
    decoder_out = model.predictor.projection(model.predictor.decode(decoder_in, grid))
    named = {
        "ids_keep": mask.kept,
        "ids_restore": mask.restore,
        "decoder_in": decoder_in,
        "decoder_out": decoder_out,
    }
    if model.student.bias is not None:
        named["student_alibi_bias"] = model.student.bias(
            grid, mask.kept, model.student.extra_tokens
        )
    return named


def gradients(reference: Reference, batch: Batch, mask: Mask, noise: Tensor | None) -> None:
    """Backward of one step, divided by the number of predicted positions; leaves the gradients in
    the parameters."""
    model = reference.objective
    model.train()
    output = model(batch, mask, noise)
    output.loss_sum.backward()
    scale_gradients([p for p in model.parameters() if p.requires_grad], 1 / output.count)


def own_parameters(reference: Reference) -> dict[str, torch.nn.Parameter]:
    """Parameters of student and predictor, by our names."""
    return {
        name: p
        for name, p in reference.objective.named_parameters()
        if not name.startswith("teacher.")
    }


def after_step(reference: Reference, golden: Golden) -> Tensors:
    """Clip, optimizer step and teacher update with the gradients at hand; weights under the
    reference's names."""
    model, settings = reference.objective, golden.config["optimizer"]
    if "clip_norm" in settings:
        torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], settings["clip_norm"]
        )
    _optimize(reference, golden)
    model.teacher.update(model.student, 1)
    student = {name: p.detach() for name, p in own_parameters(reference).items()}
    teacher = model.teacher.encoder.state_dict()
    named = {
        f"after.student.{k}": v
        for k, v in _renamed(student, reference.student, golden, "student").items()
    }
    named |= {
        f"after.teacher.{k}": v
        for k, v in _renamed(teacher, reference.teacher, golden, "teacher").items()
    }
    return named | _outside(reference, golden)


def _renamed(state: Tensors, names: keymap.Names, golden: Golden, who: str) -> Tensors:
    shapes = {
        k.removeprefix(f"{who}."): t.shape
        for k, t in golden.init.items()
        if k.startswith(f"{who}.")
    }
    return keymap.to_reference(state, names, shapes)


def after_recorded(golden: Golden) -> Tensors:
    """The step with the *recorded* gradients, which shows clip, optimizer and teacher alone.

    Adam's first step is ``lr g / (|g| + eps)``: where a gradient is all but zero, its rounding
    alone moves a weight by up to lr."""
    reference = build(golden.config["recipe"], golden.config["config"], golden.config)
    load(reference, golden.init)
    recorded = {
        k.removeprefix("grads."): t for k, t in golden.answers.items() if k.startswith("grads.")
    }
    own = own_parameters(reference)
    for name, gradient in keymap.from_reference(recorded, reference.student, own).items():
        own[name].grad = gradient.clone()
    return after_step(reference, golden)


def _outside(reference: Reference, golden: Golden) -> Tensors:
    """Recorded tensors that our model has no parameter for: fixed positions, vision's averaged
    head, fairseq's version."""
    model, named = reference.objective, {}
    for name, tensor in golden.init.items():
        if name.endswith("fixed_positional_encoder.positions"):
            side = int(tensor.shape[1] ** 0.5)
            named[f"after.{name}"] = model.student.positions(Tokens(tensor, (side, side)))
        elif name.startswith("teacher.lm_head"):
            student = model.predictor.projection[0].get_parameter(name.rsplit(".", 1)[1])
            named[f"after.{name}"] = tensor.lerp(
                student.detach(), 1 - golden.config["ema_decay_used"]
            )
        elif name.endswith(".version"):
            named[f"after.{name}"] = tensor
    return named


def _optimize(reference: Reference, golden: Golden) -> None:
    """The goldens' optimizer: decay for every parameter, or (data2vec 1 vision) for those of more
    than one axis."""
    settings, vision1 = golden.config["optimizer"], golden.config["recipe"] == "data2vec 1.0 vision"
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in own_parameters(reference).items():
        theirs = reference.student[name]
        recorded = golden.init[f"student.{theirs if isinstance(theirs, str) else theirs[0]}"]
        groups[recorded.ndim > 1 or not vision1].append(parameter)
    listed = [
        {"params": params, "lr_scale": 1.0, "decays": decays}
        for decays, params in groups.items()
        if params
    ]
    optimizer = torch.optim.AdamW(listed, betas=tuple(settings["betas"]))
    eps = settings["eps"] if vision1 else fairseq_eps(settings["eps"], settings["betas"][1], 1)
    set_rates(optimizer, settings["lr"], settings["weight_decay"], eps)
    optimizer.step()


def errors(computed: Tensors, answers: Tensors) -> dict[str, float]:
    """Largest error of every recorded tensor: relative to its largest value, or absolute after the
    step.

    A tensor that is zero but for rounding (the gradient of a key bias, to which softmax is blind)
    counts relative to 1e-5 of the largest value of its kind."""
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
    """Command line; exit status 1 if a tensor is out of tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, help="safetensors file for everything computed")
    args = parser.parse_args()
    golden = Golden.read(args.folder)
    computed = run(golden)
    compared = computed | (after_recorded(golden) if golden.answers else {})
    table = errors(compared, golden.answers)
    bad = 0
    for name, error in sorted(table.items()):
        good = error <= TOLERANCE[name.split(".")[0]]
        bad += not good
        print(f"{'ok ' if good else 'BAD'} {error:9.2e}  {name}")
    print(f"{len(table)} tensors compared, {bad} out of tolerance; {len(computed)} computed")
    if table:
        own = max(
            error
            for name, error in errors(computed, golden.answers).items()
            if name.startswith("after.")
        )
        print(
            f"after.* used the recorded gradients; from our own, the largest difference of a weight is {own:.1e}"
        )
    if args.write:
        save_file({name: t.clone().contiguous() for name, t in computed.items()}, args.write)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
