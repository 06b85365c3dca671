"""What stands in a file never runs: payloads in stored configurations, given to every command."""

from __future__ import annotations

import copy
import json
import os
import pickle
import pydoc
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

import d2v_pretrain as d2v
from d2v_pretrain import evaluate, export, extract
from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import Run, find
from d2v_pretrain.config import compose, stored
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.export import PREPARATION
from d2v_pretrain.training import run as training
from d2v_pretrain.training.init_from import read
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.gate import Gate
from datamodules.datasets.unusable import Unusable
from datamodules.public import fetch
from tests.shards.tiny_shards import sounds as shards_of_sounds
from tests.weights.conftest import RUNS, SMALL

Runs = Callable[[str], Run]
TYPED = [*RUNS["audio1"], *SMALL, "trainer=cpu", "name=audio1"]


class Evil:
    """Its pickle touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def _pickled(marker: Path) -> str:
    torch.save(Evil(marker), marker.with_suffix(".pt"))
    return str(marker.with_suffix(".pt"))


def _path(marker: Path) -> dict[str, Any]:
    return {"_target_": "pathlib.Path", "_args_": [str(marker)]}


def _code(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def _timer(marker: Path) -> dict[str, Any]:
    return {"_target_": "torch.utils.benchmark.Timer", "stmt": _code(marker)}


def _system(marker: Path, target: str = "os.system") -> dict[str, Any]:
    return {"_target_": target, "command": f"touch {marker}"}


# Each touches the marker if Hydra builds it.
NODES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "function": _system,
    "class": lambda m: {"_target_": "subprocess.Popen", "args": ["touch", str(m)]},
    "args": lambda m: {"_target_": "builtins.exec", "_args_": [_code(m)]},
    "method": lambda m: {"_target_": "pathlib.Path.touch", "self": _path(m)},
    "timer": lambda m: {
        "_target_": "torch.utils.benchmark.Timer.timeit",
        "self": _timer(m),
        "number": 1,
    },
    "torch.load": lambda m: {"_target_": "torch.load", "f": _pickled(m), "weights_only": False},
    "through a module of ours": lambda m: _system(m, "d2v_pretrain.cli.os.system"),
    "through a model of ours": lambda m: _system(m, "d2v_pretrain.models.encoder.torch.os.system"),
    "inside": lambda m: {"_target_": "builtins.dict", "deep": [{"er": _system(m)}]},
    "our fetcher": lambda m: {
        "_target_": "datamodules.shards.fetch.fetch",
        "url": f"pipe:touch {m}",
        "path": _path(m.with_suffix(".tar")),
    },
    "script": lambda m: {
        "_target_": "runpy.run_path",
        "path_name": _script(m),
    },
}


def _script(marker: Path) -> str:
    marker.with_suffix(".py").write_text(_code(marker))
    return str(marker.with_suffix(".py"))


# The whole text of a configuration, which runs if YAML may make objects of Python.
TEXTS: dict[str, Callable[[Path], str]] = {
    "yaml tag": lambda m: f"architecture: !!python/object/apply:os.system ['touch {m}']",
    "yaml tag at the top": lambda m: f"!!python/object/apply:os.system ['touch {m}']",
}
KINDS = [*NODES, *TEXTS, "pickle"]


def built(node: Any) -> Any:
    """What a node describes, made without asking what it is. (Hydra itself refuses some names.)"""
    if isinstance(node, list):
        return [built(item) for item in node]
    if not isinstance(node, dict):
        return node
    rest = {key: built(value) for key, value in node.items() if key[0] != "_"}
    if "_target_" not in node:
        return rest
    return pydoc.locate(node["_target_"])(*built(node.get("_args_", [])), **rest)  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_each_payload_would_run(kind: str, tmp_path: Path) -> None:
    """In the hands of a reader without a gate."""
    marker = tmp_path / "marker"
    if kind in TEXTS:
        yaml.unsafe_load(TEXTS[kind](marker))
    elif kind == "pickle":
        pickle.loads(pickle.dumps(Evil(marker)))
    else:
        with suppress(Unusable):  # the fetcher's command gives nothing to read
            made = built(NODES[kind](marker))
            getattr(made, "wait", int)()  # for a process of its own
    assert marker.exists()


@lru_cache
def _weights(file: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(file)["state_dict"]


def foreign(folder: Path, run: Run, change: Callable[[dict[str, Any]], Any], **more: Any) -> Path:
    """A run's folder with a valid checkpoint whose configuration was changed."""
    content = copy.deepcopy(run.content)
    content = change(content) or content
    text = content if isinstance(content, str) else json.dumps(content)
    state = _weights(run.file)
    whole = {"state_dict": state, "global_step": 7, "position": {}, "config": text, **more}
    checkpoint.write(whole, folder / "checkpoints" / "last.ckpt")
    return folder


