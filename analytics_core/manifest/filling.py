"""``${NAME}``, ``${NAME:-default}`` and ``${file:path}`` in deployment manifests; ``$${`` is ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Filled(str):
    """Text that came from outside the manifest, so that it may stand for a number, a truth value or a list.

    ``origin`` names the variables and files that it was taken from, for messages.
    """

    origin: str

    def __new__(cls, text: str, origin: str = "") -> Filled:
        self = super().__new__(cls, text)
        self.origin = origin
        return self

    def __reduce__(self) -> tuple[type[Filled], tuple[str, str]]:
        return Filled, (str(self), self.origin)


class FillError(ValueError):
    """A reference that leads nowhere; the text is for the operator."""


def fill(text: str, environ: Mapping[str, str], directory: Path) -> str:
    """``text`` with its references replaced: a `Filled` when there was one, plain text when there were escapes only.

    A variable that is empty counts as missing where a default is given, as in a shell. Defaults may hold references.
    Relative files are looked up from ``directory``; a line break at their end is dropped.

    :raises FillError: for a missing variable or file without a default, and for a reference that is not closed.
    """
    origins: list[str] = []
    result = _replace(text, environ, directory, origins)
    if "${" not in text.replace("$${", ""):
        return result
    return Filled(result, ", ".join(origins))


def _replace(text: str, environ: Mapping[str, str], directory: Path, origins: list[str]) -> str:
    parts = []
    at = 0
    while (found := text.find("${", at)) >= 0:
        if found > at and text[found - 1] == "$":
            parts.append(text[at : found - 1] + "${")
            at = found + 2
            continue
        end = _closing(text, found + 2)
        parts.append(text[at:found])
        parts.append(_look_up(text[found + 2 : end], environ, directory, origins))
        at = end + 1
    return "".join([*parts, text[at:]])


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        if text.startswith("${", at):
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at
    raise FillError(f"{text!r} has a '${{' without its '}}'; write '$${{' for the two characters themselves")


def _look_up(reference: str, environ: Mapping[str, str], directory: Path, origins: list[str]) -> str:
    name, has_default, default = reference.partition(":-")
    if name.startswith("file:"):
        found = _read(directory / name.removeprefix("file:"), required=not has_default)
    elif _NAME.fullmatch(name):
        found = environ.get(name)
        if found is None and not has_default:
            raise FillError(
                f"the environment variable {name} is not set and has no default; write ${{{name}:-default}}"
            )
    else:
        raise FillError(f"${{{reference}}} is no reference; valid are ${{NAME}}, ${{NAME:-default}} and ${{file:path}}")
    if has_default and not found:
        return _replace(default, environ, directory, origins)
    origins.append(name)
    return found or ""


def _read(path: Path, *, required: bool) -> str | None:
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except FileNotFoundError:
        if required:
            raise FillError(
                f"the file {path} does not exist; write ${{file:{path}:-default}} if it may be absent"
            ) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise FillError(f"the file {path} cannot be read as text: {error}") from error
