"""The import rule, the size caps and the bans of DESIGN.md sections 2 and 7, read from the syntax trees."""

from __future__ import annotations

import ast
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    [*ROOT.glob("d2v_pretrain/**/*.py"), *ROOT.glob("datamodules/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
)
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
Function = ast.FunctionDef | ast.AsyncFunctionDef

BASE = {"types", "rng", "errors", "schedules"}
# Layer -> what it may import of d2v_pretrain, besides itself. What is not listed must be added here with a thought.
ALLOWED = {
    "types": {"rng", "errors"},
    "rng": set(),
    "errors": set(),
    "schedules": set(),
    "stopping": set(),
    "distributed": set(),
    "masking": BASE,
    "models": BASE | {"masking"},
    "objective": BASE | {"masking", "models"},
    "family": BASE | {"masking", "models", "interop"},  # the tables of names, which import nothing
    "interop": BASE | {"masking", "models", "objective", "family"},
    "optim": BASE,
    "sharding": BASE | {"objective"},
    "checkpoint": BASE,
    "checkpoint_io": BASE | {"checkpoint"},
    "pretrain": BASE | {"masking", "models", "objective", "optim", "checkpoint", "sharding"},
    "finetune": BASE | {"masking", "models", "objective", "family", "optim", "checkpoint"},
    "probe": BASE | {"models"},
    "evaluate": BASE | {"models", "objective", "probe", "commands", "reprobe"},  # the last two as a command
    "callbacks": BASE
    | {
        "masking",
        "models",
        "objective",
        "pretrain",
        "evaluate",
        "probe",
        "checkpoint",
        "checkpoint_io",
        "stopping",
        "distributed",
        "sharding",
    },
    "commands": {"errors", "cli"},
    "trained": BASE | {"models", "interop", "checkpoint", "config"},
    "inputs": BASE | {"models", "family", "interop", "trained"},
    "export": BASE | {"models", "interop", "commands", "inputs", "trained"},
    "extract": BASE | {"models", "commands", "trained"},
    "reprobe": {"errors", "checkpoint", "commands", "evaluate", "run", "trained"},
    "preflight": {"errors"},
    "rules": {"errors"},
    "config": {"errors", "rules"},
    "provenance": {"errors"},
}
RUN = {*ALLOWED, "run"}
LIGHTNING = {
    "d2v_pretrain/pretrain",
    "d2v_pretrain/finetune",
    "d2v_pretrain/callbacks",
    "d2v_pretrain/run",
    "d2v_pretrain/checkpoint_io",
    "d2v_pretrain/sharding",
}
OMEGACONF = {
    "d2v_pretrain/config",
    "d2v_pretrain/run",
    "d2v_pretrain/cli",
    "d2v_pretrain/commands",
    "d2v_pretrain/trained",
    "d2v_pretrain/inputs",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports anywhere, dotted; what is taken from a package counts as its submodule."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(dotted: str) -> str:
    """``d2v_pretrain.masking.span.SpanMask`` -> ``masking``."""
    return dotted.split(".")[1] if "." in dotted else ""


def where(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def is_under(path: Path, names: set[str]) -> bool:
    return any(where(path) == name or where(path).startswith(name + "/") for name in names)


def ours(path: Path) -> set[str]:
    """Layers of d2v_pretrain that a file imports."""
    return {layer(name) for name in imports(path) if name.split(".")[0] == "d2v_pretrain"} - {"__version__"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "d2v_pretrain")], ids=where)
def test_core_imports_follow_the_rule(path: Path) -> None:
    own = where(path).split("/")[1]
    if own in ("__init__", "run", "cli", "__main__"):
        return
    assert own in ALLOWED, f"{own} is new: give it a place in the import rule"
    assert ours(path) <= ALLOWED[own] | {own}
    assert not any(name.split(".")[0] == "datamodules" for name in imports(path))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "datamodules")], ids=where)
def test_datamodules_import_little_of_the_core(path: Path) -> None:
    commands = {"config", "cli"} if path.name == "__main__.py" else set()  # these compose a configuration
    assert ours(path) <= {"types", "rng", "errors", "masking"} | commands


@pytest.mark.parametrize("path", [p for p in SOURCES if not p.is_relative_to(ROOT / "benchmarks")], ids=where)
def test_frameworks_stay_in_their_places(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    if path.is_relative_to(ROOT / "datamodules"):
        if "lightning" in tops:
            assert any(isinstance(n, ast.ClassDef) and n.name.endswith("DataModule") for n in TREES[path].body)
        assert not tops & {"hydra", "omegaconf"} or path.name == "__main__.py"
        return
    assert "lightning" not in tops or is_under(path, LIGHTNING)
    assert not tops & {"hydra", "omegaconf"} or is_under(path, OMEGACONF)


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def has_docstring(node: Function | ast.ClassDef) -> bool:
    return ast.get_docstring(node) is not None


def size(function: Function) -> int:
    """Lines of a function without its decorators and docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if has_docstring(function):
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_functions_are_short() -> None:
    sizes = {f"{where(p)}:{f.name}": size(f) for p, tree in TREES.items() for f in functions(tree)}
    too_long = {name: n for name, n in sizes.items() if n > 60}
    assert not too_long
    assert statistics.median(sizes.values()) <= 10
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= 30


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_no_drawers_for_everything() -> None:
    assert not [
        where(p) for p in SOURCES if set(p.stem.split("_")) & {"utils", "util", "helpers", "helper", "manager", "misc"}
    ]


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_modules_and_public_functions_say_what_they_are(path: Path) -> None:
    tree = TREES[path]
    assert ast.get_docstring(tree) or not tree.body, "module docstring"
    silent = [
        node.name
        for node in public(tree)
        if not has_docstring(node) and (isinstance(node, ast.ClassDef) or size(node) > 3)
    ]
    assert not silent


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions, classes and methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (f for f in node.body if isinstance(f, Function) and not f.name.startswith("_"))


@pytest.mark.parametrize("path", SOURCES, ids=where)
def test_nothing_branches_on_the_modality(path: Path) -> None:
    """The modality and the version are constructor arguments (conf/), never a condition."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Compare):
            names = {
                n.id if isinstance(n, ast.Name) else n.attr
                for n in ast.walk(node)
                if isinstance(n, ast.Name | ast.Attribute)
            }
            assert "modality" not in names, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if not p.is_relative_to(ROOT / "benchmarks")], ids=where)
def test_no_defaults_hidden_in_the_code(path: Path) -> None:
    """``cfg.get("key", default)`` would declare a setting twice, once where nobody looks."""
    for node in ast.walk(TREES[path]):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and len(node.args) == 2
        ):
            owner = ast.unparse(node.func.value)
            assert not {"cfg", "config", "conf"} & set(owner.replace(".", "_").split("_")), f"line {node.lineno}"


def test_the_wheel_has_every_package() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {where(p.parent).replace("/", ".") for p in SOURCES if not p.is_relative_to(ROOT / "benchmarks")}
    assert set(setup["packages"]) == found | {"d2v_pretrain.conf"}
