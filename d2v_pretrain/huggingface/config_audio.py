"""Data2VecAudioConfig."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from d2v_pretrain.huggingface.activations import Activation
from d2v_pretrain.huggingface.config_base import Config


@dataclass(init=False, eq=False)
class Data2VecAudioConfig(Config):
    """Configuration of the audio models. The defaults have the sizes of data2vec-audio-base.

    Args:
        vocab_size: characters of the CTC head, the blank included.
        hidden_dropout: dropout after the input norm, after attention and after the feed-forward
        part.
        activation_dropout: inside the feed-forward part.
        attention_dropout: on attention probabilities.
        feat_proj_dropout: after the projection of the convolutional features.
        final_dropout: before the CTC head only.
        layerdrop: probability of skipping a block in training.
        layer_norm_eps: of the norms of projection, encoder and blocks. Those of the convolutions
            in stem and positions always have 1e-5.
        feat_extract_activation: of the convolutions in stem and positions; see ``hidden_act``.
        conv_dim, conv_stride, conv_kernel: of each convolution of the stem; tuples of one length.
        conv_bias: the stem's convolutions have biases.
        num_conv_pos_embedding_groups: groups of the position convolutions.
        conv_pos_kernel_size: their kernel, in frames.
        num_conv_pos_embeddings: the *number* of position convolutions (Hugging Face documents it as
            a kernel size).
        mask_time_prob: SpecAugment in training: fraction of frames in masked spans. If this and
            ``mask_feature_prob`` are 0, the models have no parameter ``masked_spec_embed``.
        mask_time_length, mask_time_min_masks: frames of a span; fewest spans in a clip.
        mask_feature_prob, mask_feature_length, mask_feature_min_masks: the same for channels, which
            are set to 0.
        apply_spec_augment: False turns off all masking, also that by ``mask_time_indices``.
        ctc_loss_reduction: ``sum`` over the batch, or ``mean``.
        ctc_zero_infinity: infinite CTC losses (clips too short for their labels) count as 0.
        use_weighted_layer_sum: classification heads read a learned average of all hidden states.
        classifier_proj_size: width before pooling in sequence classification.
        tdnn_dim, tdnn_kernel, tdnn_dilation: of each layer of the x-vector head; tuples of one
            length.
        xvector_output_dim: width of x-vectors.
        pad_token_id: the CTC blank.
        bos_token_id, eos_token_id: without effect in the models.
        add_adapter: strided convolutions follow the encoder and shorten its output.
        adapter_kernel_size, adapter_stride, num_adapter_layers: of these convolutions.
        output_hidden_size: width of the adapter's output. None stands for ``hidden_size`` at
            construction.
        padding_invariant: a field that Hugging Face does not have. False computes what the
            checkpoints were trained with: the position convolutions read beyond the end of a clip
            into its padding, so that its last ``(num_conv_pos_embeddings - 1) *
            (conv_pos_kernel_size // 2)`` frames depend on the length of the batch. True sets the
            padding to 0 before every convolution.
    """

    model_type: ClassVar[str] = "data2vec-audio"
    unusual: ClassVar[tuple[str, ...]] = ("apply_spec_augment", "padding_invariant")
    derived: ClassVar[tuple[str, ...]] = ("num_feat_extract_layers",)

    vocab_size: int = 32
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    layer_norm_eps: float = 1e-5
    feat_extract_activation: str | Activation = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embedding_groups: int = 16
    conv_pos_kernel_size: int = 19
    num_conv_pos_embeddings: int = 5
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    apply_spec_augment: bool = True
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    padding_invariant: bool = False

    def _complete(self) -> None:
        self.output_hidden_size = self.output_hidden_size or self.hidden_size
        super()._complete()

    @property
    def num_feat_extract_layers(self) -> int:
        """Number of convolutions of the stem."""
        return len(self.conv_dim)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one frame to the next: 320."""
        return math.prod(self.conv_stride)

    def _check(self) -> None:
        self._common("hidden_act", "feat_extract_activation")
        self._probability(
            "hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"
        )
        self._probability("final_dropout", "layerdrop", "mask_time_prob", "mask_feature_prob")
        self._positive("conv_dim", "conv_stride", "conv_kernel")
        self._positive("tdnn_dim", "tdnn_kernel", "tdnn_dilation")
        self._positive("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
        self._positive("mask_time_length", "mask_feature_length")
        self._positive("adapter_stride", "adapter_kernel_size")
        for first, second in (
            ("conv_dim", "conv_stride"),
            ("conv_dim", "conv_kernel"),
            ("tdnn_dim", "tdnn_kernel"),
            ("tdnn_dim", "tdnn_dilation"),
        ):
            count = len(getattr(self, first))
            if len(getattr(self, second)) != count:
                self._refuse(second, f"must have as many entries as {first}, {count}")
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            rule = f"must divide hidden_size, {self.hidden_size}"
            self._refuse("num_conv_pos_embedding_groups", rule)
        if self.conv_pos_kernel_size < 3:
            self._refuse("conv_pos_kernel_size", "must be at least 3")
        if self.ctc_loss_reduction not in ("sum", "mean"):
            self._refuse("ctc_loss_reduction", "must be sum or mean")
