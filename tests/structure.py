"""Figures of the tree's structure beside their limits: `make structure` prints them."""

import ast
import collections
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LIMITS", "Figure", "measure"]

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src/edgewright"
# Names that many modules have on purpose: every command is registered and run, every migration upgrades.
SHARED_NAMES = frozenset("register run main upgrade revision down_revision".split())
# Calls that take any number of columns or layers.
VARIADIC = frozenset("Table create_table Sequential Ring".split())
LIMITS = {
    "import circles": 0,
    "imports against the layers": 0,
    "median lines of a file": 130,
    "lines of the largest file": 400,
    "files in the largest folder": 20,
    "public names in more than one module": 0,
    "calls with eight or more positional arguments": 0,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, and where it comes from.

    Attributes:
        name: One of `LIMITS`.
        value: As measured.
        places: Files, names or lines that stand for it, the worst first.
    """

    name: str
    value: float
    places: tuple[str, ...]


def measure(sources: Path = SOURCES) -> list[Figure]:
    """Return all figures of the tree under a folder of modules."""
    modules = {path: path.read_text("utf-8") for path in sorted(sources.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in modules.items()}
    lines = {path: text.count("\n") for path, text in modules.items()}
    folders = collections.Counter(
        path.parent for path in sources.rglob("*") if path.is_file() and path.suffix not in {".pyc", ".so"}
    )
    longest = sorted(lines, key=lines.__getitem__, reverse=True)
    fullest = [folder for folder, _ in folders.most_common()]
    circles, upward = _import_contracts()
    repeated = _repeated_names(trees, sources)
    positional = [
        f"{path.relative_to(sources)}:{line}" for path, tree in trees.items() for line in _positional(tree)
    ]
    return [
        Figure("import circles", len(circles), tuple(circles)),
        Figure("imports against the layers", len(upward), tuple(upward)),
        Figure("median lines of a file", statistics.median(lines.values()), ()),
        Figure("lines of the largest file", lines[longest[0]], _above(longest, lines, sources, 400)),
        Figure("files in the largest folder", folders[fullest[0]], _above(fullest, folders, sources, 20)),
        Figure("public names in more than one module", len(repeated), tuple(repeated)),
        Figure("calls with eight or more positional arguments", len(positional), tuple(positional)),
    ]


def _above(paths: list[Path], sizes: dict[Path, int], sources: Path, limit: int) -> tuple[str, ...]:
    return tuple(f"{path.relative_to(sources)} ({sizes[path]})" for path in paths if sizes[path] > limit)


def _import_contracts() -> tuple[list[str], list[str]]:
    """Return the contracts of `[tool.importlinter]` that are broken: those about circles, and the others."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    broken = [line.removesuffix(" BROKEN") for line in ended.stdout.splitlines() if line.endswith(" BROKEN")]
    if ended.returncode and not broken:
        raise RuntimeError(ended.stdout + ended.stderr)
    circles = [name for name in broken if "circle" in name.lower()]
    return circles, [name for name in broken if name not in circles]


def _repeated_names(trees: dict[Path, ast.Module], sources: Path) -> list[str]:
    places: dict[str, list[str]] = collections.defaultdict(list)
    for path, tree in trees.items():
        for name in sorted(set(_public_names(tree))):
            places[name].append(str(path.relative_to(sources)))
    return [
        f"{name}: {', '.join(found)}"
        for name, found in sorted(places.items())
        if len(found) > 1 and name not in SHARED_NAMES
    ]


def _public_names(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [statement.name]
        elif isinstance(statement, ast.Assign):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names = [statement.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def _positional(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) >= 8:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name not in VARIADIC:
                yield node.lineno


def main() -> None:
    """Print all figures beside their limits."""
    for figure in measure():
        mark = "ok" if figure.value <= LIMITS[figure.name] else "TOO MANY"
        print(f"{figure.name:48} {figure.value:>6g}   at most {LIMITS[figure.name]:>3}   {mark}")
        if figure.value > LIMITS[figure.name]:
            print(*(f"    {place}" for place in figure.places), sep="\n")


if __name__ == "__main__":
    main()
