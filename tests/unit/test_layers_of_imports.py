"""Imports inside nar_plugins point down, and no two files import one another, directly or in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Dict, Set

import pytest

import nar_plugins

PACKAGE = Path(nar_plugins.__file__).parent
# from the top; a layer imports from itself and from those below it
LAYERS = (
    {"cli"},
    {"tasks", "criterions", "corpora", "measure", "hub", "demo", "export", "pruning"},
    {"generators", "models"},
    {"checkpoint_io"},
    {"modules", "data"},
    {"compat"},
)
HEIGHT = {folder: -number for number, layer in enumerate(LAYERS) for folder in layer}


def modules() -> Dict[str, Path]:
    """Dotted name -> file, of every module; a package goes by the name of its folder."""
    files = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}


def imported(source: str, package: str, names: Set[str]) -> Set[str]:
    """The modules among ``names`` that a module's text imports, wherever in it, relatively or not.

    Args:
        package: the one that the module is in, for relative imports.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            whole = ".".join([*base, node.module] if node.module else base)
            # of "from package import x" it is x where that is a module
            found |= {f"{whole}.{alias.name}" if f"{whole}.{alias.name}" in names else whole for alias in node.names}
    return found & names


def graph() -> Dict[str, Set[str]]:
    """Every module -> the modules of nar_plugins that it imports."""
    files = modules()
    edges = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        edges[name] = imported(path.read_text(encoding="utf-8"), package, set(files))
    return edges


def upward(edges: Dict[str, Set[str]]) -> list:
    """The imports of a higher layer, or, below the top, of the package itself, which imports all of them."""
    wrong = []
    for name, targets in edges.items():
        layer = name.split(".")[1] if "." in name else None
        for target in targets if layer else ():
            if HEIGHT[layer] < (HEIGHT[target.split(".")[1]] if "." in target else 0):
                wrong.append(f"{name} imports {target}")
    return sorted(wrong)


def circle(edges: Dict[str, Set[str]]) -> list:
    """The modules of one circle; none: empty."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_folder_has_a_layer():
    folders = {name.split(".")[1] for name in modules() if "." in name}
    assert folders == HEIGHT.keys()


def test_imports_point_down():
    assert upward(graph()) == []


def test_no_files_import_one_another():
    assert circle(graph()) == []


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("from nar_plugins.tasks import base", "nar_plugins.models.cmlm imports nar_plugins.tasks.base"),
        ("import nar_plugins.cli.bench", "nar_plugins.models.cmlm imports nar_plugins.cli.bench"),
        (
            "from ..criterions.nar_loss import NarLoss",
            "nar_plugins.models.cmlm imports nar_plugins.criterions.nar_loss",
        ),
        ("def late():\n    import nar_plugins", "nar_plugins.models.cmlm imports nar_plugins"),
    ],
)
def test_an_upward_import_would_be_found(line, wrong):
    edges = graph()
    edges["nar_plugins.models.cmlm"] |= imported(line, "nar_plugins.models", set(edges))
    assert upward(edges) == [wrong]


def test_a_circle_would_be_found():
    edges = graph()
    assert "nar_plugins.models.contract" in edges["nar_plugins.models.base"]
    edges["nar_plugins.models.contract"].add("nar_plugins.models.base")
    assert {"nar_plugins.models.contract", "nar_plugins.models.base"} <= set(circle(edges))
