"""Regular expressions that cannot explode: those of RE2, of bounded size.

RE2 searches in time linear in text times pattern and never goes back; DuckDB and Arrow both use it. What grows is the
automaton: a counted repetition stands for that many copies of what it repeats, so the copies are bounded here.
Syntax: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from analytics_core.errors import ParameterError

MAX_LENGTH: Final = 500
MAX_STEPS: Final = 500
"""Letters, classes and groups, each counted as often as it is repeated."""
_TOKEN: Final = re.compile(
    r"(?P<quote>\\Q.*?(?:\\E|$))|(?P<atom>\\[pP]\{\^?\w*\}|\\x\{\w*\}|\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?:P?<\w*>|P?[^)>:]*:?))?)|(?P<close>\))|\{(?P<low>\d+)(?P<comma>,)?(?P<high>\d*)\}"
    r"|(?P<mark>[*+?|])|(?P<letter>.)",
    re.DOTALL,
)
_ADVICE: Final = (
    "valid is the syntax of RE2, which has no backreferences and no lookaround; a group is named (?P<name>...)"
)


def check_pattern(pattern: str, parameter: str) -> str:
    """``pattern``. :raises ParameterError: when it is too long, repeats too much, or is none for RE2."""
    if len(pattern) > MAX_LENGTH:
        raise ParameterError(parameter, f"a pattern of {len(pattern)} letters is too long; valid are {MAX_LENGTH}")
    if any(found["open"] and found["open"].startswith("(?<") for found in _TOKEN.finditer(pattern)):
        raise ParameterError(parameter, f"'(?<' begins no group; {_ADVICE}")  # only some versions of RE2 know it
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        why = str(error).removeprefix("Invalid regular expression: ")
        raise ParameterError(parameter, f"is no pattern: {why}; {_ADVICE}") from None
    steps = _steps(pattern)
    if steps > MAX_STEPS:
        raise ParameterError(
            parameter, f"stands for {steps} steps with all its repetitions; valid are at most {MAX_STEPS}"
        )
    return pattern


def _steps(pattern: str) -> int:
    """How many letters, classes and groups a valid pattern stands for once every counted repetition is written out."""
    outer: list[int] = []
    total = last = 0  # of the group at hand, and of what a repetition would repeat
    for found in _TOKEN.finditer(pattern):
        if found["open"] is not None:
            outer.append(total)
            total = last = 0
        elif found["close"] is not None:
            last, total = total + 1, (outer.pop() if outer else 0) + total + 1
        elif found["low"] is not None:
            copies = max(int(found["high"] or found["low"]), 1)
            total, last = total + last * (copies - 1), last * copies
        elif found["mark"] is None:
            last = len(found["quote"]) if found["quote"] else 1
            total += last
    return total
