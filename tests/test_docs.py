"""README and docs say what is there: commands, links, paths, recipes, choices."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2v_pretrain.config.compose import choices, load
from docs import rows

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "slurm" / "README.md"]
NOW = [page for page in PAGES if page.name != "CHANGELOG.md"]  # that page also names what was
# Words in front of a run's settings, in a command of the pages.
STARTS = r"(?:python train\.py|sbatch .*?slurm/(?:one_node|many_nodes|finetune)\.sbatch)"


def code(page: Path) -> Iterator[str]:
    """Lines of code blocks, broken ones joined, and what stands between backticks in the text."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for n, part in enumerate(text.split("```")):
        if n % 2:
            yield from part.splitlines()
        else:
            yield from re.findall(r"`([^`\n]+)`", part)


def runs() -> Iterator[tuple[str, ...]]:
    """The settings of every command that starts a run, of a sweep those of its first run."""
    for line in (line for page in NOW for line in code(page)):
        if found := re.match(rf"(?:for .*; do )?{STARTS} ([^;]+)", line):
            words = shlex.split(found[1], comments=True)
            # Where runs are started (hydra/launcher=slurm needs a plugin) is no setting of a run.
            others = ("-m", "--cfg", "job", "hydra/launcher=slurm")
            settings = [word for word in words if word not in others]
            if "-m" in words:
                settings = [word.split(",")[0] for word in settings]
            if all("=" in word for word in settings):
                yield tuple(settings)


RUNS = sorted(set(runs()))


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(rows.README.read_text("utf-8").splitlines()) <= 130


def test_generated_parts_of_the_readme_are_current() -> None:
    text = rows.README.read_text("utf-8")
    assert text == rows.replaced(text), "write them anew: python -m docs.rows"


def test_the_table_has_every_recipe_of_a_size_for_gpus() -> None:
    table = rows.recipes()
    listed = {name for name in choices("recipe") if f"| `{name}` |" in table}
    assert {name for name in choices("recipe") if not name.endswith("_tiny")} == listed


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_a_recipe_says_where_it_comes_from(recipe: str) -> None:
    fields = rows.header(ROOT / "conf" / "recipe" / f"{recipe}.yaml")
    if recipe.endswith("_tiny"):
        assert "Not published" in fields["Title"] and "Differs from" in fields["Title"]
    else:
        assert all(fields.get(key) for key in ("Source", "Hardware", "Hours", "Expected", "Data"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            spelled = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in spelled, link


@pytest.mark.parametrize("page", NOW, ids=lambda page: page.name)
def test_what_is_named_is_there(page: Path) -> None:
    """Modules behind ``python -m``, targets behind ``make``, files and folders of the tree."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ours = r"python -m ((?:d2v_pretrain|datamodules|benchmarks|notebooks|docs)[\w.]*)"
    for text in code(page):
        for module in re.findall(ours, text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), text
        for target in re.findall(r"^make ([a-z]+)", text):
            assert target in targets, text
        if re.fullmatch(r"(?:tests|conf|docs|slurm|benchmarks|notebooks)/[a-z0-9_./]+", text):
            assert (ROOT / text).exists() or text == "conf/local/default.yaml", text


def test_commands_are_found() -> None:
    assert len(RUNS) > 15 and all(word.count("\\") == 0 for words in RUNS for word in words)


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_a_command_composes(words: tuple[str, ...]) -> None:
    load(words)


def test_listed_choices_are_those_of_conf() -> None:
    text = (ROOT / "docs" / "config.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z]+)=([a-z0-9_]+(?:\\\|[a-z0-9_]+)+)`", text, re.MULTILINE)
    listed = {group: set(names.split(r"\|")) - {"null"} for group, names in rows}
    assert {"modality", "encoder", "masking", "schedule", "trainer"} <= listed.keys()
    assert listed == {group: set(choices(group)) for group in listed}
