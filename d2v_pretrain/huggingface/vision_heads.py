"""What the heads of the vision models share, and the classifier of images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from d2v_pretrain.huggingface.config_vision import Data2VecVisionConfig
from d2v_pretrain.huggingface.losses import classification_loss
from d2v_pretrain.huggingface.outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    ModelOutput,
)
from d2v_pretrain.huggingface.vision import Data2VecVisionModel, Data2VecVisionPreTrainedModel


class VisionHead(Data2VecVisionPreTrainedModel):
    """A base model under ``data2vec_vision``, and a head that gives logits and loss."""

    output: ClassVar[type]  # a ModelOutput
    reads_states: ClassVar[bool] = False  # the head needs all hidden states
    data2vec_vision: Data2VecVisionModel

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        head_mask: Tensor | None = None,
    ) -> ModelOutput | tuple:
        """Run the base model and the head.

        Args:
            pixel_values: (images, colours, height, width); for this and the other arguments see
                ``Data2VecVisionModel.forward``.
            labels: see the class; without them there is no loss.
            output_attentions: return the attention probabilities.
            output_hidden_states: return the hidden states.
            interpolate_pos_encoding: without effect.
            return_dict: False for a tuple; ``config.return_dict`` by default.
            head_mask: (heads,) or (depth, heads).

        Returns:
            ``loss`` () and ``logits``, see the class; ``hidden_states`` and ``attentions`` if they
            were asked for.
        """
        states = self.returns_states(output_hidden_states)
        out = self.data2vec_vision(
            pixel_values,
            None,
            output_attentions,
            states or self.reads_states,
            head_mask=head_mask,
            return_dict=True,
        )
        loss, logits = self.read(out, self.data2vec_vision.grid(pixel_values), labels)
        output = self.output(loss, logits, out.hidden_states if states else None, out.attentions)
        return self.returned(output, return_dict)

    def read(
        self, out: BaseModelOutputWithPooling, grid: tuple[int, int], labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """The loss, or None without labels, and the logits.

        Args:
            out: what the base model returned.
            grid: (rows, columns) of patches.
            labels: see the class.
        """
        raise NotImplementedError


class Data2VecVisionForImageClassification(VisionHead):
    """A linear classifier of pooled images.

    For B images and C classes ``labels`` are (B,) class ids, (B,) numbers if ``config.num_labels``
    is 1, or (B, C) of 0 and 1 for several classes at once; see ``classification_loss``. ``logits``
    are (B, C). With ``num_labels=0`` they are the pooled features.
    """

    output = ImageClassifierOutput

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__(config)
        self.data2vec_vision = Data2VecVisionModel(config, add_pooling_layer=True)
        labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, labels) if labels else nn.Identity()
        self.init_weights()

    def read(
        self, out: BaseModelOutputWithPooling, grid: tuple[int, int], labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        logits = self.classifier(out.pooler_output)
        return classification_loss(logits, labels, self.config.problem_type), logits
