"""Conditions in the Common Expression Language: `{"cel": "inputs.n > 2 && has(inputs.x)"}`. Pure.

An expression is read here first, token by token, so that it is known without running it what it
refers to, and that it cannot hold up whoever decides: it is short, it names nothing but `inputs`,
`steps.ID.outputs` and `execution.id`, it calls nothing but FUNCTIONS, and it goes at most once
through a list, by `all` or `exists`; `map` and `filter`, which take quadratic time, are not there.
It sees neither a clock nor chance.

The library is given each reference as a variable of its own: a value that nobody names is not
copied, and `has(…)` of a reference is known before. What a condition comes to is true or false;
everything else is an error (`condition_failed`), and never a false.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from mcp_bus.config import CEL_CHARS_MAX, CEL_ITEMS_MAX, OPERAND_BYTES_MAX
from mcp_bus.domain.references import MISSING, Path, look_up
from mcp_bus.errors import Refused
from mcp_bus.strict_json import dumps

ROOTS = ("inputs", "steps", "execution")
THROUGH = ("all", "exists")
FUNCTIONS = (
    *("size", "contains", "startsWith", "endsWith", "matches", "has"),
    *("int", "double", "string", *THROUGH),
)
WORDS = ("true", "false", "null", "in")

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>(?:\d+\.\d+|\d+)(?:[eE][+-]?\d+)?u?(?![A-Za-z0-9_]))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||[=!<>]=|/(?!/)|[-+*%<>!?:,.()\[\]{}])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as it is written, the path that it means, and where the tokens stand."""

    text: str
    path: Path
    first: int
    last: int
    asked: bool = False  # only whether it has a value: has(…)
    repeated: bool = False  # it is looked at for each item of a list


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass(slots=True)
class Expression:
    """An expression that was read; Refused `bad_condition` for what may not be run."""

    source: str
    references: list[Reference] = field(default_factory=list)
    through: str = ""  # the text of the reference whose items it goes through
    _tokens: list[_Token] = field(default_factory=list)
    _own: tuple[str, int, int] = ("", 0, 0)  # the name of an item, and where it means one

    def __post_init__(self) -> None:
        if len(self.source) > CEL_CHARS_MAX:
            raise _bad(f"an expression has at most {CEL_CHARS_MAX} characters")
        self._tokens = list(_tokens(self.source))
        self._calls()
        at = 0
        while at < len(self._tokens):
            at = self._name(at)

    def renamed(self) -> str:
        """The expression with a variable in the place of each reference."""
        said, end = "", 0
        for number, reference in enumerate(self.references):
            first, last = self._tokens[reference.first], self._tokens[reference.last]
            said += self.source[end : first.at] + _variable(number)
            end = last.at + len(last.text)
        return said + self.source[end:]

    def _text(self, at: int) -> str:
        return self._tokens[at].text if 0 <= at < len(self._tokens) else ""

    def _calls(self) -> None:
        """What it calls: known functions, and one way through a list."""
        matches = []
        for at, token in enumerate(self._tokens):
            if token.kind != "name" or self._text(at + 1) != "(":
                continue
            if token.text not in FUNCTIONS:
                raise _bad(f"there is no function {token.text}: there are {', '.join(FUNCTIONS)}")
            if token.text == "matches":
                matches.append(at)
            if token.text in THROUGH:
                if self._own[0]:
                    raise _bad("it goes through more than one list (all, exists)")
                name = self._text(at + 2)
                if self._text(at - 1) != "." or self._text(at + 3) != "," or not _free(name):
                    raise _bad(f"it is written REFERENCE.{token.text}(item, …)")
                self._own = (name, at + 4, self._closed(at + 1))
        if len(matches) > 1 or any(self._inside(at) for at in matches):
            raise _bad("it has one matches at most, and none for each item of a list")

    def _closed(self, at: int) -> int:
        """Where the bracket that opens at a token is closed."""
        depth = 0
        for index in range(at, len(self._tokens)):
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(self._text(index), 0)
            if depth == 0:
                return index
        raise _bad("a bracket is not closed")

    def _inside(self, at: int) -> bool:
        return self._own[1] <= at < self._own[2]

    def _name(self, at: int) -> int:
        """Read what stands at a token; where the next one is."""
        token = self._tokens[at]
        if token.kind != "name" or self._text(at - 1) == "." or token.text in WORDS:
            return at + 1
        if token.text in ROOTS:
            return self._reference(at)
        item = token.text == self._own[0] and at >= self._own[1] - 2 and at < self._own[2]
        if not item and self._text(at + 1) != "(":
            raise _bad(f"{token.text} is none of {', '.join(ROOTS)}")
        return at + 1

    def _reference(self, first: int) -> int:
        last, path = first, list[str | int]([self._text(first)])
        while (part := self._part(last + 1)) is not None:
            path.append(part[0])
            last = part[1]
        text = self.source[self._tokens[first].at :]
        text = text[: self._tokens[last].at + len(self._text(last)) - self._tokens[first].at]
        if (path[0] == "steps" and (len(path) < 3 or path[2] != "outputs")) or (
            path[0] == "execution" and path != ["execution", "id"]
        ):
            said = f"{text} is neither inputs… nor steps.ID.outputs… nor execution.id"
            raise Refused(said, code="unknown_reference")
        asked = (self._text(first - 2), self._text(first - 1)) == ("has", "(")
        asked = asked and self._text(last + 1) == ")"
        if self._text(last + 2) in THROUGH and self._text(last + 3) == "(":
            self.through = text
        reference = Reference(text, tuple(path), first, last, asked, self._inside(first))
        if asked:
            reference = Reference(text, tuple(path), first - 2, last + 1, True)
        self.references.append(reference)
        return last + 1

    def _part(self, at: int) -> tuple[str | int, int] | None:
        """The next part of a path, and its last token: `.name`, `[0]` or `["name"]`."""
        if self._text(at) == ".":
            name = self._tokens[at + 1] if at + 1 < len(self._tokens) else None
            called = self._text(at + 2) == "("
            return (name.text, at + 1) if name and name.kind == "name" and not called else None
        if self._text(at) == "[" and self._text(at + 2) == "]":
            inner = self._tokens[at + 1]
            if inner.kind == "text" and "\\" not in inner.text:
                return inner.text[1:-1], at + 2
            if inner.kind == "number" and inner.text.isdecimal():
                return int(inner.text), at + 2
        return None


