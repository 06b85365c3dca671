"""Data2VecVisionConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from d2v_pretrain.huggingface.config_base import Config


@dataclass(init=False, eq=False)
class Data2VecVisionConfig(Config):
    """Configuration of the vision models.

    The defaults are Hugging Face's. Pretrained data2vec-vision checkpoints have
    ``use_shared_relative_position_bias`` and no mean pooling; fine-tuned ones have
    ``use_relative_position_bias`` and mean pooling.

    Args:
        hidden_dropout_prob: of the embeddings, after attention and after the feed-forward part.
        attention_probs_dropout_prob: on attention probabilities.
        layer_norm_eps: of every LayerNorm. The original code trained with 1e-6; Hugging Face's
            files say 1e-12.
        image_size: sides in pixels, (height, width) or one number for both.
        patch_size: sides of a patch in pixels, likewise.
        num_channels: colour channels.
        use_mask_token: a learned vector for masked patches; ``bool_masked_pos`` needs it.
        use_absolute_position_embeddings: a table of positions, resized for other image sizes.
        use_relative_position_bias: a table of attention biases in every block.
        use_shared_relative_position_bias: one such table for all blocks. Both may be on: the biases
            are added.
        layer_scale_init_value: start of the factors of both branches of a block; no factors if it
            is 0 or less.
        drop_path_rate: of the last block; it grows linearly from 0 in the first.
        use_mean_pooling: True takes the mean over patches and normalises it; False takes the CLS
            token, which is normalised with all others.
        out_indices: the hidden states that segmentation reads: i is the *input* of block i, counted
            from 1.
        pool_scales: of the segmentation head's pyramid.
        use_auxiliary_head, auxiliary_loss_weight, auxiliary_channels, auxiliary_num_convs,
            auxiliary_concat_input: of the second head of segmentation.
        semantic_loss_ignore_index: the label of pixels that are left out of segmentation's loss.
    """

    model_type: ClassVar[str] = "data2vec-vision"

    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    out_indices: tuple[int, ...] = (3, 5, 7, 11)
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    semantic_loss_ignore_index: int = 255

    @property
    def image_sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return _pair(self.image_size)

    @property
    def patch_sides(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return _pair(self.patch_size)

    @property
    def window(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        (height, width), (patch_height, patch_width) = self.image_sides, self.patch_sides
        return height // patch_height, width // patch_width

    def _check(self) -> None:
        self._common("hidden_act")
        self._probability("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        self._positive("image_size", "patch_size", "num_channels")
        self._positive("pool_scales", "auxiliary_channels")
        for key in ("image_size", "patch_size"):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != 2:
                self._refuse(key, "must be one number or two, height and width")
        if min(self.window) < 1:
            self._refuse("patch_size", f"must fit into image_size, {self.image_size}")


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
