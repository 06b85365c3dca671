"""Mistakes in what the models are called with: sentences on the CPU, of the types that torch and
transformers raise, and no value is read where that would wait for a device or spoil a graph."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from d2v_pretrain import huggingface as family
from d2v_pretrain.errors import ConfigError

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "vocab_size": 99,
    "max_position_embeddings": 40,
}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 20,
    "conv_dim": [24, 24, 24],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 2,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "tdnn_dim": [16, 24],
    "tdnn_kernel": [3, 1],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 12,
    "num_labels": 5,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
    "out_indices": [1, 2, 3, 4],
    "auxiliary_channels": 16,
}
SIZES = {"Text": TEXT, "Audio": AUDIO, "Vision": VISION}
IDS = torch.arange(4, 18).view(2, 7)
WAVES = torch.linspace(-1, 1, 1200).view(2, 600)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
MAPS = torch.zeros(2, 16, 16, dtype=torch.long)


def model(name: str, **settings: Any) -> Any:
    """``Data2Vec<name>``, tiny, in eval mode."""
    kind = next(kind for kind in SIZES if name.startswith(kind))
    config = getattr(family, f"Data2Vec{kind}Config")(**SIZES[kind] | settings)
    return getattr(family, f"Data2Vec{name}")(config).eval()


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


CROSS = {"is_decoder": True, "add_cross_attention": True}
MASKED = {"use_mask_token": True}
Case = tuple[str, dict[str, Any], dict[str, Any], str]
INDICES: list[Case] = [
    ("TextModel", {}, {"input_ids": IDS + 90}, "input_ids=107 must be from 0 to 98"),
    ("TextModel", {}, {"input_ids": IDS - 5}, "input_ids=-1 must be from 0 to 98"),
    (
        "TextModel",
        {"type_vocab_size": 1},
        {"input_ids": IDS, "token_type_ids": torch.ones_like(IDS)},
        "token_type_ids=1 must be from 0 to 0",
    ),
    (
        "TextModel",
        {},
        {"input_ids": IDS, "position_ids": torch.full_like(IDS, 40)},
        "position_ids=40 must be from 0 to 39",
    ),
    ("TextForMaskedLM", {}, {"input_ids": IDS, "labels": IDS + 90}, "labels=107 must be from 0"),
    ("TextForCausalLM", {}, {"input_ids": IDS, "labels": IDS - 9}, "labels=-4 must be from 0 to"),
    (
        "TextForSequenceClassification",
        {"num_labels": 3},
        {"input_ids": IDS, "labels": ids(0, 3)},
        "labels=3 must be from 0 to 2, or -100 to leave one out",
    ),
    (
        "TextForTokenClassification",
        {"num_labels": 3},
        {"input_ids": IDS, "labels": torch.full_like(IDS, -1)},
        "labels=-1 must be from 0 to 2",
    ),
    (
        "TextForMultipleChoice",
        {},
        {"input_ids": IDS[:, None].expand(2, 3, 7), "labels": ids(0, 3)},
        "labels=3 must be from 0 to 2",
    ),
    (
        "AudioForSequenceClassification",
        {},
        {"input_values": WAVES, "labels": ids(5, 0)},
        "labels=5 must be from 0 to 4",
    ),
    (
        "AudioForXVector",
        {},
        {"input_values": WAVES, "labels": ids(0, -100)},
        "labels=-100 must be from 0 to 4",
    ),
    (
        "VisionForImageClassification",
        {},
        {"pixel_values": IMAGES, "labels": ids(0, 5)},
        "labels=5 must be from 0 to 4",
    ),
    (
        "VisionForSemanticSegmentation",
        {},
        {"pixel_values": IMAGES, "labels": MAPS + 5},
        "labels=5 must be from 0 to 4, or 255 to leave one out",
    ),
]


def text(sentence: str, **inputs: Any) -> Case:
    return "TextModel", {}, {"input_ids": IDS} | inputs, sentence


def audio(sentence: str, **inputs: Any) -> Case:
    return "AudioModel", {}, {"input_values": WAVES} | inputs, sentence


def vision(sentence: str, **inputs: Any) -> Case:
    return "VisionModel", MASKED, {"pixel_values": IMAGES} | inputs, sentence


def ctc(sentence: str, labels: Any, **settings: Any) -> Case:
    return "AudioForCTC", settings, {"input_values": WAVES, "labels": labels}, sentence


REST: list[Case] = [
    text("input_ids=of type float32 must be of type int64 or int32", input_ids=IDS.float()),
    text("input_ids=of type list must be a tensor", input_ids=IDS.tolist()),
    text("input_ids=of type ndarray must be a tensor", input_ids=IDS.numpy()),
    text("write input_ids[None] for one", input_ids=IDS[0]),
    text("input_ids=of shape (0, 7) must be texts by tokens, at least one", input_ids=IDS[:0]),
    text("input_ids=of shape (2, 0) must be texts by tokens, at least one", input_ids=IDS[:, :0]),
    text("token_type_ids=of shape (2, 5) must be (2, 7)", token_type_ids=IDS[:, :5] * 0),
    text("position_ids=of type float32 must be of type int64", position_ids=IDS.float()),
    text("must end in all 7 tokens", attention_mask=torch.ones(3, 7)),
    text(
        "inputs_embeds=of shape (2, 7, 31) must",
        input_ids=None,
        inputs_embeds=WAVES[:, :217].reshape(2, 7, 31),
    ),
    text("input_ids=60 tokens must be at most 38", input_ids=torch.full((1, 60), 5)),
    (
        "TextModel",
        CROSS,
        {"input_ids": IDS, "encoder_hidden_states": torch.zeros(2, 5, 30)},
        "encoder_hidden_states=of shape (2, 5, 30) must end in hidden_size, 32",
    ),
    (
        "TextModel",
        CROSS,
        {"input_ids": IDS, "encoder_hidden_states": torch.zeros(3, 5, 32)},
        "must have a row for each of 2 texts",
    ),
    (
        "TextForMaskedLM",
        {},
        {"input_ids": IDS, "labels": IDS[:, :5]},
        "labels=of shape (2, 5) must be (2, 7)",
    ),
    (
        "TextForMaskedLM",
        {},
        {"input_ids": IDS, "labels": IDS.view(7, 2)},
        "labels=of shape (7, 2) must be (2, 7)",
    ),
    (
        "TextForCausalLM",
        {},
        {"input_ids": IDS, "labels": IDS[:, 1:]},
        "labels=of shape (2, 6) must be (2, 7)",
    ),
    (
        "TextForSequenceClassification",
        {"num_labels": 3},
        {"input_ids": IDS, "labels": ids(0, 1, 2)},
        "labels=of shape (3,) must be (2,)",
    ),
    (
        "TextForSequenceClassification",
        {"num_labels": 3},
        {"input_ids": IDS, "labels": torch.ones(2)},
        "must be (2, 3) for problem_type=multi_label",
    ),
    (
        "TextForSequenceClassification",
        {"num_labels": 3},
        {"input_ids": IDS, "labels": [0, 1]},
        "labels=of type list must be a tensor",
    ),
    ("TextForMultipleChoice", {}, {"input_ids": IDS}, "must be questions by choices by tokens"),
    (
        "TextForQuestionAnswering",
        {},
        {"input_ids": IDS, "start_positions": ids(1), "end_positions": ids(2, 3)},
        "positions=of shape (1,) must be (2,)",
    ),
    audio("input_values=of type int16 must be real numbers", input_values=(WAVES * 1000).short()),
    audio("input_values=of type int64 must be real numbers", input_values=(WAVES * 1000).long()),
    audio("input_values=of type ndarray must be a tensor", input_values=WAVES.numpy()),
    audio("must be clips by samples", input_values=WAVES[:, None]),
    audio("input_values=of shape (0, 600) must be clips by samples", input_values=WAVES[:0]),
    audio("input_values=of shape (2, 0) must be clips by samples", input_values=WAVES[:, :0]),
    audio("attention_mask=of shape (2, 500) must have", attention_mask=torch.ones(2, 500)),
    ctc("labels=of shape (2, 0) must be a tensor of 2 clips by at least one", IDS[:, :0]),
    ctc("labels=of shape (1, 7) must be a tensor of 2 clips", IDS[:1]),
    ctc("labels=of type list must be a tensor of 2 clips", IDS.tolist()),
    ctc("labels=27 must be below vocab_size, 20", IDS + 10),
    ctc("pad_token_id=20 must be the id of the CTC blank", IDS, pad_token_id=20),
    (
        "AudioForAudioFrameClassification",
        {},
        {"input_values": WAVES, "labels": torch.zeros(2, 7, 5)},
        "must be (2, 29, 5), clips by frames by classes",
    ),
    (
        "AudioForSequenceClassification",
        {},
        {"input_values": WAVES, "labels": torch.zeros(2)},
        "labels=of type float32 must be whole numbers",
    ),
    (
        "AudioForSequenceClassification",
        {"num_labels": 1},
        {"input_values": WAVES, "labels": torch.zeros(3)},
        "labels=of shape (3,) must be (2, 1)",
    ),
    vision("pixel_values=of type NoneType must be a tensor", pixel_values=None),
    vision("pixel_values=of type ndarray must be a tensor", pixel_values=IMAGES.numpy()),
    vision("must be (batch, 3, height, width)", pixel_values=IMAGES[:, :1]),
    vision("must be (batch, 3, height, width)", pixel_values=IMAGES.permute(0, 2, 3, 1)),
    vision("with at least one patch of (8, 8) pixels", pixel_values=IMAGES[..., :4]),
    vision("pixel_values=of shape (0, 3, 16, 16) must be (batch", pixel_values=IMAGES[:0]),
    vision("bool_masked_pos=of shape (2, 9) must be (2, 4)", bool_masked_pos=torch.zeros(2, 9) > 0),
    (
        "VisionForSemanticSegmentation",
        {},
        {"pixel_values": IMAGES, "labels": MAPS[:1]},
        "labels=of shape (1, 16, 16) must be (2, 16, 16)",
    ),
    (
        "VisionForSemanticSegmentation",
        {},
        {"pixel_values": IMAGES, "labels": MAPS[:, None]},
        "must be 2 maps of class ids",
    ),
    (
        "VisionForSemanticSegmentation",
        {},
        {"pixel_values": IMAGES, "labels": MAPS.float()},
        "labels=of type float32 must be whole numbers",
    ),
]


def name_of(case: Any) -> str | None:
    return case if isinstance(case, str) else None


@pytest.mark.parametrize(("name", "settings", "inputs", "sentence"), INDICES, ids=name_of)
def test_an_index_out_of_range(
    name: str, settings: dict[str, Any], inputs: dict[str, Any], sentence: str
) -> None:
    """An IndexError, as torch raises it, and a ValueError, as all mistakes are."""
    with pytest.raises(IndexError) as found:
        model(name, **settings)(**inputs)
    assert isinstance(found.value, ConfigError) and sentence in str(found.value)


@pytest.mark.parametrize(("name", "settings", "inputs", "sentence"), REST, ids=name_of)
def test_what_cannot_be_is_a_sentence(
    name: str, settings: dict[str, Any], inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as found:
        model(name, **settings)(**inputs)
    assert sentence in str(found.value)


def test_what_torch_would_refuse_but_can_be() -> None:
    """Other precisions are converted, whole labels of any type are ids."""
    for name, inputs in (
        ("AudioModel", {"input_values": WAVES}),
        ("VisionModel", {"pixel_values": IMAGES}),
        ("TextModel", {"inputs_embeds": WAVES[:, :448].reshape(2, 14, 32)}),
    ):
        once = model(name)
        key, value = next(iter(inputs.items()))
        expected = once(**inputs).last_hidden_state
        assert torch.equal(once(**{key: value.double()}).last_hidden_state, expected)
        half = once(**{key: value.half()}).last_hidden_state
        assert torch.equal(half, once(**{key: value.half().float()}).last_hidden_state)
    lm, ids32 = model("TextForMaskedLM"), IDS.int()
    assert torch.equal(lm(ids32, labels=ids32).loss, lm(IDS, labels=IDS).loss)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("TextForMaskedLM", {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}),
        ("TextForCausalLM", {"input_ids": IDS[:, :1], "labels": IDS[:, :1]}),
        ("VisionForSemanticSegmentation", {"pixel_values": IMAGES, "labels": MAPS + 255}),
    ],
)
def test_labels_that_are_all_left_out_are_told(name: str, inputs: dict[str, Any]) -> None:
    """As in torch and transformers the loss is NaN."""
    with pytest.warns(UserWarning, match="none of the labels counts, because all are"):
        loss = model(name)(**inputs).loss
    assert loss.isnan()


@pytest.mark.parametrize(
    ("name", "settings", "inputs", "sentence"),
    [case for case in INDICES if case[0] != "AudioForXVector"],  # one_hot itself reads them
    ids=name_of,
)
def test_values_are_read_on_the_cpu_alone(
    name: str, settings: dict[str, Any], inputs: dict[str, Any], sentence: str
) -> None:
    """On a device without values, ``meta``, reading one is an error; the same for tensors that only
    pretend to be on the CPU."""
    with torch.device("meta"):
        there = model(name, **settings)
    there(**{key: x.to("meta") for key, x in inputs.items()})
    here = model(name, **settings)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        here(**{key: mode.from_tensor(x) for key, x in inputs.items()})


class First(nn.Module):
    """The first output of a model, which ``torch.export`` can return."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.inner(return_dict=False, **inputs)[0]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("TextForMaskedLM", {"input_ids": IDS, "token_type_ids": IDS * 0, "labels": IDS}),
        ("AudioForSequenceClassification", {"input_values": WAVES, "labels": ids(0, 1)}),
        ("VisionForImageClassification", {"pixel_values": IMAGES, "labels": ids(0, 1)}),
    ],
)
def test_graphs_are_recorded_as_before(name: str, inputs: dict[str, Any]) -> None:
    plain = First(model(name).requires_grad_(False)).eval()
    expected = plain(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        recorded = torch.export.export(plain, (), inputs).module()
        torch.testing.assert_close(recorded(**inputs), expected)


def test_checks_do_not_break_a_compiled_graph() -> None:
    plain = First(model("TextForMaskedLM")).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        found = torch._dynamo.explain(plain)(input_ids=IDS, token_type_ids=IDS * 0, labels=IDS)
    assert found.graph_count > 0
    assert not [b for b in found.break_reasons if "inputs.py" in str(b.user_stack)]


WAVE = np.random.default_rng(0).normal(0, 0.3, 900).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.stack([WAVE, WAVE], 1), r"audio=of shape \(900, 2\) must be waveforms by samples"),
        (torch.zeros(900, 2), r"audio=of shape \(900, 2\) must be waveforms by samples; average"),
        ([np.stack([WAVE, WAVE], 1)], "must be one channel of samples; average channels"),
        (WAVE[None, None], "must be one channel of samples"),
        (WAVE[:0], "audio=nothing must be at least one waveform"),
        ([WAVE, WAVE[:0]], r"audio=of shape \(0,\) must be one channel of samples; leave out"),
        ("speech.wav", "audio=of type str must be waveforms; read the file first"),
        (["speech.wav"], "audio=of type <U10 must be numbers"),
        ({"array": WAVE}, "audio=of type dict must be waveforms"),
        (0.5, "audio=of type float must be waveforms"),
        (torch.tensor(0.5), "audio=of type Tensor must be waveforms"),
        (WAVE + 1j, "audio=of type complex64 must be numbers"),
        ([[0.1, [0.2]]], "audio=of type object must be numbers"),
        (WAVE * np.nan, "audio=with NaN or infinity must be finite"),
    ],
)
def test_what_is_no_waveform(given: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        family.Data2VecAudioFeatureExtractor()(given, 16000)


@pytest.mark.parametrize("kind", ["i2", "i4", "i8", "f2", "f4", ">f4", "f8"])
def test_waveforms_of_any_type(kind: str) -> None:
    """Normalising removes the scale, so that whole numbers need none."""
    scaled = (WAVE * (1000 if kind[-2] == "i" else 1)).astype(kind)
    values = scaled.astype(np.float64)
    expected = (values - values.mean()) / np.sqrt(values.var() + 1e-7)
    for given in (scaled, scaled[::-1][::-1], scaled.tolist()):
        found = family.Data2VecAudioFeatureExtractor()(given, 16000)["input_values"][0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
