"""The files that commands are given: JSON, or YAML that says what JSON could say.

YAML is read as version 1.2 has it, so that `no` is a text and 010 is ten. What could be read in
two ways, or only by a program that trusts the file, is refused with its line: a key twice, a key
that is no text, an alias, a tag.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from yaml import Node, SafeLoader

YAML = (".yaml", ".yml")


def read(file: IO[str]) -> Any:
    """What a file says, YAML if it is named so; click.BadParameter for what cannot be read."""
    try:
        text = file.read()
        return _json(json.dumps(_yaml(text)) if file.name.endswith(YAML) else text)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} cannot be read: {error}") from None


def _json(text: str) -> Any:
    from mcp_bus.errors import MessageError
    from mcp_bus.strict_json import loads

    try:
        return loads(text.encode())
    except MessageError as error:
        raise ValueError(str(error)) from None


def _yaml(text: str) -> Any:
    import yaml

    try:
        node = yaml.compose(text, _loader())
        return None if node is None else _value(node, set())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"not YAML: {at}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None


# the core schema of YAML 1.2 (10.3.2), without what JSON has no word for: .inf, .nan, 0o7, 0xF
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+", int),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
}
_TAG = "tag:yaml.org,2002:"


@functools.cache
def _loader() -> type[SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, so PyYAML has it

    for name, (pattern, _) in _SCALARS.items():
        Loader.add_implicit_resolver(_TAG + name, re.compile(f"(?:{pattern})\\Z"), None)
    return Loader


def _value(node: Node, seen: set[int]) -> Any:
    """A node as JSON; ValueError with its line."""
    line, kind = node.start_mark.line + 1, node.tag.removeprefix(_TAG)
    if id(node) in seen:
        raise ValueError(f"line {line}: what stands here is named by an alias; write it out")
    seen.add(id(node))
    if kind == "map" and isinstance(node.value, list):
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = _value(key, seen)
            if not isinstance(name, str):
                raise ValueError(f"line {key.start_mark.line + 1}: the key {name!r} is no text")
            if name in found:
                raise ValueError(f"line {key.start_mark.line + 1}: {name} stands twice")
            found[name] = _value(value, seen)
        return found
    if kind == "seq" and isinstance(node.value, list):
        return [_value(item, seen) for item in node.value]
    if isinstance(node.value, str) and kind in _SCALARS:
        return _SCALARS[kind][1](node.value)
    if isinstance(node.value, str) and kind == "str":
        return node.value
    raise ValueError(f"line {line}: {node.tag} means nothing here")
