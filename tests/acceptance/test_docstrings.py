"""What the docstrings of the packages say, held by rules that the syntax alone can check.

1. Every module, public class, function and method has one. A name with a leading underscore is not public, nor is what stands inside
   a function. A method needs none where a class that it fills in says it: a base of ours, or a Protocol of ours whose public methods
   the class all has.
2. A function that takes or returns arrays (`NDArray`, `mx.array` or an alias of them) names a shape in brackets or a dtype.
3. A number of a name in `PHYSICAL` has a unit.
4. A function that raises an error itself, and lets it out, names its class. Not a command, whose docstring is its help.

For 2 to 4 the docstring of the function, of its class, or of the method that it fills in counts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.acceptance.test_layout import OURS, ROOT, name_of

Function = ast.FunctionDef | ast.AsyncFunctionDef

ARRAYS = {"NDArray", "ndarray", "array"}
SHAPE = re.compile(
    r"\[[^\]\n]+\]|\((n|\d|[a-z]+,)|float(16|32|64)|u?int(8|16|32|64)|bool|dtype|shape|scalar|datetime64"
)
PHYSICAL = re.compile(
    r"(.*_)?(demand|load|power|energy|prices?|costs?|capacity|temperature|timeout|delay|patience|interval|duration|latency|silence)"
    r"|rate|speed|bandwidth"
)
UNIT = re.compile(
    r"\bMWh?\b|\$|°C|\bhours?\b|\bs\b|\b[Ss]econds?\b|\bms\b|\bminutes?\b|\bbytes?\b|\bMB\b|\b[Ss]hares?\b|\bpeaks?\b|\bunit"
)


@dataclass
class Module:
    """A module's public classes and functions; `arrays`: names that mean an array in its annotations."""

    path: Path
    tree: ast.Module
    arrays: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.arrays = set(ARRAYS)
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and self.means_array(node.value):
                self.arrays |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def means_array(self, annotation: ast.AST | None) -> bool:
        """Whether an array is anywhere in it; `mx.array` and `np.ndarray` are attributes, aliases are names."""
        names = {
            one.id if isinstance(one, ast.Name) else one.attr
            for one in ast.walk(annotation or ast.Pass())
            if isinstance(one, ast.Name | ast.Attribute)
        }
        return bool(names & self.arrays)

    def functions(self) -> Iterator[tuple[Function, ast.ClassDef | None]]:
        """Public functions, and public methods with their class."""
        for node in self.tree.body:
            if isinstance(node, Function) and not node.name.startswith("_"):
                yield node, None
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for method in methods(node).values():
                    yield method, node


def methods(node: ast.ClassDef) -> dict[str, Function]:
    """Its public methods; the first of a name, so that a property's setter is its getter."""
    found: dict[str, Function] = {}
    for one in node.body:
        if isinstance(one, Function) and not one.name.startswith("_"):
            found.setdefault(one.name, one)
    return found


def modules() -> list[Module]:
    paths = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
    return [Module(path, ast.parse(path.read_text())) for path in paths]


MODULES = modules()
CLASSES = {node.name: node for module in MODULES for node in module.tree.body if isinstance(node, ast.ClassDef)}


def bases(node: ast.ClassDef) -> set[str]:
    return {last_name(base) for base in node.bases}


def filled_in(node: ast.ClassDef) -> list[ast.ClassDef]:
    """Classes of ours that it fills in: its bases, and Protocols of which it has every public method; and what those fill in."""
    protocols = [one for one in CLASSES.values() if "Protocol" in bases(one) and one is not node and methods(one)]
    found = [CLASSES[name] for name in bases(node) if name in CLASSES]
    found += [one for one in protocols if methods(one).keys() <= methods(node).keys()]
    return found + [further for one in found for further in filled_in(one)]


def said_of(function: Function, owner: ast.ClassDef | None) -> str:
    """What counts for it: its own docstring, its class's, and that of the same method of what the class fills in."""
    said = [ast.get_docstring(function)]
    if owner:
        said.append(ast.get_docstring(owner))
        for other in filled_in(owner):
            if function.name in methods(other):
                said += [ast.get_docstring(methods(other)[function.name]), ast.get_docstring(other)]
    return "\n".join(text for text in said if text)


