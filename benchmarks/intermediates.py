"""Compute the intermediate results that a recorded step of the reference holds.

A training step of ours gives only prediction, target and loss. The recorded files hold much more:
features, the output of every teacher layer, the input of the decoder and so on, explained in
``tests/fixtures/goldens/README.md``. ``trace`` computes them under the same names."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from benchmarks.reference import Reference
from d2v_pretrain.models.encoder import Encoded
from d2v_pretrain.objective.predictors import ConvDecoder
from d2v_pretrain.types import Batch, Mask, Tokens


@torch.no_grad()
def trace(
    reference: Reference, batch: Batch, mask: Mask, noise: Tensor | None, wanted: Collection[str]
) -> dict[str, Tensor]:
    """Call the parts of the model one after the other, and return the results named in ``wanted``.

    Args:
        reference: the model, with the recorded weights.
        batch: the recorded input.
        mask: the recorded mask.
        noise: what the decoder gets at masked positions; None for a model that has no decoder.
        wanted: names of the recorded results, without ``out.``.
    """
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
    named = {
        "pred": pred,
        "target": target,
        "loss_per_position": model.loss(pred, target),
        "student_encoder": encoded.x,
        "student_prenet_out": entered[0],
        "student_norm_out": encoded.x,
        "features_projected": local.x,
        "local_features": local.x,
    }
    if local.valid is not None:
        named["frame_padding"] = ~local.valid
    named |= _teacher_layers(reference, batch, local, mask, wanted)
    if hasattr(model.student.stem, "features"):
        named["features"] = model.student.stem.features(batch.inputs)
    named |= _decoder(reference, encoded, local.grid, mask, noise)
    if model.cls_weight:
        cls_pred, layers = encoded.x[:, 0], model.target(batch, local, mask)
        cls_target = layers.mean(1).repeat_interleave(model.clones, 0)
        per_row = model.cls_weight * mask.count * model.loss(cls_pred, cls_target)
        named |= {"cls_pred": cls_pred, "cls_target": cls_target, "cls_loss_per_row": per_row}
    return {name: named[name] for name in wanted}


def _teacher_layers(
    reference: Reference, batch: Batch, local: Tokens, mask: Mask, wanted: Collection[str]
) -> dict[str, Tensor]:
    """Output of the teacher's last layers, as many as ``wanted`` has names for. The reference
    recorded feed-forward outputs with the extra tokens and block outputs without them."""
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


def _decoder(
    reference: Reference, encoded: Encoded, grid: tuple[int, ...], mask: Mask, noise: Tensor | None
) -> dict[str, Tensor]:
    """What exists only where the student does not see masked tokens (data2vec 2.0)."""
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
        extra = model.student.extra_tokens
        named["student_alibi_bias"] = model.student.bias(grid, mask.kept, extra)
    return named


if __name__ == "__main__":
    print(__doc__)
