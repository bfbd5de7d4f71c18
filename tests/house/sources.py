"""What the house tests read of the repository."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pixsigma"

_SKIPPED = {".git", ".venv", "__pycache__", "outputs", ".hypothesis", "build", "dist"}


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name of every module to its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"))
    return found


def texts() -> dict[Path, str]:
    """Every text file of the repository that people wrote."""
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".sh", ""}
    found = {}
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        hidden = _SKIPPED & set(inside) or any(part.endswith("_cache") for part in inside)
        if path.is_file() and not hidden and path.suffix in kinds:
            found[path] = path.read_text("utf-8")
    return found


def readme() -> str:
    """The README."""
    return (ROOT / "README.md").read_text("utf-8")


def fenced(text: str, *languages: str) -> list[str]:
    """The code blocks of a Markdown text in these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [code for language, code in blocks if language in languages]
