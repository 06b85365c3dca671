"""Write our sources as one file that needs only torch and transformers, for
``trust_remote_code=True``."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from d2v_pretrain import __version__

FILE = "modeling_d2v.py"
AUTO_MAP = {"AutoConfig": "modeling_d2v.D2VConfig", "AutoModel": "modeling_d2v.D2VModel"}
_PACKAGE = "d2v_pretrain."
_MODEL = "d2v_pretrain.huggingface.remote_model"
_HEADER = f'''"""An encoder pretrained with d2v_pretrain {__version__}.

Generated from its sources (MIT licence).
"""

from __future__ import annotations

'''


def flat(architecture: Mapping[str, Any]) -> str:
    """The source of a module with the model class and every class of ``architecture``.

    Args:
        architecture: how the encoder is constructed, a node with ``_target_`` and arguments. Its
            classes are in ``d2v_pretrain.models``.
    """
    modules: dict[str, ast.Module] = {}
    for name in (*sorted(_modules(architecture)), _MODEL):
        _collect(name, modules)
    _check_names(modules.values())
    imports = {
        ast.unparse(node) for tree in modules.values() for node in tree.body if _foreign(node)
    }
    parts = [_body(name, tree) for name, tree in modules.items()]
    return _HEADER + "\n".join(sorted(imports)) + "\n\n" + "\n\n".join(parts) + "\n"


def _modules(node: Any) -> set[str]:
    """The modules of all ``_target_`` in a node and below."""
    if isinstance(node, Mapping):
        own = {str(node["_target_"]).rpartition(".")[0]} if "_target_" in node else set()
        return own.union(*(_modules(value) for value in node.values()))
    return set()


def _collect(name: str, into: dict[str, ast.Module]) -> None:
    """Add a module after those modules of ours that it imports."""
    if name in into:
        return
    tree = ast.parse(_path(name).read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(_PACKAGE):
            _collect(str(node.module), into)
    into[name] = tree


def _path(module: str) -> Path:
    return (
        Path(str(import_module(_PACKAGE[:-1]).__file__))
        .parent.joinpath(*module.split(".")[1:])
        .with_suffix(".py")
    )


def _foreign(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module != "__future__" and not f"{node.module}.".startswith(_PACKAGE)
    return isinstance(node, ast.Import)


def _body(name: str, tree: ast.Module) -> str:
    """The text of a module without its imports and docstring."""
    lines = _path(name).read_text().splitlines()
    for node in reversed(tree.body):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            del lines[node.lineno - 1 : node.end_lineno]
    return f"# {name.replace('.', '/')}.py\n\n" + "\n".join(lines).strip() + "\n"


def _check_names(trees: Iterable[ast.Module]) -> None:
    """Check that no two modules define the same name: in one file they would overwrite it."""
    names = [name for tree in trees for node in tree.body for name in _defined(node)]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"{sorted(twice)}: rename one of the two, the exported file has both"


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
