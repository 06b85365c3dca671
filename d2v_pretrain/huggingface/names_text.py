"""Hugging Face's parameter names of the text models beside ours."""

from __future__ import annotations

from d2v_pretrain.weights.keymap import Names, affine, each


def text(depth: int, cross: bool, pooler: bool) -> Names:
    """``Data2VecTextModel``.

    Args:
        depth: blocks.
        cross: they attend to another encoder.
        pooler: the model has one.
    """
    tables = ("token", "word"), ("position", "position"), ("segment", "token_type")
    return {
        **{f"encoder.stem.{a}.weight": f"embeddings.{b}_embeddings.weight" for a, b in tables},
        **affine("encoder.stem.norm", "embeddings.LayerNorm"),
        **each(depth, lambda i: bert_block(f"encoder.blocks.{i}", f"encoder.layer.{i}", cross)),
        **(affine("pooler", "pooler.dense") if pooler else {}),
    }


def bert_block(ours: str, theirs: str, cross: bool) -> Names:
    """A block of the text models, which Hugging Face names as BERT's."""
    return {
        **_attention(f"{ours}.attention", f"{ours}.norm1", f"{theirs}.attention"),
        **(
            _attention(f"{ours}.cross", f"{ours}.cross_norm", f"{theirs}.crossattention")
            if cross
            else {}
        ),
        **affine(f"{ours}.fc1", f"{theirs}.intermediate.dense"),
        **affine(f"{ours}.fc2", f"{theirs}.output.dense"),
        **affine(f"{ours}.norm2", f"{theirs}.output.LayerNorm"),
    }


def _attention(ours: str, norm: str, theirs: str) -> Names:
    qkv: Names = {
        f"{ours}.qkv.{p}": (
            f"{theirs}.self.query.{p}",
            f"{theirs}.self.key.{p}",
            f"{theirs}.self.value.{p}",
        )
        for p in ("weight", "bias")
    }
    return (
        qkv
        | affine(f"{ours}.out", f"{theirs}.output.dense")
        | affine(norm, f"{theirs}.output.LayerNorm")
    )
