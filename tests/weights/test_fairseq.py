"""Checkpoint files in the layouts of fairseq and BEiT, written here around the recorded reference
weights."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.intermediates import trace
from benchmarks.parity import Golden, inputs, load
from benchmarks.reference import Reference, build
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.init_from import load_weights
from d2v_pretrain.weights import fairseq, pickles

GOLDENS = Path(__file__).parent.parent / "fixtures" / "goldens"
FOLDERS = {
    "audio1": "audio_v1",
    "text1": "text_v1",
    "vision1": "blind/vision_v1",
    "audio2": "blind/audio_v2",
    "image2": "image_v2",
    "text2": "blind/text_v2",
}
State = dict[str, Any]


def golden(name: str) -> tuple[Golden, State]:
    """A recorded step, and its student's weights as a file's ``model`` holds them, teacher
    inside."""
    record = Golden.read(GOLDENS / FOLDERS[name])
    model: State = {
        k.removeprefix("student."): v for k, v in record.init.items() if k.startswith("student.")
    }
    teacher = {
        k.removeprefix("teacher."): v + 1
        for k, v in record.init.items()
        if k.startswith("teacher.")
    }
    return record, model | ({} if name == "vision1" else {"_ema": teacher})


def fresh(record: Golden) -> Reference:
    return build(record.config["recipe"], record.config["config"], record.config)


def unknown(**values: Any) -> Any:
    """An object of a class whose module will be gone when the file is read, as fairseq's is."""
    module = ModuleType("fairseq_gone")
    module.Config = type("Config", (), {"__module__": "fairseq_gone", "__qualname__": "Config"})  # type: ignore[attr-defined]
    sys.modules["fairseq_gone"] = module
    config = module.Config()
    config.__dict__ |= {
        "args": argparse.Namespace(**values),
        "steps": [1, 2],
        "kind": module.Config,
    }
    return config


def write(path: Path, content: State, **how: Any) -> Path:
    torch.save(content, path, **how)
    sys.modules.pop("fairseq_gone", None)
    return path


def pretrained(model: State) -> State:
    history = [{"num_updates": 7, "lr_scheduler_state": {"best": None}}]
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    rest = {
        "args": None,
        "optimizer_history": history,
        "last_optimizer_state": optimizer,
        "criterion": {},
    }
    return {"model": model, "cfg": unknown(seed=1), "extra_state": {"epoch": 3}, **rest}


def under(prefix: str, **heads: Tensor) -> Callable[[State], State]:
    return lambda model: pretrained({prefix + name: value for name, value in model.items()} | heads)


def replaced(*pairs: tuple[str, str]) -> Callable[[State], State]:
    def rename(model: State) -> State:
        for old, new in pairs:
            model = {name.replace(old, new): value for name, value in model.items()}
        return pretrained(model)

    return rename


def old_text(model: State) -> State:
    model = {
        name.replace("encoder.regression_head.0", "encoder.lm_head.dense"): v
        for name, v in model.items()
    }
    return replaced(
        ("encoder.sentence_encoder", "decoder.sentence_encoder"),
        ("layernorm_embedding", "emb_layer_norm"),
    )(model)


def beit(key: str) -> Callable[[State], State]:
    args = argparse.Namespace(model="beit_base_patch16_224", drop_path=0.25)
    return lambda model: {
        key: model,
        "model_ema": {"norm.weight": torch.zeros(48)},
        "args": args,
        "epoch": 799,
    }


