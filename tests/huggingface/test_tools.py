"""Tools around transformers' models, on ours: accelerate, peft, pipelines, torch.export and
torch.compile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import _pytree as pytree

from d2v_pretrain.huggingface import outputs
from tests.huggingface.family_cases import CLASSES, HEADS, both, inputs, kind, ours, theirs

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
WAVE = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", CLASSES)
def test_accelerate(name: str) -> None:
    """Outputs move between devices; a model whose weights lie elsewhere says the same; autocast."""
    accelerate = pytest.importorskip("accelerate")
    model, x = ours(theirs(name)), inputs(name)
    with torch.no_grad():
        out = model(**x)
        moved = accelerate.utils.send_to_device(out, "cpu")
        assert type(moved) is type(out) and list(moved) == list(out)
        accelerate.cpu_offload(model, torch.device("cpu"))
        assert next(model.parameters()).device.type == "meta"
        assert torch.equal(model(**x)[0], out[0])
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(ours(theirs(name)))
    again = prepared(**x)
    assert list(again) == list(out) and again[0].dtype == torch.float32
    accelerator.free_memory()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", CLASSES)
def test_lora(name: str) -> None:
    """Adapters by our names of modules, and by theirs on ``to_transformers()``."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(ours(theirs(name)), peft.LoraConfig(r=2, target_modules=["qkv"]))
    model(**inputs(name))[0].float().square().mean().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained and all("lora" in n for n in trained)
    query = "q_proj" if kind(name) == "Audio" else "query"
    config = peft.LoraConfig(r=2, target_modules=[query])
    peft.get_peft_model(ours(theirs(name)).to_transformers(), config)(**inputs(name))


@pytest.mark.parametrize("name", [n for n in CLASSES if n != "AudioForXVector"])
def test_export(name: str) -> None:
    """torch.export takes every class but x-vectors, whose lengths depend on the data."""
    model, _ = both(name)
    exported = torch.export.export(model, (), kwargs=inputs(name), strict=False)
    with torch.no_grad():
        found, wanted = exported.module()(**inputs(name)), model(**inputs(name))
    assert list(found) == list(wanted)
    torch.testing.assert_close(found[0], wanted[0])


@pytest.mark.parametrize("name", ["AudioForCTC", "TextForMaskedLM", "VisionModel"])
def test_compile(name: str) -> None:
    model = ours(theirs(name))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        found, wanted = compiled(**inputs(name)), model(**inputs(name))
    assert list(found) == list(wanted)
    torch.testing.assert_close(found[0], wanted[0])


@pytest.mark.parametrize("name", HEADS)
def test_gathered_outputs(name: str) -> None:
    """As DataParallel rebuilds them: from pairs of names and values."""
    cached = {"use_cache": False} if name == "TextForCausalLM" else {}
    out = both(name)[0](**inputs(name), **cached)
    gathered = type(out)((key, torch.cat([out[key], out[key]])) for key in out)
    assert list(gathered) == list(out) and len(gathered[0]) == 2 * len(out[0])
    doubled = pytree.tree_map(lambda t: 2 * t, out)
    assert type(doubled) is type(out) and torch.equal(doubled[0], 2 * out[0])


def tokenizer() -> Any:
    """Words w0 to w93 as ids 4 to 97."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(94)), "<mask>"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    special = {f"{key}_token": word for key, word in names.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", model_max_length=30, **special
    )


def characters(folder: Path) -> Any:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmno"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    return transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


PIPELINES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("feature-extraction", "TextModel", "w1 w2 w3", {}),
    ("fill-mask", "TextForMaskedLM", "w1 <mask> w3", {}),
    ("text-classification", "TextForSequenceClassification", "w1 w2", {}),
    (
        "zero-shot-classification",
        "TextForSequenceClassification",
        "w1 w2",
        {"candidate_labels": ["w4", "w5"]},
    ),
    ("token-classification", "TextForTokenClassification", "w1 w2", {}),
    ("text-generation", "TextForCausalLM", "w1 w2", {"max_new_tokens": 4, "do_sample": False}),
    ("audio-classification", "AudioForSequenceClassification", WAVE, {}),
    ("automatic-speech-recognition", "AudioForCTC", WAVE, {}),
    ("image-classification", "VisionForImageClassification", IMAGE, {}),
    ("image-feature-extraction", "VisionModel", IMAGE, {}),
    ("image-segmentation", "VisionForSemanticSegmentation", IMAGE, {}),
]


@pytest.mark.parametrize(
    ("task", "name", "given", "options"), PIPELINES, ids=[task for task, *_ in PIPELINES]
)
def test_pipeline(
    task: str,
    name: str,
    given: Any,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every task of transformers 5.24 that one of the classes has, with our model in it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parts: dict[str, Any] = {}
    if kind(name) == "Text":
        parts["tokenizer"] = tokenizer()
    elif kind(name) == "Audio":
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
        parts["feature_extractor"] = extractor
    else:
        size = {"height": 32, "width": 32}
        parts["image_processor"] = transformers.BeitImageProcessor(size=size, do_center_crop=False)
    if name == "AudioForCTC":
        parts["tokenizer"] = characters(tmp_path)
    found, wanted = (
        transformers.pipeline(task, model=model, device="cpu", **parts)(given, **options)
        for model in both(name)
    )
    near(found, wanted)


def near(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            near(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            near(one, other)
    elif isinstance(wanted, Image.Image):
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
    elif isinstance(wanted, (float, np.generic, np.ndarray)):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    else:
        assert found == wanted


def test_outputs_without_transformers() -> None:
    """A process that never imports transformers gets our class, and the same dict."""
    import subprocess
    import sys

    code = """
import sys, pickle, torch
from d2v_pretrain import Data2VecTextConfig, Data2VecTextForMaskedLM
sizes = dict(hidden_size=12, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12)
model = Data2VecTextForMaskedLM(Data2VecTextConfig(vocab_size=20, **sizes)).eval()
out = model(torch.ones(1, 3).long())
assert "transformers" not in sys.modules and isinstance(out, dict) and list(out) == ["logits"]
assert torch.equal(pickle.loads(pickle.dumps(out)).logits, out.logits)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickled_outputs_are_ours() -> None:
    import pickle

    out = both("TextForMaskedLM")[0](**inputs("TextForMaskedLM"))
    assert isinstance(out, transformers.utils.ModelOutput)
    back = pickle.loads(pickle.dumps(out))
    assert type(back) is outputs.MaskedLMOutput and torch.equal(back.logits, out.logits)
