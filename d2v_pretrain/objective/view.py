"""What the student sees of masked tokens: a replacement (data2vec 1) or nothing (data2vec 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.masking.base import MaskPolicy
from d2v_pretrain.models.encoder import Encoded, Encoder
from d2v_pretrain.types import Batch, Mask, Tokens


class View(Protocol):
    """Runs the student on the masked input.

    Attributes:
        replaces: whether a learned vector of the stem stands where tokens are masked.
    """

    replaces: ClassVar[bool]

    def __call__(self, student: Encoder, batch: Batch, local: Tokens, mask: Mask) -> Encoded:
        """Encode what the student may see of ``local``, which is not masked yet and has a row for
        each clone of each sample."""
        ...

    def check(self, mask: MaskPolicy, fills_gaps: bool) -> None:
        """Refuse masks and predictors that this view cannot work with.

        Args:
            mask: the policy.
            fills_gaps: whether the predictor can predict tokens that the student has not encoded.

        Raises:
            ConfigError: naming the key.
        """
        ...


@dataclass(frozen=True)
class Replace:
    """Masked tokens are replaced by a learned vector (text: by the ``<mask>`` id); the student
    encodes all positions.
    """

    replaces: ClassVar[bool] = True

    def __call__(self, student: Encoder, batch: Batch, local: Tokens, mask: Mask) -> Encoded:
        return student(student.stem.replaced(batch, local, mask))

    def check(self, mask: MaskPolicy, fills_gaps: bool) -> None:
        """See ``View``: nothing is refused."""


@dataclass(frozen=True)
class Drop:
    """Masked tokens are left out; the student encodes only the visible positions."""

    replaces: ClassVar[bool] = False

    def __call__(self, student: Encoder, batch: Batch, local: Tokens, mask: Mask) -> Encoded:
        return student(local, mask)

    def check(self, mask: MaskPolicy, fills_gaps: bool) -> None:
        """See ``View``: every row must leave out the same number of tokens."""
        if not mask.equal_rows:
            rule = "masks a different number of tokens in each row, which cannot be left out"
            remedy = "choose masking=block, inverse_block or token, or objective=data2vec1"
            raise ConfigError("masking", type(mask).__name__, rule, remedy)
        if not fills_gaps:
            rule = "cannot predict tokens that were left out"
            raise ConfigError("objective.predictor", "Head", rule, "use ConvDecoder")


@dataclass(frozen=True)
class MaskedTokensOnly:
    """The teacher sees the masked tokens only, as in fairseq's public data2vec 1 text run (fairseq
    issue #4881).

    That run gave its teacher the targets of masked language modelling: the ids at masked positions
    and padding everywhere else. The teacher never saw the visible words. In the paper, and by our
    default, it sees the whole sequence.

    Args:
        pad: the padding id.
    """

    pad: int = 1

    def __call__(self, batch: Batch, mask: Mask) -> Batch:
        """The teacher's batch; there must be one clone."""
        lengths = torch.full_like(batch.ids, batch.inputs.shape[1])
        return replace(
            batch, inputs=batch.inputs.masked_fill(~mask.masked, self.pad), lengths=lengths
        )


@dataclass(frozen=True)
class Recolour:
    """The teacher sees each image in other colours: channels are permuted, scaled by .5 to 1.5 and,
    at random, inverted.

    The student cannot predict these colours, so it learns to predict shape. Not published; it goes
    further than the reference's optional ``target_transform``, a colour jitter for the teacher.
    """

    def __call__(self, batch: Batch, mask: Mask) -> Batch:
        """The teacher's batch. Its images must have three colours and a mean of about 0."""
        draw = torch.rand(2, *batch.inputs.shape[:2], device=batch.inputs.device)
        order = draw[0].argsort(1)[..., None, None].expand_as(batch.inputs)
        sign = 1 - 2 * (draw[1] < 0.5).to(batch.inputs.dtype)
        gain = sign * (0.5 + (2 * draw[1]) % 1)
        return replace(batch, inputs=batch.inputs.gather(1, order) * gain[..., None, None])
