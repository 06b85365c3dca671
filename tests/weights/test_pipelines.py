"""transformers' pipelines on exports, offline; heads are put on by our family's classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_pretrain import export
from d2v_pretrain import huggingface as family
from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.huggingface import tokenizer_files
from d2v_pretrain.huggingface.preprocess_audio import Data2VecAudioFeatureExtractor

transformers = pytest.importorskip("transformers")
Runs = Callable[[str], Run]
WAVE = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def exported(trained: Runs, tmp_path: Path) -> Callable[..., Path]:
    """An export of a run of ``RUNS``, with a head of ours around it if one is named."""

    def get(name: str, head: str | None = None, **settings: object) -> Path:
        plain = export.export(trained(name), "teacher", "hf", str(tmp_path / "plain"))
        if head is None:
            return plain
        folder = tmp_path / "head"
        shutil.copytree(
            plain, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
        )
        getattr(family, head).from_pretrained(plain, **settings).save_pretrained(folder)
        return folder

    return get


def pipe(task: str, folder: Path, **more: object):
    return transformers.pipeline(task, model=str(folder), device="cpu", **more)


def test_features_of_text(exported: Callable[..., Path], trained: Runs) -> None:
    folder = exported("text1")
    vectors = np.array(pipe("feature-extraction", folder)("def function"))
    ids = transformers.AutoTokenizer.from_pretrained(folder)("def function")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2 and vectors.shape == (1, len(ids), 32)
    encoder = trained("text1").encoder("teacher")
    from d2v_pretrain.types import Batch

    with torch.no_grad():
        ours = encoder.encode(Batch(torch.tensor([ids]), torch.zeros(1))).x
    np.testing.assert_allclose(vectors, ours.numpy(), atol=1e-5)


def test_the_tokenizer_is_the_one_of_the_pretraining(
    exported: Callable[..., Path], trained: Runs
) -> None:
    from hydra.utils import instantiate

    theirs = transformers.AutoTokenizer.from_pretrained(exported("text1"))
    vocabulary = instantiate(trained("text1").cfg.transform, _convert_="all").vocabulary
    texts = ["while True: pass", "  two  spaces ", "ünïcode — 語", "x = y[0]\t# tab"]
    for text, ids in zip(texts, vocabulary.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == [0, *ids.tolist(), 2]
        assert theirs.decode(ids) == text
    assert len(theirs) == 300 and theirs.mask_token_id == 299 and theirs.model_max_length == 64
    assert theirs("a <mask> b")["input_ids"].count(299) == 1


def test_fill_mask(exported: Callable[..., Path]) -> None:
    answers = pipe("fill-mask", exported("text1", "Data2VecTextForMaskedLM"), top_k=3)(
        "the <mask> of a list"
    )
    assert len(answers) == 3 and all(0 <= answer["token"] < 300 for answer in answers)


def test_text_classification(exported: Callable[..., Path]) -> None:
    folder = exported("text2", "Data2VecTextForSequenceClassification", num_labels=3)
    assert pipe("text-classification", folder)("the end")[0]["label"] in {
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    }


def test_audio_classification(exported: Callable[..., Path]) -> None:
    folder = exported("audio1", "Data2VecAudioForSequenceClassification", num_labels=4)
    assert len(pipe("audio-classification", folder, top_k=4)(WAVE)) == 4


def test_speech_recognition(exported: Callable[..., Path]) -> None:
    folder = exported("audio1", "Data2VecAudioForCTC", vocab_size=6)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}
    (folder / "vocab.json").write_text(json.dumps(words))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    tokenizer.save_pretrained(folder)
    inputs = Data2VecAudioFeatureExtractor.from_pretrained(folder)(WAVE, 16000)
    with torch.no_grad():
        letters = family.Data2VecAudioForCTC.from_pretrained(folder)(**inputs).logits.argmax(-1)[0]
    assert len(set(letters.tolist())) > 1
    assert pipe("automatic-speech-recognition", folder)(WAVE)["text"] == tokenizer.decode(letters)


def test_features_of_images(exported: Callable[..., Path], trained: Runs) -> None:
    folder = exported("vision1")
    vectors = np.array(pipe("image-feature-extraction", folder)(IMAGE))
    run = trained("vision1")
    patches = (run.cfg.transform.size // run.cfg.architecture.stem.patch) ** 2
    assert vectors.shape == (1, patches + 1, 32)


def test_images_are_prepared_as_for_the_probe(exported: Callable[..., Path], trained: Runs) -> None:
    from hydra.utils import instantiate

    processor = transformers.AutoImageProcessor.from_pretrained(exported("vision1"), use_fast=True)
    source = instantiate(trained("vision1").cfg.transform, _convert_="all")
    ours = source.view(torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1))
    theirs = processor(IMAGE, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, ours, atol=1.01 / 255 / 0.224, rtol=0)  # one grey level


def test_image_classification(exported: Callable[..., Path]) -> None:
    folder = exported("vision1", "Data2VecVisionForImageClassification", num_labels=3)
    assert len(pipe("image-classification", folder)(IMAGE)) == 3


def test_sound_is_prepared_as_in_pretraining(exported: Callable[..., Path]) -> None:
    from datamodules.transforms.base import normalise

    extractor = transformers.AutoFeatureExtractor.from_pretrained(exported("audio1"))
    made = extractor(
        [WAVE, WAVE[:9000] + 0.3], sampling_rate=16000, padding=True, return_tensors="pt"
    )
    for row, wave in enumerate((WAVE, WAVE[:9000] + 0.3)):
        ours = normalise(wave)
        torch.testing.assert_close(
            made["input_values"][row, : len(ours)], ours, atol=5e-3, rtol=0
        )  # eps 1e-5 and 1e-7
        assert made["attention_mask"][row].sum() == len(ours)


@pytest.mark.parametrize(
    "dictionary", [False, True], ids=["moved up by four", "fairseq's dictionary"]
)
def test_a_vocabulary_with_other_raw_ids(dictionary: bool, tmp_path: Path) -> None:
    """GPT-2's has no special ids; fairseq's dictionary orders its ids by frequency and has made-up
    words (-1)."""
    from tokenizers import ByteLevelBPETokenizer

    from datamodules.transforms.tokenizer import Vocabulary

    raw = ByteLevelBPETokenizer()
    texts = ["the cat sat on the mat", "the dog sat on the cat"]
    raw.train_from_iterator(texts, vocab_size=280, show_progress=False)
    size = raw.get_vocab_size()
    order = (
        [*torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist(), -1, -1]
        if dictionary
        else None
    )
    vocabulary = Vocabulary(raw, order)
    content = json.loads(vocabulary.tokenizer.to_str())
    ids = tokenizer_files.ids_of(content, vocabulary.moved, vocabulary.size)
    assert (
        sorted(ids.values()) == list(range(vocabulary.size))
        and vocabulary.size == size + 5 + 2 * dictionary
    )
    tokenizer_files.write(tmp_path, ids, content, 64)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    for text, ours in zip(texts, vocabulary.encode(texts), strict=True):
        assert theirs(text)["input_ids"] == [0, *ours.tolist(), 2]
    assert theirs.mask_token_id == vocabulary.size - 1
