"""What Hugging Face's documentation of Data2VecAudio and Data2VecVision shows, by names of the hub
in a local cache: run with our classes and with transformers', which must say the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_pretrain import huggingface as family
from tests.huggingface.family_cases import theirs

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
AUDIO, VISION = "facebook/data2vec-audio-base-960h", "facebook/data2vec-vision-base-ft1k"
RATE = 16000
SOUNDS = [np.random.default_rng(i).standard_normal(RATE // 4).astype(np.float32) for i in range(2)]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, as the hub's own client lays it out."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, name: str, model: Any) -> None:
    """A model and what prepares its inputs, under a name of the hub."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    model.save_pretrained(snapshot)
    if name == VISION:
        size = {"height": 32, "width": 32}
        transformers.BeitImageProcessor(size=size, do_center_crop=False).save_pretrained(snapshot)
        return
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNO"]
    snapshot.joinpath("vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        transformers.Wav2Vec2CTCTokenizer(str(snapshot / "vocab.json")),
    ).save_pretrained(snapshot)


def near(found: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    else:
        assert found == wanted


def audio_model(library: ModuleType) -> list[Any]:
    processor = transformers.AutoProcessor.from_pretrained(AUDIO)
    model = library.Data2VecAudioModel.from_pretrained(AUDIO)
    inputs = processor(SOUNDS[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state
    return [list(last_hidden_states.shape), last_hidden_states]


def audio_ctc(library: ModuleType) -> list[Any]:
    processor = transformers.AutoProcessor.from_pretrained(AUDIO)
    model = library.Data2VecAudioForCTC.from_pretrained(AUDIO)
    inputs = processor(SOUNDS[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_ids = torch.argmax(logits, dim=-1)
    transcription = processor.batch_decode(predicted_ids)
    inputs["labels"] = processor(text="A BAD CAB", return_tensors="pt").input_ids
    loss = model(**inputs).loss
    return [transcription[0], loss.detach()]


def audio_clip_classes(library: ModuleType) -> list[Any]:
    feature_extractor = transformers.AutoFeatureExtractor.from_pretrained(AUDIO)
    model = library.Data2VecAudioForSequenceClassification.from_pretrained(AUDIO)
    inputs = feature_extractor(SOUNDS[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_class_ids = torch.argmax(logits, dim=-1).item()
    target_label = model.config.id2label[0]
    inputs["labels"] = torch.tensor([model.config.label2id[target_label]])
    loss = model(**inputs).loss
    return [model.config.id2label[predicted_class_ids], loss.detach()]


def audio_frame_classes(library: ModuleType) -> list[Any]:
    feature_extractor = transformers.AutoFeatureExtractor.from_pretrained(AUDIO)
    model = library.Data2VecAudioForAudioFrameClassification.from_pretrained(AUDIO)
    inputs = feature_extractor(SOUNDS[0], return_tensors="pt", sampling_rate=RATE)
    with torch.no_grad():
        logits = model(**inputs).logits
    probabilities = torch.sigmoid(logits[0])
    labels = (probabilities > 0.5).long()
    return [labels[0].tolist(), probabilities]


def audio_speakers(library: ModuleType) -> list[Any]:
    feature_extractor = transformers.AutoFeatureExtractor.from_pretrained(AUDIO)
    model = library.Data2VecAudioForXVector.from_pretrained(AUDIO)
    inputs = feature_extractor(SOUNDS, sampling_rate=RATE, return_tensors="pt", padding=True)
    with torch.no_grad():
        embeddings = model(**inputs).embeddings
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1).cpu()
    similarity = torch.nn.CosineSimilarity(dim=-1)(embeddings[0], embeddings[1])
    return [bool(similarity < 0.7), similarity]


def vision_model(library: ModuleType) -> list[Any]:
    image_processor = transformers.AutoImageProcessor.from_pretrained(VISION)
    model = library.Data2VecVisionModel.from_pretrained(VISION)
    inputs = image_processor(IMAGE, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state
    return [list(last_hidden_states.shape), last_hidden_states]


def vision_classes(library: ModuleType) -> list[Any]:
    image_processor = transformers.AutoImageProcessor.from_pretrained(VISION)
    model = library.Data2VecVisionForImageClassification.from_pretrained(VISION)
    inputs = image_processor(IMAGE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_label = logits.argmax(-1).item()
    return [model.config.id2label[predicted_label], logits]


def vision_maps(library: ModuleType) -> list[Any]:
    image_processor = transformers.AutoImageProcessor.from_pretrained(VISION)
    model = library.Data2VecVisionForSemanticSegmentation.from_pretrained(VISION)
    inputs = image_processor(images=IMAGE, return_tensors="pt")
    outputs = model(**inputs)
    return [list(outputs.logits.shape), outputs.logits.detach()]


EXAMPLES = {
    "AudioModel": audio_model,
    "AudioForCTC": audio_ctc,
    "AudioForSequenceClassification": audio_clip_classes,
    "AudioForAudioFrameClassification": audio_frame_classes,
    "AudioForXVector": audio_speakers,
    "VisionModel": vision_model,
    "VisionForImageClassification": vision_classes,
    "VisionForSemanticSegmentation": vision_maps,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, cached: Path) -> None:
    put(cached, AUDIO if name.startswith("Audio") else VISION, theirs(name))
    found, wanted = EXAMPLES[name](family), EXAMPLES[name](transformers)
    for one, other in zip(found, wanted, strict=True):
        near(one, other)


@pytest.mark.parametrize("kind", ["Audio", "Vision"])
def test_configuration(kind: str) -> None:
    configuration = getattr(family, f"Data2Vec{kind}Config")(num_hidden_layers=1)
    model = getattr(family, f"Data2Vec{kind}Model")(configuration)
    configuration = model.config
    assert configuration.hidden_size == 768
