"""Data2VecTextPreTrainedModel: the base of the text models, and their table of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_pretrain.huggingface.config_text import Data2VecTextConfig
from d2v_pretrain.huggingface.pretrained import PreTrained
from d2v_pretrain.models.stems import TextStem, TokenTable


class Data2VecTextPreTrainedModel(PreTrained):
    """Base of the text models."""

    config_class = Data2VecTextConfig
    base_model_prefix = "data2vec_text"
    main_input_name = "input_ids"
    # The published checkpoint was a language model and has no pooler.
    optional = ("pooler.",)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of tokens, (vocabulary, width)."""
        stem = self.encoder_module.stem
        assert isinstance(stem, TextStem)
        return stem.token

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of tokens."""
        self.encoder_module.stem.token = value

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Change the number of tokens; the tied head and its bias follow.

        Args:
            new_num_tokens: rows of the table; None keeps their number.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: new rows start near the mean of the old ones; otherwise as all rows of a
                new model, N(0, initializer_range).

        Returns:
            The new table. Old rows are as they were.
        """
        old = self.get_input_embeddings()
        rows = old.num_embeddings if new_num_tokens is None else new_num_tokens
        step = pad_to_multiple_of or 1
        rows = -(-rows // step) * step
        table = TokenTable(rows, old.embedding_dim, old.padding_idx)
        table.to(old.weight.device, old.weight.dtype)
        kept, std = min(rows, old.num_embeddings), self.config.initializer_range
        with torch.no_grad():
            nn.init.normal_(table.weight, std=std * (1e-3 if mean_resizing else 1.0))
            table.weight += old.weight.mean(0) if mean_resizing else 0.0
            table.weight[:kept] = old.weight[:kept]
        table.weight.requires_grad_(old.weight.requires_grad)
        self.set_input_embeddings(table)
        self.config.vocab_size = rows
        return table

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PreTrained``. Old files also hold buffers of indices, which are not read."""
        buffers = ("embeddings.position_ids", "embeddings.token_type_ids")
        return {key: tensor for key, tensor in state.items() if not key.endswith(buffers)}
