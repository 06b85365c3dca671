"""The rooms and what they may import, sizes, and what is banned, read from the syntax trees."""

from __future__ import annotations

import ast
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("d2v_pretrain", "datamodules")
SOURCES = sorted(p for top in (*PACKAGES, "benchmarks") for p in ROOT.glob(f"{top}/**/*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A room (a folder, or a file beside them) imports only from the lines above its own, and from its
# neighbours on that line where they are files of values. `datamodules` take from `d2v_pretrain`
# what DATA_TAKES says and are never imported by it: Hydra joins them.
ROOMS = """
atomic_files errors pixels redaction rng schedules types
masking
models
objective
config
weights
checkpoint
huggingface
evaluation
training
evaluate export extract
api
cli
"""
DATA_ROOMS = """
order parallel
datasets
public shards synthetic
transforms
module
doctor prepare
"""
DATA_TAKES = {"atomic_files", "errors", "pixels", "redaction", "rng", "types", "masking"}
COMPOSES = ("__main__",)  # commands of datamodules: they compose a configuration
LIGHTNING = ("training", "checkpoint/lightning", "datamodules/module")
OMEGACONF = ("config", "cli", "training", "checkpoint/saved_run", "huggingface/export_inputs")
OMEGACONF += ("doctor/__main__",)


def where(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports anywhere."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where(path)}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_rooms_import_from_those_above_them() -> None:
    """No circle and no arrow up between the folders; a new room needs a line in ROOMS."""
    wrong = []
    for package, text in (("d2v_pretrain", ROOMS), ("datamodules", DATA_ROOMS)):
        level = {
            room: i for i, line in enumerate(text.strip().splitlines()) for room in line.split()
        }
        for path in (p for p in SOURCES if where(p).startswith(f"{package}/")):
            own = where(path).split("/")[1]
            for line, name in imports(path):
                top, _, rest = name.partition(".")
                room = rest.split(".")[0]
                if own == "__init__" or top not in PACKAGES or room in ("__version__", own):
                    continue
                if top == package:
                    lower = level[room] < level[own] or level[room] == level[own] == 0
                else:
                    composes = path.stem in COMPOSES and room in ("cli", "config")
                    lower = package == "datamodules" and (room in DATA_TAKES or composes)
                wrong += [] if lower else [f"{where(path)}:{line} imports {name}"]
    assert not wrong


def test_frameworks_stay_in_their_places() -> None:
    """Models, objective and masking know torch alone."""
    homes = {"lightning": LIGHTNING, "hydra": OMEGACONF, "omegaconf": OMEGACONF}
    wrong = [
        f"{where(path)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imports(path)
        if (allowed := homes.get(name.split(".")[0])) and not where(path).startswith("benchmarks")
        if not any(f"/{home}" in f"/{where(path)}" for home in allowed)
    ]
    assert not wrong


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def size(function: Function) -> int:
    """Lines of a function without its decorators and docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    spans = [function, docstring] if docstring else [function]
    lines = [(span.end_lineno or 0) - span.lineno + 1 for span in spans]
    return lines[0] - sum(lines[1:])


def test_functions_and_files_are_short() -> None:
    sizes = {f"{where(p)}:{f.name}": size(f) for p, tree in TREES.items() for f in functions(tree)}
    assert not {name: lines for name, lines in sizes.items() if lines > 60}
    assert statistics.median(sizes.values()) <= 10
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= 30
    lengths = {where(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {name: lines for name, lines in lengths.items() if lines > 300}


def test_no_drawers_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "manager", "misc"}
    assert not [where(path) for path in SOURCES if set(path.stem.split("_")) & drawers]
    root = sorted(path.name for path in (ROOT / "d2v_pretrain").glob("*.py"))
    assert len(root) <= 13, "what a user types and a few modules of values, nothing else"
    assert not {"pretrain.py", "load.py"} & {*root}, "would hide d2v_pretrain.pretrain and load"


def test_modules_and_classes_say_what_they_are() -> None:
    """A module and a public class have a docstring; of functions the content is asked for, not the
    presence: see test_docstrings_with_arguments_name_them."""
    silent = [
        where(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)
    ]
    for path, tree in TREES.items():
        classes = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_")
        silent += [f"{where(path)}:{c.name}" for c in classes if not ast.get_docstring(c)]
    assert not silent


def test_docstrings_with_arguments_name_them() -> None:
    """What an ``Args:`` section explains are arguments of the function, or of the class."""
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, Function | ast.ClassDef):
                continue
            text = ast.get_docstring(node) or ""
            known = known_names(node)
            inherits = isinstance(node, ast.ClassDef) and node.bases and "self" not in known
            if "Args:\n" not in text or inherits:
                continue
            section = text.split("Args:\n")[1].split("\n\n")[0]
            heads = [
                row for row in section.splitlines() if row[4:5] not in ("", " ") and ": " in row
            ]
            named = {name.strip(" *`") for row in heads for name in row.split(":")[0].split(",")}
            wrong += [f"{where(path)}:{node.name} has no {n}" for n in named - known]
    assert not wrong


def known_names(node: Function | ast.ClassDef) -> set[str]:
    """Arguments of a function; of a class those of its constructor, and its annotated fields."""
    if isinstance(node, Function):
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        rest = filter(None, (node.args.vararg, node.args.kwarg))
        return {argument.arg for argument in (*every, *rest)}
    fields = {
        n.target.id
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    own = (f for f in node.body if isinstance(f, Function) and f.name in ("__init__", "__call__"))
    return fields.union(*map(known_names, own))


def test_nothing_branches_on_the_modality() -> None:
    """Modality, version and task are constructor arguments (conf/), never a condition."""
    wrong = []
    for path, tree in TREES.items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.Compare)):
            names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}
            if {"modality", "cfg.task"} & names and not where(path).startswith("benchmarks"):
                wrong.append(f"{where(path)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong


def test_no_defaults_hidden_in_the_code() -> None:
    """``cfg.get("key", default)`` would declare a setting twice, once where nobody looks."""
    wrong = []
    for path, tree in TREES.items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) == 2):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                owner = ast.unparse(node.func.value).replace(".", "_").split("_")
                if {"cfg", "config", "conf"} & {*owner} and not where(path).startswith(
                    "benchmarks"
                ):
                    wrong.append(f"{where(path)}:{node.lineno}")
    assert not wrong


def test_the_wheel_has_every_package() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {where(p.parent).replace("/", ".") for p in SOURCES if p.parts[-2] != "benchmarks"}
    assert set(setup["packages"]) == found | {"d2v_pretrain.conf"}
