"""Renders the public Python interface, `aft_harness.__all__`, as Markdown: signatures and Google-style docstrings.

Knows `inspect` and the sections of a docstring. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

WIDTH = 100
"""Characters of a signature's line; a longer signature has one line for each parameter."""

HEAD = """# The Python interface

Made by `python scripts/tools/docs.py` from the docstrings. Everything here is imported from the package itself:

```python
import aft_harness as aft
```

The names, defaults and errors are those of the commands. `aft.__version__` is the version, as text.
"""

STARS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
"""In front of a parameter that takes all others."""

LISTS = ("Args", "Attributes", "Raises")
"""Sections of a docstring that describe names."""

_SECTION = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Source|Yields):")
_ENTRY = re.compile(r"(?P<name>\*{0,2}\w+(?:\.\w+)*): (?P<text>.*)")
_INLINE = re.compile(r"(?P<before>\S.*) {2,}# doctest: .*")


def render() -> str:
    """The page: functions, then classes, each in alphabetical order."""
    import aft_harness

    public = {name: getattr(aft_harness, name) for name in sorted(aft_harness.__all__, key=str.casefold)}
    functions = {name: value for name, value in public.items() if inspect.isfunction(value)}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    parts = [HEAD]
    parts += [_section("##", name, name, function) for name, function in functions.items()]
    parts += [part for name, value in classes.items() for part in _class(name, value)]
    return "\n".join(parts)


def _class(name: str, value: type) -> Iterator[str]:
    """A class with its constructor, and its public properties and methods in the order of the source."""
    documented = "__init__" in vars(value) and not dataclasses.is_dataclass(value)
    body = [markdown(inspect.getdoc(value) or "")]
    if documented:
        body.append(markdown(inspect.getdoc(value.__init__) or ""))  # type: ignore[misc]
    head = _fenced(signature(name, value)) if not issubclass(value, BaseException) else ""
    yield "\n\n".join(part for part in (f"## {name}", head, *body) if part) + "\n"
    properties = []
    ours = [owner for owner in reversed(value.__mro__) if owner.__module__.startswith("aft_harness.")]
    for member, definition in {name: found for owner in ours for name, found in vars(owner).items()}.items():
        if member.startswith("_"):
            continue
        if isinstance(definition, property | cached_property):
            properties.append(f"- `{member}`: {_line(inspect.getdoc(definition) or '')}")
        elif isinstance(definition, classmethod) or inspect.isfunction(definition):
            yield _section("###", f"{name}.{member}", f"{name}.{member}", getattr(value, member))
    if properties:
        yield "\n".join([f"### Properties of {name}", "", *properties, ""])


def _section(level: str, title: str, name: str, function: Callable[..., Any]) -> str:
    return f"{level} {title}\n\n{_fenced(signature(name, function))}\n\n{markdown(inspect.getdoc(function) or '')}\n"


def _fenced(text: str) -> str:
    return f"```python\n{text}\n```"


def signature(name: str, value: Callable[..., Any]) -> str:
    """How something is called: in one line, or with a line for each parameter."""
    found = inspect.signature(value)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    parts: list[str] = []
    keyword_only = False
    for parameter in parameters:
        starred = parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        if parameter.kind == parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
        keyword_only = keyword_only or starred
        parts.append(_parameter(parameter))
    returned = found.return_annotation
    end = "" if inspect.isclass(value) or returned is found.empty else f" -> {_annotation(returned)}"
    short = f"{name}({', '.join(parts)}){end}"
    if len(short) <= WIDTH:
        return short
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = STARS.get(parameter.kind.name, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    shown = f'"{default}"' if isinstance(default, str) else getattr(default, "__name__", None) or repr(default)
    return f"{text} = {'...' if shown.startswith('<') else shown}"  # a dataclass's default factory has no short form


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown.

    Args:
        docstring: Without its indentation, as `inspect.getdoc` returns it.
    """
    blocks: list[str] = []
    title = ""
    lines: list[str] = []
    for line in [*docstring.splitlines(), "End:"]:
        match = _SECTION.fullmatch(line)
        if match or line == "End:":
            if text := textwrap.dedent("\n".join(lines)).strip("\n"):
                blocks.append(_block(title, text))
            title, lines = match[1] if match else "", []
        else:
            lines.append(line)
    return "\n\n".join(blocks)


def _block(title: str, text: str) -> str:
    if not title:
        return text
    if title.startswith("Example"):
        code = "\n".join(match["before"] if (match := _INLINE.fullmatch(line)) else line for line in text.splitlines())
        return f"Example:\n\n```pycon\n{code}\n```"
    if title in LISTS:
        return f"{title}:\n\n" + "\n".join(f"- `{name}`: {description}" for name, description in _entries(text))
    return f"{title}: {_line(text)}"


def _entries(text: str) -> list[tuple[str, str]]:
    """Names and their descriptions, which may go on in indented lines."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            found.append((match["name"], match["text"]))
        elif found:
            name, description = found[-1]
            found[-1] = name, f"{description} {line.strip()}"
    return found


def _line(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())
