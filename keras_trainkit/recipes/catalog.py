"""What the kit offers, read from its own source text: no part is imported, so neither are TensorFlow and Keras."""

from __future__ import annotations

import ast
import fnmatch
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
_HEAD = re.compile(r'.*?:\n\s+r?""".*?"""', re.DOTALL)
KINDS = (
    "optimizers",
    "transforms",
    "schedules",
    "initializers",
    "regularizers",
    "layers",
    "callbacks",
    "precision",
    "pruning",
    "distribution",
    "training",
    "data",
    "finders",
    "recipes",
    "reporting",
    "resuming",
    "tuning",
)


@dataclass(frozen=True)
class Part:
    """One public class or function: subpackage, name, whether it is a class, the first paragraph of its docstring.

    `info` holds what an optimizer tells about itself (`optimizers.Info`), by name; it is None for other parts.
    """

    kind: str
    name: str
    is_class: bool
    summary: str
    info: dict[str, Any] | None = None


def parts(pattern: str | None = None) -> list[Part]:
    """Every public part, in the order of `KINDS` and then by name; `pattern` narrows it down, whatever the case.

    A pattern with `*`, `?` or `[` must match the whole name; any other is looked for inside the name. The name of a
    kind (`optimizers`) stands for all of that kind.

    >>> [part.name for part in parts("adam[w]")]
    ['AdamW']
    """
    found = [part for kind in KINDS for part in _of_kind(kind)]
    if pattern is None:
        return found
    wanted = pattern.lower()
    if wanted in KINDS:
        return [part for part in found if part.kind == wanted]
    if not any(sign in wanted for sign in "*?["):
        wanted = f"*{wanted}*"
    return [part for part in found if fnmatch.fnmatchcase(part.name.lower(), wanted)]


def optimizer_names() -> list[str]:
    """The names that a recipe's `optimizer` may have: the class names in lower case.

    >>> "radam" in optimizer_names()
    True
    """
    return [part.name.lower() for part in _of_kind("optimizers") if part.is_class]


def own_schedule(optimizer: str) -> str:
    """The schedule that an optimizer is made for: "constant" or "cosine".

    >>> own_schedule("adam"), own_schedule("schedulefreeadamw")
    ('cosine', 'constant')
    """
    return "constant" if (_optimizer(optimizer).info or {})["constant_rate"] else "cosine"


def own_rate(optimizer: str) -> float:
    """The learning rate that an optimizer has by default.

    >>> own_rate("lion"), own_rate("prodigy")
    (0.0001, 1.0)
    """
    return float(own_defaults(optimizer)["learning_rate"])


def own_defaults(optimizer: str) -> dict[str, Any]:
    """The arguments of an optimizer with their defaults, those that are plain values.

    >>> own_defaults("adamw")["beta_2"]
    0.999
    """
    node = _definition(_optimizer(optimizer).name, _PACKAGE / "optimizers" / "__init__.py", whole=True)
    initializer = next(each for each in ast.walk(node) if getattr(each, "name", "") == "__init__") if node else None
    if not isinstance(initializer, ast.FunctionDef):
        raise ValueError(f"the source of {optimizer} has no __init__")
    arguments = initializer.args
    pairs = [
        *zip(reversed(arguments.args), reversed(arguments.defaults), strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return {
        argument.arg: ast.literal_eval(value) for argument, value in pairs if value is not None and _is_plain(value)
    }


def _optimizer(name: str) -> Part:
    return next(part for part in _of_kind("optimizers") if part.is_class and part.name.lower() == name)


@cache
def _of_kind(kind: str) -> tuple[Part, ...]:
    init = _PACKAGE / kind / "__init__.py"
    whole = kind == "optimizers"
    nodes = {name: node for name in _public(_parse(init)) if (node := _definition(name, init, whole)) is not None}
    if whole:
        nodes = {name: node for name, node in nodes.items() if _is_named_optimizer(node)}
    found = [
        Part(kind, name, isinstance(node, ast.ClassDef), _summary(node), _info(node)) for name, node in nodes.items()
    ]
    return tuple(sorted(found, key=lambda part: (not part.is_class, part.name.lower())))


def _definition(name: str, file: Path, whole: bool = False) -> ast.ClassDef | ast.FunctionDef | None:
    """Where a name comes from, through imports inside the kit; None if it is neither a class nor a function.

    Unless it is wanted whole, it ends with its docstring: to parse all of every file takes longer than all else.
    """
    begin = None if whole else re.search(rf"^(class|def) {name}\b", _text(file), re.MULTILINE)
    head = None if begin is None else _HEAD.match(_text(file), begin.start())
    if head is not None:
        return ast.parse(head.group()).body[0]  # type: ignore[return-value]
    for node in _statements(_parse(file)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and ast.unparse(node.targets[0]) == name:
            return _definition(node.value.id, file, whole)  # another name for it
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name and (source := _source(node.module, node.level, file)):
                    return _definition(alias.name, source, whole)
    return None


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """Those of a module, and those for type checkers alone, where a package that loads its names later imports them."""
    inner = [each for node in tree.body if isinstance(node, ast.If) for each in node.body]
    return [*tree.body, *inner]


def _summary(node: ast.ClassDef | ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


@cache
def _source(module: str | None, level: int, file: Path) -> Path | None:
    steps = (module or "").split(".")
    if level == 1:
        path = file.parent.joinpath(*steps)
    elif steps[0] == _PACKAGE.name:
        path = _PACKAGE.joinpath(*steps[1:])
    else:
        return None
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()), None)


def _public(tree: ast.Module) -> set[str]:
    """What `__all__` names, and what is imported under its own name on purpose (`import Adam as Adam`)."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names |= {str(leaf.value) for leaf in ast.walk(node.value) if isinstance(leaf, ast.Constant)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    return names


def _is_named_optimizer(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a class says its year and paper (`info = Info(...)`), as the registry of optimizers asks of each."""
    return _assigned(node.body, "info") is not None


def _info(node: ast.ClassDef | ast.FunctionDef) -> dict[str, Any] | None:
    """The arguments of `info = Info(...)` in a class, with those that `Info` has by default; None without one."""
    call = _assigned(node.body, "info")
    if not isinstance(call, ast.Call):
        return None
    fields = _definition("Info", _PACKAGE / "optimizers" / "metadata.py", whole=True)
    declared = [line for line in fields.body if isinstance(line, ast.AnnAssign)] if fields is not None else []
    known = {ast.unparse(line.target): ast.literal_eval(line.value) for line in declared if line.value is not None}
    return known | {str(argument.arg): ast.literal_eval(argument.value) for argument in call.keywords}


def _is_plain(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _assigned(body: list[ast.stmt], name: str) -> ast.expr | None:
    for line in body:
        if isinstance(line, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in line.targets):
            return line.value
    return None


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(_text(path), filename=str(path))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
