"""Data2VecTextConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from d2v_pretrain.huggingface.config_base import Config


@dataclass(init=False, eq=False)
class Data2VecTextConfig(Config):
    """Configuration of the text models.

    The defaults are Hugging Face's. data2vec-text-base itself has ``vocab_size=50265``,
    ``max_position_embeddings=514``, ``type_vocab_size=1`` and ``layer_norm_eps=1e-5``.
    ``hidden_act`` is the activation of the blocks; the head of language models always has ``gelu``,
    pooler and classifier always ``tanh``.

    Args:
        vocab_size: number of token ids.
        hidden_dropout_prob: of the embeddings, after attention and after the feed-forward part.
        attention_probs_dropout_prob: on attention probabilities.
        max_position_embeddings: rows of the position table. The longest text has
            ``pad_token_id + 1`` tokens less.
        type_vocab_size: rows of the segment table.
        layer_norm_eps: of every LayerNorm.
        pad_token_id: the first token has position ``pad_token_id + 1``. The rows of this id in the
            tables of tokens and positions start at zero.
        bos_token_id, eos_token_id: without effect here; generation uses them.
        position_embedding_type: must be ``absolute``. transformers 4 also has ``relative_key`` and
            ``relative_key_query``, which no published model uses and transformers 5 removed.
        use_cache: a decoder returns its keys and values unless told otherwise.
        is_decoder: a token attends only to itself and the tokens before it.
        add_cross_attention: a decoder's blocks also attend to ``encoder_hidden_states``.
        classifier_dropout: of the classification heads; ``hidden_dropout_prob`` if None.
        tie_word_embeddings: the language-model head decodes with the token table. False gives it
            a matrix and a bias of its own, and ``lm_head.bias`` is then without effect, as in
            transformers 5.
        chunk_size_feed_forward: without effect here. In Hugging Face it trades time for memory and
            changes no result.
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
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own

    def _check(self) -> None:
        self._common("hidden_act")
        self._probability("hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout")
        self._positive("vocab_size", "type_vocab_size")
        if not 0 <= self.pad_token_id < self.vocab_size:
            last = self.vocab_size - 1
            self._refuse("pad_token_id", f"must be an id of the vocabulary, 0 to {last}")
        if self.max_position_embeddings <= self.pad_token_id + 1:
            rule = f"leaves no position after those up to pad_token_id, {self.pad_token_id}"
            self._refuse("max_position_embeddings", rule)
        if self.position_embedding_type != "absolute":
            remedy = "relative positions left transformers in 5.0"
            self._refuse("position_embedding_type", "must be absolute", remedy)
        if self.add_cross_attention and not self.is_decoder:
            self._refuse("add_cross_attention", "needs a decoder", "set is_decoder=True")
