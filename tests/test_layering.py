"""Which package may import which, read off the source."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"nag", "acquisition", "trainers", "orchestrator"}
ALLOWED = {
    "nag": {"nag"},
    "acquisition": {"acquisition", "nag"},
    "trainers": {"trainers", "nag"},
    "orchestrator": PACKAGES,
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def imports(path):
    """Absolute names a file imports, wherever in it; modules of ours as far down as named."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in MODULES else node.module)
    return names


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def importers(*libraries):
    """Our packages that import any of some third-party libraries."""
    return {
        module.split(".")[0]
        for module, names in IMPORTS.items()
        if any(name.split(".")[0] in libraries for name in names)
    }


def test_the_packages_are_found():
    assert {name.split(".")[0] for name in MODULES} == PACKAGES
    assert "nag.spaces.base" in IMPORTS["nag.spaces.toy"]
    assert "torch" in {name.split(".")[0] for name in IMPORTS["nag.samplers"]}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_arrows_between_packages(package):
    for module, names in IMPORTS.items():
        if module.split(".")[0] == package:
            ours = {name.split(".")[0] for name in names} & PACKAGES
            assert ours <= ALLOWED[package], module


def test_ray_only_in_the_orchestrator():
    assert importers("ray") <= {"orchestrator"}


def test_nag_knows_no_data_frames():
    assert "nag" not in importers("pandas", "pyarrow")


def test_files_are_replaced_in_one_place_only():
    """`path.replace(other)`, `os.replace(...)`: see nag/files.py."""
    found = set()
    for module, path in MODULES.items():
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                of_os = isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
                if call.func.attr == "replace" and len(call.args) == 1 + of_os:
                    found.add(module)
    assert "nag.files" in found
    assert found <= {"nag.files"}


def test_no_cycles_between_modules():
    graph = {module: names & MODULES.keys() for module, names in IMPORTS.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert len(order) == len(MODULES)


def node(module):
    """A package inside one of ours, or a module that is in none."""
    return ".".join(module.split(".")[:2])


def test_no_cycles_between_packages_inside_packages():
    """As with modules, so with what they are grouped into: each is below what imports it."""
    graph = {}
    for module, names in IMPORTS.items():
        graph.setdefault(node(module), set()).update(map(node, names & MODULES.keys()))
    for name, below in graph.items():
        below.discard(name)
    assert "trainers.images" in graph["trainers.training"]
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("package", ["orchestrator", "trainers"])
def test_the_order_that_the_design_gives(package):
    """Every module of a row imports only from that row and those above; the last has the rest."""
    text = (ROOT / "docs" / "design.md").read_text()
    _, _, *rows = text.split(f"\n| {package}/ |")[1].split("\n\n")[0].splitlines()
    levels = {}
    for level, row in enumerate(rows):
        for name in re.findall(r"`(\w+)(?:/|\.py)`", row.split("|")[1]):
            assert list(ROOT.glob(f"{package}/{name}*")), name
            levels[f"{package}.{name}"] = level
    last = len(rows) - 1
    assert 5 < last < len(levels)
    for module in MODULES:
        if module.startswith(f"{package}."):
            for below in IMPORTS[module] & MODULES.keys():
                if below.startswith(f"{package}."):
                    assert levels.get(node(below), last) <= levels.get(node(module), last), module


def test_third_party_imports_are_declared():
    """What is imported but not in pyproject.toml would be missing after an installation."""
    declared = (ROOT / "pyproject.toml").read_text()
    known = PACKAGES | set(sys.stdlib_module_names)
    extern = {name.split(".")[0] for names in IMPORTS.values() for name in names} - known
    missing = {name for name in extern if f'"{name}' not in declared}
    assert not missing - {"PIL", "markdown_it"}  # distributed as pillow and markdown-it-py


def test_data_files_are_packaged():
    """What pyproject.toml does not list would be missing after an installation."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {
        path
        for package, patterns in listed["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*.*")}
    assert packaged == {path for path in files if path.suffix not in (".py", ".pyc")}
    assert {path.parent.name for path in packaged if path.name == "py.typed"} == PACKAGES
