"""Pages of the site that are made from what is in the repository: the README as its start, and every error.

mkdocs calls `on_files` (mkdocs.yml: hooks).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("launch", "data_pipelines", "world_model", "configs")


def on_files(files, config):
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=start()))
    files.append(File.generated(config, "errors.md", content=errors()))
    return files


def start() -> str:
    """The README; its links into docs/ stay inside the site, the others show the file's name alone."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", (ROOT / "README.md").read_text())
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.*")}

    def of_the_site(link: re.Match) -> str:
        return link[0] if link[2].startswith("http") or link[2].partition("#")[0] in pages else f"`{link[1]}`"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", of_the_site, text)


def errors() -> str:
    """Every sentence that the code raises, by module, with `…` for what it fills in."""
    lines = ["# Errors and ways out", "",
             "Every sentence with which this code refuses something, read from its sources when this page was built. A "
             "sentence says what was wrong, where (file, key, index, what was expected and found), and what to do; `…` "
             "stands for what it fills in. Search for the words that you see.", ""]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text())
            if found := sorted(set(raised(tree))):
                lines += [f"## {path.relative_to(ROOT)}", "", (ast.get_docstring(tree) or "").split("\n\n")[0], "",
                          "| raised as | sentence |", "|---|---|", *(f"| `{kind}` | {text} |" for kind, text in found),
                          ""]
    return "\n".join(lines)


def raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name of the exception, sentence) of each raise whose sentence is written there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if text := sentence(node.exc.args[0]):
                yield name, text


def sentence(node: ast.expr) -> str:
    """A string's words, safe in a table; "" of anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return sentence(node.left) + sentence(node.right)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    words = "".join(part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…"
                    for part in parts)
    words = re.sub(r"…+", "…", " ".join(words.split()))
    return "" if words.strip("… ") == "" else re.sub(r"([|<>*_\[\]`])", r"\\\1", words)
