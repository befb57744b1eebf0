"""The README as its readers use it: its blocks, the commands in them, and what they show."""

from __future__ import annotations

import re
import shlex
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPResponse
from typing import NamedTuple
from urllib.error import HTTPError

from tests.flow.server_house import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACEHOLDER = "localhost:4000"


class Block(NamedTuple):
    language: str
    text: str

    @property
    def path(self) -> str:
        """The file that its first line names in a comment, or nothing."""
        found = re.match(r"# ([\w./-]+)\n", self.text)
        return found[1] if found else ""

    @property
    def body(self) -> str:
        """The text without the line that names the file."""
        return self.text.partition("\n")[2] if self.path else self.text


class Command(NamedTuple):
    typed: str
    words: list[str]
    output: str


def section(title: str, text: str = README) -> str:
    """What is below a heading, as far as the next one of its level."""
    level = title.partition(" ")[0]
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^{level} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def prose(text: str) -> str:
    """All but the blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(of: Sequence[Block]) -> Iterator[Command]:
    """What is typed after ``$`` in console blocks, with the lines that are shown for it."""
    for block in of:
        if block.language != "console":
            continue
        for typed in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = typed.splitlines(keepends=True)
            for count in range(1, len(lines) + 1):
                text = "".join(lines[:count])
                try:
                    words = shlex.split(text, comments=True)
                except ValueError:  # a quotation goes on in the next line
                    continue
                yield Command(text.strip(), words, "".join(lines[count:]).strip())
                break
            else:
                raise AssertionError(f"no end of the command: {typed}")


def curl(words: Sequence[str], port: int) -> HTTPResponse | HTTPError:
    """The answer to the request that curl would send, an error too. An option that is not known here fails."""
    url, headers, body = "", {}, None
    rest = iter(words[1:])
    for word in rest:
        match word:
            case "-s" | "-N":
                pass
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest).encode()
            case _:
                assert not word.startswith("-"), word
                url = word
    assert PLACEHOLDER in url
    url = "http://" + url.removeprefix("http://").replace(PLACEHOLDER, f"127.0.0.1:{port}")
    try:
        reply: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)
    except HTTPError as error:
        return error
    return reply
