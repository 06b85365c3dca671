"""The feature extractor against transformers', its file in both directions, and the documentation's
examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from d2v_pretrain import huggingface as family
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.preprocess_audio import Data2VecAudioFeatureExtractor
from tests.huggingface.audio_cases import SIZES, transformers

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture
def clips() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [
        generator.normal(0.1, scale, size).astype(np.float32)
        for size, scale in ((900, 0.3), (1200, 3e-4), (401, 2.0))
    ]


def test_values_and_mask_are_theirs(clips: list[np.ndarray], tmp_path: Path) -> None:
    Data2VecAudioFeatureExtractor().save_pretrained(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor) is transformers.Wav2Vec2FeatureExtractor
    theirs = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    mine = Data2VecAudioFeatureExtractor()(
        [torch.from_numpy(clips[0]), clips[1], clips[2].tolist()], 16000
    )
    assert list(mine) == ["input_values", "attention_mask"]
    assert torch.equal(mine["attention_mask"], theirs["attention_mask"].long())
    torch.testing.assert_close(mine["input_values"], theirs["input_values"], atol=2e-5, rtol=2e-5)


def test_files_are_read_in_both_directions(tmp_path: Path) -> None:
    theirs = transformers.Wav2Vec2FeatureExtractor(
        do_normalize=False, sampling_rate=8000, padding_value=-1.0, return_attention_mask=True
    )
    theirs.save_pretrained(tmp_path)
    mine = Data2VecAudioFeatureExtractor.from_pretrained(tmp_path)
    assert mine == Data2VecAudioFeatureExtractor(8000, False, -1.0)
    mine.save_pretrained(tmp_path / "again", processor_class="Wav2Vec2Processor")
    again = transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "again")
    mine_read = again.to_dict()
    assert mine_read.pop("processor_class", None) in (None, "Wav2Vec2Processor")
    assert mine_read == theirs.to_dict()


def test_eps_of_pretraining(tmp_path: Path) -> None:
    quiet = Data2VecAudioFeatureExtractor(eps=1e-5)
    wave = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 3e-4
    expected = torch.nn.functional.layer_norm(wave, wave.shape)
    torch.testing.assert_close(
        quiet(wave, 16000)["input_values"][0], expected, atol=1e-6, rtol=1e-5
    )
    quiet.save_pretrained(tmp_path)
    assert Data2VecAudioFeatureExtractor.from_pretrained(tmp_path) == quiet


def test_one_clip_and_no_mask() -> None:
    wave = torch.randn(50)
    one = Data2VecAudioFeatureExtractor(return_attention_mask=False)
    assert list(one(wave, 16000)) == ["input_values"]
    for same in (wave.numpy(), wave.tolist(), [wave], wave[None]):
        assert torch.equal(one(same, 16000)["input_values"], one(wave, 16000)["input_values"])


def test_mistakes(tmp_path: Path) -> None:
    extractor = Data2VecAudioFeatureExtractor()
    with pytest.raises(ConfigError, match="sampling_rate=8000 must be 16000"):
        extractor([0.0, 1.0], 8000)
    with pytest.raises(ConfigError, match=r"audio=of shape \(2, 30\) must be one channel"):
        extractor([torch.zeros(2, 30)], 16000)
    with pytest.raises(ConfigError, match="audio=nothing must be at least one waveform"):
        extractor([], 16000)
    with pytest.raises(ConfigError, match=r"has no preprocessor_config.json"):
        Data2VecAudioFeatureExtractor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"feature_size": 80}')
    with pytest.raises(ConfigError, match="feature_size=80 must be 1"):
        Data2VecAudioFeatureExtractor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"feature_si')
    with pytest.raises(ConfigError, match=r"preprocessor_config.json=.* is no valid JSON"):
        Data2VecAudioFeatureExtractor.from_pretrained(tmp_path)


def test_examples_of_the_documentation(clips: list[np.ndarray], tmp_path: Path) -> None:
    """Those of the five audio classes, with a local directory for the hub and the import
    changed."""
    Data2VecAudioFeatureExtractor().save_pretrained(tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    config = family.Data2VecAudioConfig(**SIZES)
    inputs = extractor(clips, sampling_rate=16000, return_tensors="pt", padding=True)
    single = extractor(clips[0], sampling_rate=16000, return_tensors="pt")
    for name in (
        "Model",
        "ForCTC",
        "ForSequenceClassification",
        "ForAudioFrameClassification",
        "ForXVector",
    ):
        cls = getattr(family, f"Data2VecAudio{name}")
        cls(config).save_pretrained(tmp_path)
        model = cls.from_pretrained(tmp_path)
        with torch.no_grad():
            outputs = model(**single)
        if name == "Model":
            assert list(outputs.last_hidden_state.shape) == [1, 44, 32]
        elif name == "ForCTC":
            predicted_ids = torch.argmax(outputs.logits, dim=-1)
            inputs["labels"] = torch.tensor([[3, 4], [5, 6], [7, -100]])
            assert predicted_ids.shape == (1, 44) and round(model(**inputs).loss.item(), 2) > 0
            del inputs["labels"]
        elif name == "ForSequenceClassification":
            predicted_class_ids = torch.argmax(outputs.logits, dim=-1).item()
            assert model.config.id2label[predicted_class_ids].startswith("LABEL_")
            inputs["labels"] = torch.tensor([model.config.label2id["LABEL_1"]] * 3)
            assert model(**inputs).loss.item() > 0
            del inputs["labels"]
        elif name == "ForAudioFrameClassification":
            labels = (torch.sigmoid(outputs.logits[0]) > 0.5).long()
            assert labels.shape == (44, 5)
        else:
            embeddings = torch.nn.functional.normalize(model(**inputs).embeddings, dim=-1)
            similarity = torch.nn.CosineSimilarity(dim=-1)(embeddings[0], embeddings[1])
            assert -1 <= float(similarity) <= 1