def has_docstring(function: Function, owner: ast.ClassDef | None) -> bool:
    if ast.get_docstring(function):
        return True
    others = filled_in(owner) if owner else []
    return any(ast.get_docstring(methods(other).get(function.name, function)) for other in others)


def parameters(function: Function) -> list[ast.arg]:
    given = function.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]


def raised(function: Function) -> set[str]:
    """Names of the classes that it raises itself and lets out; not what stands in a function inside it."""

    def within(node: ast.AST, caught: set[str]) -> Iterator[str]:
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            return
        if isinstance(node, ast.Raise) and node.exc is not None:
            name = last_name(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            if (name.endswith(("Error", "Exception")) or name in CLASSES) and name not in caught:
                yield name
        for part, value in ast.iter_fields(node):
            inside = caught
            if isinstance(node, ast.Try) and part == "body":
                inside = caught | {last_name(one) for each in node.handlers if each.type for one in listed(each.type)}
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST):
                    yield from within(one, inside)

    return {name for node in function.body for name in within(node, set()) if not name.startswith("_")}


def is_command(function: Function) -> bool:
    """Typer prints its docstring as help: what it raises is said in README's exit codes."""
    calls = [one.func for one in function.decorator_list if isinstance(one, ast.Call)]
    return any(last_name(call) == "command" for call in calls)


def last_name(node: ast.AST) -> str:
    """`Error` of `Error` and of `module.Error`."""
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def listed(node: ast.expr) -> list[ast.expr]:
    """What stands in a tuple; else the node."""
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]


def faults(module: Module) -> Iterator[str]:
    """One line for each rule that a docstring of the module breaks."""
    path = module.path.relative_to(ROOT) if module.path.is_relative_to(ROOT) else module.path
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
            yield f"{path}:{node.lineno} {node.name}: no docstring"
    for function, owner in module.functions():
        where = f"{path}:{function.lineno} {owner.name + '.' if owner else ''}{function.name}"
        if not has_docstring(function, owner):
            yield f"{where}: no docstring"
            continue
        said = said_of(function, owner)
        annotated = [one.annotation for one in parameters(function)]
        if any(map(module.means_array, [*annotated, function.returns])) and not SHAPE.search(said):
            yield f"{where}: takes or returns arrays; name a shape in brackets, or a dtype"
        for one in parameters(function):
            number = one.annotation is not None and re.search(r"\b(float|int)\b", ast.unparse(one.annotation))
            if (number or module.means_array(one.annotation)) and PHYSICAL.fullmatch(one.arg) and not UNIT.search(said):
                yield f"{where}: {one.arg} has no unit"
        for name in sorted(raised(function)):
            if name not in said and not is_command(function):
                yield f"{where}: raises {name}; name it"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: name_of(module.path))
def test_docstrings_say_what_the_rules_ask(module: Module) -> None:
    broken = list(faults(module))
    assert not broken, "\n".join(broken)


def test_every_module_has_a_first_line() -> None:
    """Also scripts and tests; an empty file says nothing and needs nothing."""
    paths = [path for folder in (*OURS, "scripts", "tests") for path in (ROOT / folder).rglob("*.py")]
    bare = [path for path in paths if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))]
    assert not bare


WRONG = '''"""A module."""
Hourly = NDArray[np.float64]
class Bare:
    pass
class Source(Protocol):
    """S."""
    def read(self) -> bytes:
        """The bytes."""
class File:
    """F."""
    def read(self) -> bytes:
        raise OSError("gone")
    def close(self):
        pass
def scaled(values: Hourly) -> Hourly:
    """Times two."""
def wait(timeout: float) -> None:
    """Until it is over; TimeoutError."""
    def inner():
        raise KeyError
    raise TimeoutError("over")
'''


def test_each_rule_can_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Module(Path("m.py"), ast.parse(WRONG))
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef):
            monkeypatch.setitem(CLASSES, node.name, node)
    assert list(faults(module)) == [
        "m.py:3 Bare: no docstring",
        "m.py:11 File.read: raises OSError; name it",
        "m.py:13 File.close: no docstring",
        "m.py:15 scaled: takes or returns arrays; name a shape in brackets, or a dtype",
        "m.py:17 wait: timeout has no unit",
    ]
