"""literal.py: paths with characters of Hydra's grammar stay as they were typed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from d2v_pretrain.config.compose import load
from d2v_pretrain.config.explain import in_words
from d2v_pretrain.config.literal import for_shell, literal, quoted

AWKWARD = [
    "runs/a/checkpoints/step=20.ckpt",
    "a[1]",
    "a(1)",
    "a=b=c",
    "it's",
    "ä/ö ü",
    "with space",
    "a#b",
    "back\\slash",
    "ends in\\",
    "100%",
    "a&b;c",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_path_is_taken_as_it_is_typed(text: str) -> None:
    assert load(["modality=audio", "data=folder", f"data.root={text}"]).data.root == text


@pytest.mark.parametrize(
    "text", [*AWKWARD, "a,b", "[a,b]", "{a}", "a${b}", "${x}", "'quoted'", '"double"']
)
def test_a_path_that_exists_is_never_read_otherwise(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(text).mkdir(parents=True)
    assert load(["modality=audio", "data=folder", f"data.root={text}"]).data.root == text
    assert load(["modality=audio", f"init_from={text}"]).init_from == text


@pytest.mark.parametrize("text", [*AWKWARD, "a,b", "[a,b]", "a${b}"])
def test_quoted_is_the_text(text: str) -> None:
    assert load(["modality=audio", "data=folder", f"data.root={quoted(text)}"]).data.root == text


@pytest.mark.parametrize("text", [*AWKWARD, "a,b", "[a,b]", "a${HOME}", '"double"', "`x`"])
def test_what_is_shown_works_in_a_shell(text: str) -> None:
    command = f"printf %s {for_shell('data.root', text)}"
    word = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert load(["modality=audio", "data=folder", word]).data.root == text


def test_what_hydra_reads_stays_hydras() -> None:
    for word in (
        "transform.scale=[0.5,1]",
        "name=x_${seed}",
        "seed=0,1,2",
        "lr=1e-4,5e-4",
        "name='a b'",
        "~probe",
        "+logger.offline=true",
        "-m",
        "steps",
    ):
        assert literal(word) == word
    cfg = load(["modality=audio", "name=x_${seed}", "seed=3", "data=folder", "data.root=~/x"])
    assert cfg.name == "x_3" and cfg.data.root == str(Path("~/x").expanduser())


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("data.root=${x}", "data.root=${x} cannot be worked out: Interpolation key 'x' not found"),
        ("data.root=${x}", 'type "' + r"data.root='\\\${x}'" + '"'),
        ("data.root=a,b", "has commas, between which stand the values of a sweep; type -m too, or"),
        ("data.root=a,b", "\"data.root='a,b'\""),
        ("data.root=[a", "is not of the form key=value; to take it as a text, type"),
    ],
)
def test_the_quoting_is_shown(word: str, sentence: str) -> None:
    words = ["modality=audio", "data=folder", word]
    with pytest.raises(Exception) as found:
        load(words).data.root  # noqa: B018
    assert sentence in str(in_words(found.value, words))
