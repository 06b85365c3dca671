"""The code examples of Hugging Face's documentation (4.37, Data2VecText) with our import and local
directories."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers import AutoTokenizer  # noqa: E402

from d2v_pretrain import (  # noqa: E402
    Data2VecTextConfig,
    Data2VecTextForCausalLM,
    Data2VecTextForMaskedLM,
    Data2VecTextForMultipleChoice,
    Data2VecTextForQuestionAnswering,
    Data2VecTextForSequenceClassification,
    Data2VecTextForTokenClassification,
    Data2VecTextModel,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a tiny language model and a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    directory = tmp_path_factory.mktemp("data2vec-text-base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL[:4], *alphabet, "<mask>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(directory)
    config = Data2VecTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=30,
        max_position_embeddings=130,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    Data2VecTextForMaskedLM(config).save_pretrained(directory)
    return str(directory)


def test_config() -> None:
    configuration = Data2VecTextConfig(num_hidden_layers=1, vocab_size=50)
    model = Data2VecTextModel(configuration)
    configuration = model.config
    assert configuration.hidden_size == 768


def test_model(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextModel.from_pretrained(base)

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    outputs = model(**inputs)

    last_hidden_states = outputs.last_hidden_state
    assert last_hidden_states.shape == (1, 23, 24)


def test_causal_lm(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = Data2VecTextConfig.from_pretrained(base)
    config.is_decoder = True
    model = Data2VecTextForCausalLM.from_pretrained(base, config=config)

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    outputs = model(**inputs)

    prediction_logits = outputs.logits
    assert prediction_logits.shape == (1, 23, 261)


def test_masked_lm(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextForMaskedLM.from_pretrained(base)

    inputs = tokenizer("The capital of France is <mask>.", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits

    mask_token_index = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]
    predicted_token_id = logits[0, mask_token_index].argmax(axis=-1)
    assert isinstance(tokenizer.decode(predicted_token_id), str)

    labels = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"][
        :, : logits.shape[1]
    ]
    labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)
    outputs = model(**inputs, labels=labels)
    assert outputs.loss.item() > 0


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_sequence_classification(base: str, problem: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextForSequenceClassification.from_pretrained(base, problem_type=problem)

    inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_class_id = logits.argmax().item()
    assert model.config.id2label[predicted_class_id].startswith("LABEL_")

    # To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to
    # `.from_pretrained(...)`
    num_labels = len(model.config.id2label)
    model = Data2VecTextForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, problem_type=problem
    )
    labels = torch.tensor([1])
    if problem is not None:
        predicted_class_ids = torch.arange(0, logits.shape[-1])[
            torch.sigmoid(logits).squeeze(dim=0) > -1
        ]
        labels = torch.sum(
            torch.nn.functional.one_hot(
                predicted_class_ids[None, :].clone(), num_classes=num_labels
            ),
            dim=1,
        ).to(torch.float)
    assert model(**inputs, labels=labels).loss.item() > 0


def test_multiple_choice(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextForMultipleChoice.from_pretrained(base)

    prompt = "In Italy, pizza is served unsliced."
    choice0, choice1 = "It is eaten with a fork and a knife.", "It is eaten while held in the hand."
    labels = torch.tensor(0).unsqueeze(0)  # choice0 is correct, batch size 1

    encoding = tokenizer([prompt, prompt], [choice0, choice1], return_tensors="pt", padding=True)
    outputs = model(**{k: v.unsqueeze(0) for k, v in encoding.items()}, labels=labels)
    assert outputs.loss.ndim == 0 and outputs.logits.shape == (1, 2)


def test_token_classification(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextForTokenClassification.from_pretrained(base)
    inputs = tokenizer("HuggingFace is a company", add_special_tokens=False, return_tensors="pt")

    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_token_class_ids = logits.argmax(-1)
    predicted_tokens_classes = [
        model.config.id2label[t.item()] for t in predicted_token_class_ids[0]
    ]
    assert len(predicted_tokens_classes) == 24

    labels = predicted_token_class_ids
    assert model(**inputs, labels=labels).loss.item() > 0


def test_question_answering(base: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Data2VecTextForQuestionAnswering.from_pretrained(base)

    question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"
    inputs = tokenizer(question, text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)

    answer_start_index = outputs.start_logits.argmax()
    answer_end_index = outputs.end_logits.argmax()
    assert isinstance(
        tokenizer.decode(inputs.input_ids[0, answer_start_index : answer_end_index + 1]), str
    )

    target_start_index, target_end_index = torch.tensor([14]), torch.tensor([15])
    outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
    assert outputs.loss.item() > 0
