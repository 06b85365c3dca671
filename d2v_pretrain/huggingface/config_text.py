"""Data2VecTextConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from d2v_pretrain.huggingface.config_base import Config


@dataclass(kw_only=True)
class Data2VecTextConfig(Config):
    """Configuration of the text models.

    The defaults are Hugging Face's; data2vec-text-base itself has ``vocab_size=50265,
    max_position_embeddings=514,
    type_vocab_size=1, layer_norm_eps=1e-5``.

    Args:
        vocab_size: token ids.
        hidden_act: its activation only; the language-model head has ``gelu``, pooler and classifier
            ``tanh``.
        hidden_dropout_prob: of the embeddings, after attention and after the feed-forward part.
        attention_probs_dropout_prob: on attention probabilities.
        max_position_embeddings: rows of the position table; usable length is ``pad_token_id + 1``
            less (510).
        type_vocab_size: rows of the segment table.
        layer_norm_eps: of every norm.
        pad_token_id: positions are counted from the one after it; its rows in both tables are zero
            at the start.
        bos_token_id, eos_token_id: dead; they serve generation.
        position_embedding_type: ``absolute``. ``relative_key`` and ``relative_key_query`` of
            transformers 4, which no published model has and transformers 5 removed, are refused.
        use_cache: a decoder returns its keys and values unless told otherwise.
        is_decoder: attention looks back only.
        add_cross_attention: a decoder's blocks also attend to ``encoder_hidden_states``.
        classifier_dropout: of the classification heads; ``hidden_dropout_prob`` if None.
        tie_word_embeddings: the language-model head decodes with the token table. False gives it an
            own matrix and bias, and leaves ``lm_head.bias`` dead, as transformers 5 does.
        chunk_size_feed_forward: dead here; in Hugging Face it trades time for memory and changes no
            result.
    """

    model_type: ClassVar[str] = "data2vec-text"

    vocab_size: int = 30522
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0

    @property
    def head_dropout(self) -> float:
        """Dropout of the classification heads."""
        return (
            self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout
        )

    def _check(self) -> None:
        self._common("hidden_act")
        self._probability("hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout")
        self._positive("vocab_size", "type_vocab_size")
        if not 0 <= self.pad_token_id < self.vocab_size:
            self._refuse(
                "pad_token_id", f"must be an id of the vocabulary, 0 to {self.vocab_size - 1}"
            )
        if self.max_position_embeddings <= self.pad_token_id + 1:
            self._refuse(
                "max_position_embeddings",
                f"leaves no position after those up to pad_token_id, {self.pad_token_id}",
            )
        if self.position_embedding_type != "absolute":
            self._refuse(
                "position_embedding_type",
                "must be absolute",
                "relative positions left transformers in 5.0",
            )
        if self.add_cross_attention and not self.is_decoder:
            self._refuse("add_cross_attention", "needs a decoder", "set is_decoder=True")
