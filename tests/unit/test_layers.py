"""The shape of the package: no circle of imports, and no file that is too long. `lint-imports` holds the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "celery_neli").rglob("*.py"))
}
MOST_LINES = 400


def imports_of(module: str, tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """Yield the known modules that this one imports anywhere: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [(f"{node.module}.{alias.name}", str(node.module)) for alias in node.names]
        else:
            continue
        for name, parent in names:
            found = name if name in known else parent
            if found in known and found != module:
                yield found


def graph() -> dict[str, set[str]]:
    # The root is left out: it names the public classes of all layers, and loads them when they are first asked for.
    known = [each for each in FILES if each != "celery_neli"]
    return {each: set(imports_of(each, ast.parse(FILES[each].read_text()), known)) for each in known}


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a circle, without its repeated end; an empty list if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as exc:
        return list(exc.args[1][1:])
    return []


def test_no_import_circle_between_files() -> None:
    """A file can be read once those that it imports have been, whatever a function or a type checker imports."""
    assert circle(graph()) == []


def test_a_circle_in_a_function_or_for_types_is_found() -> None:
    """The test above sees what `import` at run time does not."""
    sources = {
        "p.a": "def f():\n    from p import b",
        "p.b": "if TYPE_CHECKING:\n    from p.c import C",
        "p.c": "import p.a",
    }
    edges = {each: set(imports_of(each, ast.parse(text), sources)) for each, text in sources.items()}
    assert sorted(circle(edges)) == ["p.a", "p.b", "p.c"]


def test_no_file_is_too_long() -> None:
    """One idea to a file."""
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > MOST_LINES}
    assert long == {}