def beit_in_fairseq(model: State) -> State:
    pairs = (
        ("cls_token", "cls_emb"),
        ("mask_token", "mask_emb"),
        ("patch_embed.proj", "patch_embed.conv"),
    )
    pairs += (("lm_head", "final_proj"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"))
    for old, new in pairs:
        model = {name.replace(old, new): value for name, value in model.items()}
    return pretrained({f"encoder.{name}": value for name, value in model.items()})


def four_axes(model: State) -> State:
    scale = "modality_encoders.AUDIO.alibi_scale"
    assert model[scale].ndim == 5
    return pretrained(model | {scale: model[scale][0]})


LAYOUTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "audio 1": ("audio1", pretrained),
    "audio 1, released base": ("audio1", replaced(("final_proj.", "final_proj.0."))),
    "audio 1, CTC": (
        "audio1",
        under("w2v_encoder.w2v_model.", **{"w2v_encoder.proj.weight": torch.ones(32, 48)}),
    ),
    "audio 1, sequence to sequence": (
        "audio1",
        under("encoder.w2v_model.", **{"decoder.x": torch.ones(2)}),
    ),
    "text 1": ("text1", pretrained),
    "text 1, old": ("text1", old_text),
    "text 1, classifier": (
        "text1",
        lambda m: pretrained(m | {"classification_heads.a.dense.weight": torch.ones(2)}),
    ),
    "vision 1": ("vision1", beit("model")),
    "vision 1, DeepSpeed": ("vision1", beit("module")),
    "vision 1, moved to fairseq": ("vision1", beit_in_fairseq),
    "audio 2": ("audio2", pretrained),
    "audio 2, old ALiBi": ("audio2", four_axes),
    "audio 2, CTC": (
        "audio2",
        under("w2v_encoder.w2v_model.", **{"w2v_encoder.proj.bias": torch.ones(32)}),
    ),
    "image 2": ("image2", pretrained),
    "image 2, old": (
        "image2",
        replaced(("fixed_positional_encoder.positions", "positional_encoder.pos_embed")),
    ),
    "image 2, classifier": (
        "image2",
        under("model.", **{"head.weight": torch.ones(5), "fc_norm.bias": torch.ones(4)}),
    ),
    "text 2": ("text2", pretrained),
    "text 2, classifier": (
        "text2",
        under("model.", **{"classification_heads.a.out_proj.bias": torch.ones(2)}),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
def test_a_layout_gives_the_weights_that_parity_is_shown_with(
    layout: str, how: State, tmp_path: Path
) -> None:
    """``benchmarks.parity.load`` is shown right by the reference's recorded activations."""
    name, arrange = LAYOUTS[layout]
    record, model = golden(name)
    expected, ours = fresh(record), fresh(record)
    load(expected, record.init)
    file = write(tmp_path / "file.pt", arrange(model), **how)
    encoders = [ours.objective.student, ours.objective.teacher.encoder]
    line = load_weights(encoders, fairseq.read(file))
    wanted = expected.objective.student.state_dict()
    for encoder in encoders:
        got = encoder.state_dict()
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert f"{len(wanted)} tensors" in line and str(file) in line
    assert all(head in line for head in ("_ema",) if head in str(model))


@pytest.mark.parametrize("name", ["audio1", "text1", "image2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_recorded_activations_come_out(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    record, model = golden(name)
    half = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in model.items()
    }
    file = write(tmp_path / "file.pt", pretrained(half))
    ours = fresh(record)
    load_weights([ours.objective.student], fairseq.read(file))
    assert {p.dtype for p in ours.objective.student.parameters()} == {torch.float32}
    out = trace(ours, *inputs(record.io), record.config["shapes"]["out"])["student_encoder"]
    expected = record.answers["out.student_encoder"]
    error = (out - expected).abs().max() / expected.abs().max()
    assert error < (2e-5 if dtype == torch.float32 else 2e-2)
    assert dtype == torch.float32 or error > 1e-5


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    record, model = golden("audio1")
    del model["post_extract_proj.bias"]
    model |= {"layer_norm.weight": torch.ones(7), "surprise.weight": torch.ones(3)}
    file = write(tmp_path / "file.pt", pretrained(model))
    encoder = fresh(record).objective.student
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        load_weights([encoder], fairseq.read(file))
    for part in (
        "missing in it: stem.projection.bias",
        "unexpected in it: surprise.weight",
        "stem.norm.weight (7,)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    deeper = {
        k.replace("encoder.layers.3.", "encoder.layers.4."): v
        for k, v in golden("audio1")[1].items()
    }
    file = write(tmp_path / "file.pt", pretrained(golden("audio1")[1] | deeper))
    with pytest.raises(
        ConfigError, match=r"unexpected in it: blocks\.4\.\* \(12 tensors\); choose"
    ):
        load_weights([encoder], fairseq.read(file))


@pytest.mark.parametrize(
    "configuration",
    [{"model": {"encoder_attention_heads": 8}}, argparse.Namespace(encoder_attention_heads=8)],
    ids=["cfg", "args"],
)
def test_another_number_of_heads_is_found_in_the_configuration(
    configuration: Any, tmp_path: Path
) -> None:
    """No tensor of data2vec 1 audio tells the heads: the weights would load and mean nothing."""
    record, model = golden("audio1")
    file = write(tmp_path / "file.pt", {"model": model, "cfg": configuration})
    with pytest.raises(ConfigError, match="attention heads: 8, here 6"):
        load_weights([fresh(record).objective.student], fairseq.read(file))


def test_a_mask_vector_may_be_missing_or_too_many(tmp_path: Path) -> None:
    record, model = golden("audio1")
    file = write(
        tmp_path / "file.pt", pretrained({k: v for k, v in model.items() if k != "mask_emb"})
    )
    assert "stem.mask_vector starts at random" in load_weights(
        [fresh(record).objective.student], fairseq.read(file)
    )
    without = fresh(record).objective.student
    del without.stem.mask_vector
    without.stem.register_parameter("mask_vector", None)
    file = write(tmp_path / "file.pt", pretrained(model))
    load_weights([without], fairseq.read(file))
    assert without.stem.mask_vector is None


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, os.unlink, getattr], ids=lambda f: f.__name__
)
def test_a_file_that_would_run_code_is_refused(
    function: Any, protocol: int, how: State, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    order = {
        "system": f"touch {witness}",
        "eval": f"open({str(witness)!r}, 'w')",
        "exec": f"open({str(witness)!r}, 'w')",
    }
    arguments = {"unlink": [str(tmp_path / "file.pt")], "getattr": [os, "system"]}
    bad = Malicious(function, *arguments.get(function.__name__, [order.get(function.__name__)]))
    if function is getattr:
        bad = Malicious(function, "text", "upper")
    file = write(
        tmp_path / "file.pt",
        {"model": {"a": torch.ones(1)}, "cfg": bad},
        pickle_protocol=protocol,
        **how,
    )
    with pytest.raises(
        ConfigError, match=rf"asks to run \w+\.{function.__name__}, which no honest"
    ):
        fairseq.read(file)
    assert not witness.exists() and file.exists()


def test_a_function_of_an_installed_package_is_not_called() -> None:
    """Names outside of the standard library are not refused, because classes of fairseq are; they
    are not imported."""
    package = ModuleType("installed_here")
    called: list[int] = []
    package.run = called.append  # type: ignore[attr-defined]
    sys.modules["installed_here"] = package
    code = b"\x80\x02cinstalled_here\nrun\nK\x01\x85R."
    try:
        assert pickle.loads(code) is None and called == [1], "this is what pickle itself does"
        inert = pickles._load(io.BytesIO(code))
    finally:
        del sys.modules["installed_here"]
    assert called == [1] and isinstance(inert, pickles.Record)


def test_a_file_changes_no_function_that_it_names() -> None:
    code = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\ntstb."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    pickles._load(io.BytesIO(code))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", "cannot be read"),
        (b"not a checkpoint at all", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["empty", "text", "cut"],
)
def test_damaged_files(content: bytes | None, rule: str, tmp_path: Path) -> None:
    file = write(tmp_path / "file.pt", {"model": {"a": torch.ones(1000)}})
    file.write_bytes(file.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ConfigError, match=rule):
        fairseq.read(file)


def test_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model known here \(its tensors: a.weight"):
        fairseq.read(write(tmp_path / "other.pt", {"model": {"a.weight": torch.ones(1)}}))
    with pytest.raises(ConfigError, match="holds no model"):
        fairseq.read(write(tmp_path / "list.pt", {"model": [1, 2]}))
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as program:
        program.writestr("program/constants.pkl", pickle.dumps(()))
    with pytest.raises(ConfigError, match="asks to run a TorchScript program"):
        fairseq.read(tmp_path / "program.pt")


def test_what_an_unknown_object_becomes(tmp_path: Path) -> None:
    content = pickles.read(
        write(tmp_path / "file.pt", {"cfg": unknown(heads=3), "t": torch.arange(3)})
    )
    config = content["cfg"]
    assert isinstance(config, pickles.Record) and type(config).__name__ == "Config"
    assert config.state["args"].state == {"heads": 3} and config.state["steps"] == [1, 2]
    assert content["t"].tolist() == [0, 1, 2]