def put(content: dict[str, Any], place: str, node: dict[str, Any]) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        content = content[parent]
    content[last] = node


@pytest.fixture(scope="session")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled sounds."""
    draw, folder = np.random.default_rng(1), tmp_path_factory.mktemp("waves")
    for n in range(12):
        file = folder / "ab"[n % 2] / f"{n}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, draw.standard_normal(8000).astype(np.float32) * 0.1, 16000)
    return folder


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "evaluate": lambda run, waves: evaluate.main([f"run={run}"]),
    "evaluate typed data": lambda run, waves: evaluate.main([f"run={run}", f"data.root={waves}"]),
    "extract": lambda run, waves: extract.main(
        [f"run={run}", f"data.root={waves}", f"output={run / 'out'}"]
    ),
    "export": lambda run, waves: export.main([f"run={run}"]),
    "load": lambda run, waves: d2v.load(run).encoder(np.zeros(8000, np.float32)),
    "load a file": lambda run, waves: d2v.load(run / "checkpoints/last.ckpt").encoder(
        np.zeros(8000, np.float32)
    ),
    "finetune": lambda run, waves: training.pretrain(
        compose.load(
            [
                *("task=finetune", "modality=audio", "data=folder", f"data.root={waves}"),
                *("trainer=cpu", "name=fine", f"init_from={run}/checkpoints/last.ckpt"),
            ]
        )
    ),
    "resume": lambda run, waves: training.pretrain(compose.load([*TYPED, f"folder={run}"])),
}


def refused(command: str, folder: Path, waves: Path, marker: Path) -> str:
    """The sentence with which a command refuses a run; the marker is not there."""
    with pytest.raises(ConfigError) as error:
        COMMANDS[command](folder, waves)
    assert not marker.exists(), "the payload ran"
    sentence = str(error.value)
    assert "\n" not in sentence and "can still be loaded" not in sentence, sentence
    return sentence


# The two others read what these read; they are tried with payloads in every place below.
ALONE = [name for name in COMMANDS if name not in ("evaluate typed data", "load a file")]


# Fine-tuning and resuming compose a configuration first, which takes seconds: by default they are
# tried with a few payloads, and with all of them as ``slow``.
COMPOSING = ("finetune", "resume")
FEW = ("function", "our fetcher", "pickle", "transform", "trainer")


def cases(commands: list[str], kinds: list[str]) -> list[Any]:
    """Every command with every payload or place."""
    return [
        pytest.param(
            command,
            kind,
            marks=[pytest.mark.slow] if command in COMPOSING and kind not in FEW else [],
        )
        for command in commands
        for kind in kinds
    ]


@pytest.mark.parametrize(("command", "kind"), cases(ALONE, KINDS))
def test_no_payload_runs(
    command: str, kind: str, trained: Runs, waves: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    marker, folder = tmp_path / "marker", tmp_path / "foreign"
    if kind == "pickle":  # with a valid checksum, which ``write`` refuses to make
        monkeypatch.setattr(checkpoint, "_strangers", lambda *_: iter(()))
        foreign(folder, trained("audio1"), lambda content: None, more=Evil(marker))
    elif kind in TEXTS:
        foreign(folder, trained("audio1"), lambda content: TEXTS[kind](marker))
    else:
        node = NODES[kind](marker)
        foreign(folder, trained("audio1"), lambda content: put(content, "architecture", node))
    refused(command, folder, waves, marker)


PLACES = ["architecture.stem", "architecture.block", "transform", "transform.dataset", "trainer"]


@pytest.mark.parametrize(
    ("command", "place"), cases([name for name in COMMANDS if name != "resume"], PLACES)
)
def test_no_place_for_a_payload(
    command: str, place: str, trained: Runs, waves: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Also in parts that the command does not build. (Resuming builds what was typed.)"""
    monkeypatch.chdir(tmp_path)
    marker, folder = tmp_path / "marker", tmp_path / "foreign"
    node = _system(marker)
    foreign(folder, trained("audio1"), lambda content: put(content, place, node))
    assert "os.system" in refused(command, folder, waves, marker)