@lru_cache(4096)
def read(source: str) -> Expression:
    """An expression, read and checked; Refused `bad_condition` or `unknown_reference`."""
    expression = Expression(source)
    if any(token.text in THROUGH for token in expression._tokens) and not expression.through:
        raise _bad("all and exists go through the items of a reference")
    return expression


def check(source: object) -> None:
    """Refused `bad_condition` or `unknown_reference` for what is no expression of ours."""
    if not isinstance(source, str):
        raise _bad("it is a text")
    read(source)
    try:
        _library().compile(source)
    except ValueError as error:
        raise _bad(str(error).replace("\n", " ")) from None


def paths(source: str) -> Iterator[Path]:
    """The values that an expression refers to; none of one that cannot be read."""
    try:
        yield from (reference.path for reference in read(source).references)
    except Refused:
        return


def operands(source: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """Each reference that has a value, as it is written, and the value."""
    found = {r.text: look_up(r.path, context) for r in read(source).references}
    return {text: value for text, value in found.items() if value is not MISSING}


def holds(source: str, context: Mapping[str, Any]) -> bool:
    """Whether it is true; Refused `condition_failed` where it is neither true nor false."""
    expression = read(source)
    try:
        result = _program(source).execute(_variables(expression, context))
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise _failed(source, _told(expression, context, error)) from None
    if not isinstance(result, bool):
        raise _failed(source, f"it comes to {type(result).__name__}, neither true nor false")
    return result


def _variables(expression: Expression, context: Mapping[str, Any]) -> dict[str, Any]:
    """The values of its references by the names of their variables; Refused for what would take
    too long."""
    found: dict[str, Any] = {}
    for number, reference in enumerate(expression.references):
        value = look_up(reference.path, context)
        if reference.asked:
            found[_variable(number)] = value is not MISSING
            continue
        if value is MISSING:
            continue
        items = len(value) if isinstance(value, (list, dict)) else 0
        if reference.text == expression.through and items > CEL_ITEMS_MAX:
            raise Refused(f"{reference.text} has {items} items, more than {CEL_ITEMS_MAX}")
        if reference.repeated and len(dumps(value)) > OPERAND_BYTES_MAX:
            said = f"{reference.text} takes more than {OPERAND_BYTES_MAX} bytes, for each item"
            raise Refused(said)
        found[_variable(number)] = value
    return found


def _told(expression: Expression, context: Mapping[str, Any], error: BaseException) -> str:
    """An error of the library in the words of who wrote the expression."""
    text = " ".join(str(error).split())
    for number, reference in reversed(list(enumerate(expression.references))):
        if _variable(number) in text:
            if look_up(reference.path, context) is MISSING:
                return f"{reference.text} has no value"
            text = text.replace(_variable(number), reference.text)
    return f"{text} is not there" if isinstance(error, KeyError) else text


def _tokens(source: str) -> Iterator[_Token]:
    at, before = 0, ""
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None or found.lastgroup is None:
            raise _bad(f"it cannot be read from {source[at : at + 10]!r} on")
        kind, text = found.lastgroup, found[0]
        if kind == before == "text" or (kind == "name" and text.startswith("__")):
            raise _bad(f"{text} has no place there")
        if kind != "space":
            yield _Token(kind, text, at)
        before, at = kind, found.end()


def _free(name: str) -> bool:
    """Whether an item may have this name."""
    return name.isidentifier() and name not in (*ROOTS, *WORDS, *FUNCTIONS)


def _variable(number: int) -> str:
    return f"__{number}__"


def _bad(detail: str) -> Refused:
    return Refused(detail, code="bad_condition")


def _failed(source: str, why: str) -> Refused:
    return Refused(f"the condition {source!r} cannot be judged: {why}", code="condition_failed")


@lru_cache(1024)
def _program(source: str) -> Any:
    return _library().compile(read(source).renamed())


@cache
def _library() -> Any:
    """The library's compiled half: the package itself loads a console, which takes half a
    second."""
    package = importlib.util.find_spec("cel")
    inside = package.submodule_search_locations if package else None
    found = importlib.machinery.PathFinder.find_spec("cel", inside)
    if found is None or found.loader is None:
        raise ModuleNotFoundError("common-expression-language is not installed", name="cel")
    library = importlib.util.module_from_spec(found)
    found.loader.exec_module(library)
    return library
