"""The house in numbers. To breach one is a choice: edit the number here, and say why."""

import ast
import statistics

import pytest

from house.sources import PACKAGE, ROOT, modules

FUNCTION_MEDIAN, FUNCTION_MOST, FUNCTION_LONGEST = 12, 35, 60
FILE_MEDIAN, FILE_LONGEST = 180, 400
TESTS_TO_SOURCE = 0.6
TABLES: set[str] = set()
"""Modules that are a table of data, which may be longer than a file of code."""


def functions() -> dict[str, int]:
    """Every function of the package to its number of lines."""
    return {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def files() -> dict[str, int]:
    """Every file of the package to its number of lines, but for tables."""
    return {
        str(path.relative_to(PACKAGE)): path.read_text("utf-8").count("\n")
        for path in PACKAGE.rglob("*.py")
        if str(path.relative_to(PACKAGE)) not in TABLES
    }


def test_functions_are_short() -> None:
    sizes = functions()
    assert [name for name, size in sizes.items() if size > FUNCTION_LONGEST] == []
    assert statistics.median(sizes.values()) <= FUNCTION_MEDIAN
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= FUNCTION_MOST


def test_files_are_short() -> None:
    sizes = files()
    assert {name: size for name, size in sizes.items() if size > FILE_LONGEST} == {}
    assert statistics.median(sizes.values()) <= FILE_MEDIAN


def test_tests_are_not_much_shorter_than_the_source() -> None:
    tests = sum(path.read_text("utf-8").count("\n") for path in ROOT.glob("tests/**/*.py"))
    assert tests >= TESTS_TO_SOURCE * sum(files().values())


def test_no_module_imports_itself_in_a_circle() -> None:
    reach = {name: imports(name, tree) for name, tree in modules().items()}
    for _ in reach:
        for name, found in reach.items():
            reach[name] = found.union(*(reach[other] for other in found))
    assert [name for name, found in reach.items() if name in found] == []


def imports(name: str, tree: ast.Module) -> set[str]:
    """Modules of the package that come with `name`; imports within functions are not among them."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return (found & modules().keys()) - {name}


@pytest.mark.parametrize("word", ["print", "breakpoint"])
def test_only_doors_print(word: str) -> None:
    loud = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == word
        and not name.startswith("pixsigma.cli")
    ]
    assert loud == []


def test_every_signature_is_typed() -> None:
    untyped = [
        f"{name}:{node.lineno} {node.name}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is None
    ]
    assert untyped == []