SMUGGLED = {
    "size": {"transform.crop_seconds": {"_target_": "os.system", "command": "touch MARKER"}},
    "dotted": {"transform.dataset._target_": "os.system"},
    "resolver": {"transform.crop_seconds": "${oc.env:HOME}"},
    "partial": {"architecture.block": {"_target_": "os.system", "_partial_": True}},
    "key": {"architecture._recursive_": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMUGGLED)
def test_what_finetuning_takes_over_is_plain(
    kind: str, trained: Runs, waves: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Hydra builds the configuration that fine-tuning puts together, so nothing in it may be more
    than it seems."""
    monkeypatch.chdir(tmp_path)
    marker, folder = tmp_path / "marker", tmp_path / "foreign"

    def change(content: dict[str, Any]) -> None:
        for place, value in SMUGGLED[kind].items():
            part, key = place.split(".", 1)
            content[part][key] = json.loads(json.dumps(value).replace("MARKER", str(marker)))

    foreign(folder, trained("audio1"), change)
    refused("finetune", folder, waves, marker)


def test_only_classes_that_are_defined_in_our_packages(tmp_path: Path) -> None:
    wrong = [
        "os.system",
        "d2v_pretrain.models.encoder.nn.Linear",  # imported by our module
        "d2v_pretrain.models.encoder.Tensor",
        "d2v_pretrain.models.encoder.mean_of_valid",  # a function of ours
        "d2v_pretrain.models.encoder.__class__",
        "d2v_pretrain.models.encoder.Encoder.forward",
        "d2v_pretrain.models..encoder.Encoder",
        "d2v_pretrain.models.encoder.",
        "d2v_pretrain.models",
        "d2v_pretrain.modelsx.Encoder",
        "d2v_pretrain.checkpoint.saved_run.Run",  # a class of ours, but no model
        "d2v_pretrain.models\0.Encoder",
        "",
        7,
        None,
        ["os.system"],
    ]
    for target in wrong:
        for trust in ((), ("sensor",)):
            with pytest.raises(ConfigError, match="nothing in it was run"):
                Gate(trust).encoder({"_target_": target}, tmp_path)
    for target in ("datamodules.shards.fetch.fetch", "datamodules.transforms.text.json.loads"):
        with pytest.raises(ConfigError, match="is not a transform of this program"):
            Gate().transform({"_target_": target}, tmp_path)


def test_trust_is_what_the_user_types() -> None:
    assert Gate.typed(None) == Gate.typed("") == Gate()
    assert Gate.typed("sensor, my.package").trust == ("sensor", "my.package")
    for wrong in ("a,,b", "a/b", "a.", "os; rm", "*"):
        with pytest.raises(ConfigError, match="must be names of packages"):
            Gate.typed(wrong)
    # A package is trusted with what is below it, and not with what begins with the same letters.
    node = {"_target_": "collections.OrderedDict"}
    with pytest.raises(ConfigError, match="but a OrderedDict"):
        Gate(("collections",)).encoder(node, Path("file"))
    with pytest.raises(ConfigError, match="nothing in it was run"):
        Gate(("collection",)).encoder(node, Path("file"))


def piped(content: dict[str, Any], root: Any) -> None:
    data = compose.load(["modality=audio", "data=shards", "data.root=x", "data.min_seconds=0.1"])
    node = stored.resolved(data.data) | {"root": root, "skipped_path": None}
    content["data"] = content["transform"]["dataset"] = node


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    shards_of_sounds(tmp_path / "shards", shards=1)
    return next((tmp_path / "shards").glob("*.tar"))


def test_a_file_cannot_ask_for_a_download(trained: Runs, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "foreign"
    words = ["modality=audio", "data=yesno", f"data.root={folder}/x", "data.download=true"]
    node = stored.resolved(compose.load([*words, f"folder={folder}"]).data)
    node |= {"pretrain": "wav", "get": "nothing", "skipped_path": None}
    foreign(folder, trained("audio1"), lambda content: put(content, "transform.dataset", node))
    with pytest.raises(ConfigError, match=r"dataset\.download=True stands in"):
        evaluate.main([f"run={folder}"])
    assert not (folder / "x").exists()


ROOTS = {
    "a command": lambda tar, marker: f"pipe:touch {marker}; cat {tar}",
    "in a list": lambda tar, marker: [f"pipe:touch {marker}; cat {tar}"],
    "an address": lambda tar, marker: "http://127.0.0.1:9/x.tar",
    "a path outside": lambda tar, marker: str(tar),
    "a relative path": lambda tar, marker: os.path.relpath(tar),
    "a path with dots": lambda tar, marker: f"foreign/../{os.path.relpath(tar)}",
}


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("command", ["evaluate", "extract"])
def test_places_in_a_file_are_not_used(
    command: str,
    kind: str,
    trained: Runs,
    waves: Path,
    tar: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    marker, folder = tmp_path / "marker", tmp_path / "foreign"
    root = ROOTS[kind](tar, marker)
    foreign(folder, trained("audio1"), lambda content: piped(content, root))
    # A configuration in a folder that is not in runs/ says nothing either.
    text = yaml.safe_dump(find(str(folder)).content)
    (folder / "config.yaml").write_text(text)
    words = [f"run={folder}", *([f"output={tmp_path / 'out'}"] if command == "extract" else [])]
    module = {"evaluate": evaluate, "extract": extract}[command]
    with pytest.raises(ConfigError, match=r"type data\.root=… with what you mean"):
        module.main(words)
    assert not marker.exists()
    if command == "extract":  # what is typed is used in its place
        assert extract.main([*words, f"data.root={waves}"]).is_dir()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["a command", "a relative path"])
def test_a_run_of_ones_own_goes_on_working(
    kind: str, trained: Runs, tar: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The same checkpoint in runs/, beside the config.yaml that says the same."""
    monkeypatch.chdir(tmp_path)
    marker, folder = tmp_path / "marker", Path("runs/mine")
    root = ROOTS[kind](tar, marker)

    def change(content: dict[str, Any]) -> None:
        piped(content, root)
        content["transform"]["dataset"]["cache_folder"] = str(tmp_path / "cache")

    foreign(folder, trained("audio1"), change)
    with pytest.raises(ConfigError, match="a file may not name a command"):
        extract.main(["run=mine", "output=out"])
    (folder / "config.yaml").write_text(yaml.safe_dump(find("mine").content))
    assert len(np.load(extract.main(["run=mine", "output=out"]) / "features.npy")) > 0
    assert marker.exists() == (kind == "a command")
    own = stored.plain((folder / "config.yaml").read_text(), folder)
    own["transform"]["dataset"]["root"] = "pipe:true"
    (folder / "config.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ConfigError, match="a file may not name a command"):
        extract.main(["run=mine", "output=again"])


def test_a_file_cannot_write_outside_of_its_run(
    trained: Runs, tmp_path: Path, monkeypatch: Any
) -> None:
    """The tokenizer that ``load`` would train goes where the run says."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "precious"
    for key in ("cache", "tokenizer"):
        folder = foreign(
            tmp_path / key,
            trained("small_text2"),
            lambda content, key=key: content["transform"].update({key: str(target)}),
        )
        with pytest.raises(ConfigError, match=f"transform.{key}=.*a file may not name"):
            d2v.load(folder).encoder(["text"])
    assert not target.exists()
    out = export.export(trained("audio1"), "teacher", "bundle", str(tmp_path / "bundle"))
    settings = json.loads((out / PREPARATION).read_text()) | {"cache": str(target)}
    (out / PREPARATION).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"cache=.*a file may not name"):
        d2v.load(out).encoder(np.zeros(8000, np.float32))


def test_a_recipe_from_a_file_is_a_name(
    trained: Runs, waves: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """``recipe=`` and ``conf=`` of a stored configuration find files."""
    monkeypatch.chdir(tmp_path)
    for n, change in enumerate(({"recipe": "../../evil"}, {"conf": ["evil"]}, {"conf": ["/e"]})):
        folder = foreign(
            tmp_path / str(n), trained("audio1"), lambda content, change=change: content | change
        )
        with pytest.raises(ConfigError, match=r"is no name of a recipe|a file may not name"):
            evaluate.main([f"run={folder}", f"data.root={waves}"])


def test_strings_of_a_file_stand_for_themselves(trained: Runs, tmp_path: Path) -> None:
    """Nothing of the environment gets into a configuration; no value is lost either."""
    odd = "${oc.env:HOME} \\${x} ${ ${transform.size}"
    folder = foreign(tmp_path / "f", trained("audio1"), lambda content: content | {"note": odd})
    run = find(str(folder))
    assert run.content["note"] == run.cfg.note == odd
    again = stored.plain(stored.text_of(stored.literal(run.content)), folder)
    assert again == run.content


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &x [1]\n"
        + "\n".join(
            f"{b}: &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("xbcdefgh", "bcdefghi")
        ),
        "[" * 5000,
        '{"a":' * 5000,
        "a: !!binary aGk=",
        "? [1]\n: 2",
        "? 2024-01-01\n: 2",
        "just text",
        "- a list",
        "a: 2024-01-01",
        7,
        None,
        b"a: 1",
    ],
)
def test_texts_that_are_no_configuration(text: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="not of plain values"):
        stored.plain(text, tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_stores_comes_back_as_it_was(name: str) -> None:
    """Beside OmegaConf, which reads and resolves the same text in its own way."""
    odd = ("2024-01-01", "1e3", "1_000", "0x1F", "12:30", "yes", "~", "null", "", " a", "a: b", "#")
    cfg = compose.load([*RUNS[name], *SMALL, "lr=3e-7", "clip=1e20", "name=0_1"])
    cfg.conf = [*odd, 7, 1e-9, float("inf"), True, None, {"0": 1}]
    for text in (stored.text_of(cfg), json.dumps(stored.resolved(cfg))):
        assert stored.plain(text, Path("file")) == stored.resolved(cfg)
    assert stored.text_of(cfg) == compose.OmegaConf.to_yaml(cfg, resolve=True)


def test_foreign_files_under_init_from(trained: Runs, tmp_path: Path) -> None:
    """Every kind of file that ``init_from`` reads: what is pickled in it is not run."""
    marker = tmp_path / "marker"
    torch.save({"model": {"x": torch.zeros(1)}, "args": Evil(marker)}, tmp_path / "fairseq.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "data2vec-audio"}))
    torch.save({"x": Evil(marker)}, folder / "pytorch_model.bin")
    for path in (tmp_path / "fairseq.pt", folder):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert "weights_only" not in str(error.value) and "can still be loaded" not in str(error)
    assert not marker.exists()


def test_code_in_an_exported_folder_is_not_ours_to_run(trained: Runs, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    run = trained("audio2")
    folder = export.export(run, "teacher", "hf", str(tmp_path / "out"))
    code = sorted(folder.glob("*.py"))
    assert [file.name for file in code] == ["modeling_d2v.py"]
    code[0].write_text(f"open({str(marker)!r}, 'w')")
    assert d2v.load(folder).encoder(np.zeros(8000, np.float32)).x.shape[-1] == 32
    assert len(read(folder).tensors) > 10
    for node in (_system(marker), {"_target_": "d2v_pretrain.cli.os.system", "command": "true"}):
        content = json.loads((folder / bundle.CONFIG).read_text())
        content["architecture"]["stem"] = node
        (folder / bundle.CONFIG).write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="nothing in it was run"):
            d2v.load(folder)
    assert not marker.exists()


def test_our_code_in_a_folder_builds_classes_of_its_own_alone() -> None:
    from d2v_pretrain.huggingface import remote_model

    assert remote_model.own_class("any.thing.D2VModel") is remote_model.D2VModel
    for target in ("os.system", "torch", "x.Encoder", "alibi_slopes", "__builtins__"):
        with pytest.raises(ValueError, match="is no class of"):
            remote_model.own_class(target)


def test_a_library_class_is_one_of_the_two_libraries(tmp_path: Path) -> None:
    wrong = ("os.system", "torchvision.datasets.os.system", "torchvision.datasets.utils.urlopen")
    for name in wrong:
        with pytest.raises(ConfigError, match=r"is not one of|there is no such class"):
            fetch.build(name, f"touch {tmp_path / 'marker'}", {}, "data.root", "")
    with pytest.raises(ConfigError, match="there is no such class"):
        fetch.build("torchvision.datasets.annotations", tmp_path, {}, "data.root", "")
    assert not (tmp_path / "marker").exists()
