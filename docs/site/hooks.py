"""MkDocs hooks: the table of configuration keys, and the tutorial and the kernels' READMEs as pages of the site.

The schema documents each field by the string below it. Python does not keep these strings, so they are read from the
syntax tree. The hooks import no project code.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
MARKER = "<!-- configuration keys -->"
SCHEMA = ROOT / "spdf_dist/config/schema.py"
VALUES = {
    ast.unparse(node.targets[0]): ast.unparse(node.value)
    for path in (SCHEMA, ROOT / "spdf_dist/config/values.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.Assign)
}
"""The named types of config values, by name."""
ROOTS = {"PretrainConfig": "`spdf pretrain`", "FinetuneConfig": "`spdf finetune`"}


Field = tuple[str, ast.expr, ast.expr | None, str]
"""Name, type, default and docstring of a field of a dataclass."""


def documented_fields(classes: dict[str, ast.ClassDef], class_: ast.ClassDef) -> list[Field]:
    """The fields of a dataclass, those of its bases first. A new default keeps the docstring of the base."""
    found: dict[str, Field] = {}
    for base in class_.bases:
        found |= {field[0]: field for field in documented_fields(classes, classes[ast.unparse(base)])}
    for name, annotation, default, text in own_fields(class_):
        found[name] = (name, annotation, default, text or (found[name][3] if name in found else ""))
    return list(found.values())


def own_fields(class_: ast.ClassDef) -> Iterator[Field]:
    """The fields that the class itself defines."""
    for statement, after in zip(class_.body, [*class_.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            yield statement.target.id, statement.annotation, statement.value, text


def default_text(default: ast.expr | None) -> str:
    """The default as YAML would have it."""
    match default:
        case None:
            return "required"
        case ast.Constant(value=None):
            return "null"
        case ast.Constant(value=bool() as value):
            return str(value).lower()
        case ast.Constant(value=value):
            return str(value) if value != "" else '""'
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Name(id="list"))]):
            return "[]"
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Name(id="dict"))]):
            return "{}"
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=body))]):
            return ast.unparse(body)
        case _:
            return ast.unparse(default)


def type_text(kind: str) -> str:
    """A type in the table. That of a key with a range is followed by the range."""
    match ast.parse(VALUES.get(kind, kind), mode="eval").body:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[base, ast.Call(args=[words, *_])])):
            return f"`{ast.unparse(base)}`, {ast.literal_eval(words).removeprefix('must ').removeprefix('be ')}"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[base, *_])):
            return f"`{ast.unparse(base)}`"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=words)):
            return ", ".join(f"`{ast.literal_eval(word)}`" for word in words)
        case _:
            return "`null`" if kind == "None" else f"`{kind}`"


def tables(classes: dict[str, ast.ClassDef], name: str, prefix: str) -> Iterator[str]:
    """The table of one class, then those of its sections."""
    class_ = classes[name]
    sections = []
    yield " ".join((ast.get_docstring(class_) or "").split()) + "\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for field, annotation, default, text in documented_fields(classes, class_):
        kind = ast.unparse(annotation)
        if kind in classes:
            sections.append((field, kind))
            continue
        if kind.removesuffix(" | None") in classes:  # a section that may be absent
            sections.append((field, kind.removesuffix(" | None")))
            kind = "section | None"
        alternatives = " or ".join(type_text(part) for part in kind.split(" | "))
        text = text.replace("|", "\\|")
        yield f"| `{prefix}{field}` | {alternatives} | `{default_text(default)}` | {text} |"
    for field, kind in sections:
        yield f"\n### {prefix}{field}\n"
        yield from tables(classes, kind, f"{prefix}{field}.")


def reference() -> str:
    """All keys of both commands, in Markdown."""
    tree = ast.parse(SCHEMA.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = []
    for root, command in ROOTS.items():
        parts += [f"\n## Keys of {command}\n", *tables(classes, root, "")]
    return "\n".join(parts)


def notebook_text(path: Path) -> str:
    """The cells of a notebook as Markdown, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
    return "\n\n".join(f"```python\n{text}\n```" if code else text for text, code in texts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are not Markdown files of the documentation's folder."""
    for notebook in sorted((ROOT / "docs/tutorials").glob("*.ipynb")):
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=notebook_text(notebook)))
    for readme in sorted((ROOT / "kernels").rglob("*.md")):
        text = readme.read_text(encoding="utf-8").replace("](../docs/", "](../")
        files.append(File.generated(config, str(readme.relative_to(ROOT)), content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the configuration keys, and make links to the kernels' READMEs links inside the site."""
    return markdown.replace(MARKER, reference()).replace("](../kernels/", "](kernels/")
