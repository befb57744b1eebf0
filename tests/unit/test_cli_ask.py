"""``analytics ask`` and ``analytics insights``: what is typed, what goes out, and how the answer looks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analytics_core import cli
from analytics_core.cli.ask_drawing import show_answer, sparkline
from analytics_core.cli.ask_table import duration, number
from tests.unit.cli_plugins_site import answering

FUNNEL: dict[str, Any] = {
    "analysis": "funnel",
    "plugin": "user-behavior",
    "parameters": {
        "timeRange": {"start": "2025-01-03T11:00:00+00:00", "end": "2025-01-10T11:00:00+00:00"},
        "timezone": "Europe/Berlin",
    },
    "columns": ["step", "event", "users", "conversion_from_start", "median_seconds", "first_at"],
    "data": [
        {"step": 1, "event": "cart", "users": 12345, "conversion_from_start": 1.0, "median_seconds": None,
         "first_at": "2025-01-03T11:30:00+00:00"},
        {"step": 2, "event": "pur\x1b[2Jchase", "users": 3086, "conversion_from_start": 0.25, "median_seconds": 3725.0,
         "first_at": None},
    ],
    "insights": [
        {"key": "drop-off", "title": "Most are lost", "description": "75% of them.", "severity": "high",
         "confidence": 0.9, "window": None, "data": {}}
    ],
    "recommendations": [
        {"title": "Look", "description": "at the cart", "insight": "drop-off", "priority": "medium"}
    ],
    "chart": {"kind": "funnel", "x": "event", "y": ["users"], "series": ""},
    "quality": {"events": 20000, "late": 12, "duplicates": 3, "bot_share": 0.008},
    "notes": ["no event is named 'pur\x1b[2Jchase'; did you mean 'purchase'?"],
    "data_as_of": "2025-01-10T11:00:00+00:00",
    "watermark": "2025-01-10T11:00:01+00:00",
}  # fmt: skip
CATALOGUE = {
    "analyses": [
        {
            "name": "funnel",
            "plugin": "user-behavior",
            "title": "Funnel",
            "parameters": {
                "type": "object",
                "required": ["steps"],
                "properties": {
                    "timeRange": {"anyOf": [{"type": "string"}, {"type": "object"}], "default": "30d"},
                    "window": {"type": "string", "default": "1d", "description": "How long it may take."},
                    "order": {"enum": ["ordered", "any", None]},
                    "steps": {
                        "type": "array",
                        "minItems": 2,
                        "items": {
                            "type": "object",
                            "required": ["event"],
                            "properties": {"event": {"type": "string"}, "where": {"type": "object"}},
                        },
                    },
                },
            },
        }
    ]
}


def run(*arguments: str, input: str | None = None) -> Result:  # noqa: A002
    runner = CliRunner(env={"ANALYTICS_API_KEY": None, "ANALYTICS_MANIFESTS_DIR": None})
    return runner.invoke(cli.main, [*arguments], input=input)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``sent(*arguments)``: the path and body of the request that ``analytics`` makes; the answer is the funnel's."""
    asked: list[tuple[str, Any]] = []

    def ask(self: Any, method: str, path: str, seconds: float, *, body: Any = None, **query: str) -> Any:
        asked.append((f"{method} {path}", body))
        return FUNNEL

    monkeypatch.setattr("analytics_core.cli.asking.Server.ask", ask)

    def sending(*arguments: str, input: str | None = None) -> Any:  # noqa: A002
        done = run(*arguments, "--json", input=input)
        assert done.exit_code == 0, done.output
        return asked.pop()

    return sending


# --- what is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["window=1d"], {"window": "1d"}),
        (["n=3", "ok=true", "none=null"], {"n": 3, "ok": True, "none": None}),
        (["word=1d2", "quoted=\"3\"", "empty=", "eq=a=b"], {"word": "1d2", "quoted": "3", "empty": "", "eq": "a=b"}),
        (['steps=[{"event":"cart"}]'], {"steps": [{"event": "cart"}]}),
        (["steps=[broken"], {"steps": "[broken"}),
        (["timeRange.start=2025-01-01", "timeRange.end=2025-02-01"],
         {"timeRange": {"start": "2025-01-01", "end": "2025-02-01"}}),
        (["filters.properties.plan=pro", "filters.name=x"], {"filters": {"properties.plan": "pro", "name": "x"}}),
        (["n=1", "n=2"], {"n": 2}),
    ],
)  # fmt: skip
def test_a_parameter_is_json_or_text_and_dots_make_objects(
    sent: Callable[..., Any], typed: list[str], expected: dict[str, Any]
) -> None:
    options = [word for text in typed for word in ("--param", text)]
    assert sent("ask", "funnel", *options) == ("POST /api/v1/analyses/funnel", expected)


def test_parameters_come_from_a_file_too_and_what_is_typed_goes_over_it(
    sent: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "question.yaml"
    file.write_text("steps:\n  - event: cart\n  - event: purchase\nwindow: 1d\ntimeRange: {start: '2025-01-01'}\n")
    _, body = sent("ask", "funnel", "--params", str(file), "--param", "window=2d", "--timezone", "Asia/Kolkata")
    assert body == {
        "steps": [{"event": "cart"}, {"event": "purchase"}],
        "window": "2d",
        "timeRange": {"start": "2025-01-01"},
        "timezone": "Asia/Kolkata",
    }
    assert sent("ask", "a b/c", "--params", "-", input='{"n": 1}') == ("POST /api/v1/analyses/a%20b%2Fc", {"n": 1})


@pytest.mark.parametrize(
    ("since", "expected"),
    [("7d", "7d"), ("2025-01-01", {"start": "2025-01-01"}), ("tuesday", "tuesday"), ("-7d", "-7d")],
)
def test_since_is_the_time_range(sent: Callable[..., Any], since: str, expected: Any) -> None:
    assert sent("ask", "sessions", "--since", since)[1] == {"timeRange": expected}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["funnel", "--param", "window"], "--param 'window' is no parameter; valid are such as"),
        (["funnel", "--param", "a..b=1"], "--param 'a..b=1' is no parameter"),
        (["funnel", "--param", "a=7d", "--param", "a.b=1"], "--param a.b: 'a' is \"7d\" already, which has no parts"),
        (["funnel", "--json", "--csv"], "--csv and --json are two forms of one answer"),
        (["--since", "7d"], "which analysis? name one"),
        (["funnel", "--since", "7d", "--param", "timeRange=3d"], "--since and the parameter 'timeRange' say the same"),
        (["funnel", "--timezone", "UTC", "--param", "timezone=UTC"], "--timezone and the parameter 'timezone' say the"),
    ],
)
def test_what_cannot_be_asked_so_is_refused(arguments: list[str], problem: str) -> None:
    refused = run("ask", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"analytics: {problem}")


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "1: 2"])
def test_a_file_that_holds_no_parameters_is_refused(text: str) -> None:
    refused = run("ask", "funnel", "--params", "-", input=text)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("analytics: --params: ")


# --- what comes back -------------------------------------------------------------------------------------------------


def answered(*arguments: str, status: int = 200, answer: Any = FUNNEL) -> Result:
    with answering(lambda request, headers: (status, json.dumps(answer).encode())) as port:
        return run(*arguments, "--port", port)


def test_json_is_the_answer_unchanged() -> None:
    assert json.loads(answered("ask", "funnel", "--json").stdout) == FUNNEL


def test_csv_is_the_rows_alone() -> None:
    rows = list(csv.DictReader(io.StringIO(answered("ask", "funnel", "--csv").stdout)))
    assert [row["users"] for row in rows] == ["12345", "3086"]
    assert list(rows[0]) == FUNNEL["columns"]
    assert rows[0]["median_seconds"] == ""


def test_notes_do_not_go_among_the_rows_of_csv() -> None:
    done = answered("ask", "funnel", "--csv")
    assert done.stderr.startswith("analytics: no event is named 'pur")
    assert "\x1b" not in done.stderr


def test_a_table_reads_well_and_obeys_no_event_name() -> None:
    lines = answered("ask", "funnel").stdout.splitlines()
    assert lines[0] == "funnel, 2025-01-03 12:00 to 2025-01-10 12:00 (Europe/Berlin)"
    text = "\n".join(lines)
    assert "\x1b" not in text
    cart, purchase = (line for line in lines if "cart " in line or "chase " in line)
    assert cart.split() == ["1", "cart", "12,345", "100.0%", "-", "2025-01-03", "12:30"]
    assert purchase.split()[2:] == ["3,086", "25.0%", "1", "h", "2", "min", "-"]
    assert cart.index("12,345") + 6 == purchase.index("3,086") + 5
    assert lines[-5:] == [
        "note: no event is named 'pur\N{REPLACEMENT CHARACTER}[2Jchase'; did you mean 'purchase'?",
        "high: Most are lost. 75% of them.",
        "  → Look: at the cart",
        "as of 2025-01-10 12:00 (Europe/Berlin), watermark 2025-01-10 12:00:01",
        "20,000 events in the range: 12 late, 3 duplicates dropped, 0.8% from bots",
    ]


@pytest.mark.parametrize("command", [["ask", "funnel"], ["insights"]])
def test_an_answer_is_waited_for_while_its_plugin_starts(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.cli.ask._AGAIN", 0.001)
    starting = {"type": "urn:analytics:problem:plugin-starting", "title": "Plugin starting", "detail": "is loading"}
    found = {**FUNNEL, "timeRange": FUNNEL["parameters"]["timeRange"], "analyses": []}
    answers = [(503, starting), (503, starting), (200, found)]

    def reply(request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        status, answer = answers.pop(0)
        return status, json.dumps(answer).encode()

    with answering(reply) as port:
        done = run(*command, "--json", "--port", port)
    assert (done.exit_code, json.loads(done.stdout)) == (0, found)
    assert not answers


def test_no_plugin_is_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_core.cli.ask._PATIENCE", {})
    starting = {"type": "urn:analytics:problem:plugin-starting", "detail": "Plugin 'a': is loading"}
    refused = answered("ask", "funnel", status=503, answer=starting)
    assert refused.exit_code == 1
    assert "answered 503: Plugin 'a': is loading" in refused.stderr


@pytest.mark.parametrize("status", [404, 422])
def test_a_wrong_question_is_told_in_one_line(status: int) -> None:
    problem = {"title": "No", "detail": "no analysis is named 'funel'; did you mean 'funnel'?"}
    for command in (["ask", "funel"], ["insights", "--analysis", "funel"]):
        refused = answered(*command, status=status, answer=problem)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr == "analytics: no analysis is named 'funel'; did you mean 'funnel'?\n"


@pytest.mark.parametrize(
    ("detail", "more"),
    [
        ("steps: is missing; valid is: array", "; see 'analytics ask funnel --describe'"),
        ("windw: the key is not known; did you mean 'window'?", ""),
    ],
)
def test_where_a_parameter_does_not_fit_the_command_that_shows_them_is_named(detail: str, more: str) -> None:
    problem = {"type": "urn:analytics:problem:parameter", "title": "Invalid parameter", "detail": detail}
    assert answered("ask", "funnel", status=422, answer=problem).stderr == f"analytics: {detail}{more}\n"


def test_a_server_that_fails_or_is_not_there_is_another_matter() -> None:
    failed = answered("ask", "funnel", status=502, answer={"title": "Plugin failed", "detail": "it broke"})
    assert failed.exit_code == 1
    assert "answered 502: it broke" in failed.stderr
    nobody = run("ask", "funnel", "--port", "1")
    assert nobody.exit_code == 1
    assert "no server answers at http://127.0.0.1:1" in nobody.stderr


def test_without_a_name_all_are_listed() -> None:
    listed = answered("ask", answer=CATALOGUE)
    assert [line.split() for line in listed.stdout.splitlines() if "funnel" in line] == [
        ["funnel", "Funnel", "user-behavior"]
    ]
    assert json.loads(answered("ask", "--json", answer=CATALOGUE).stdout) == CATALOGUE


def test_the_parameters_are_described_with_an_example_that_can_be_typed() -> None:
    shown = answered("ask", "funnel", "--describe", answer=CATALOGUE).stdout
    lines = [line.split(maxsplit=1)[0] for line in shown.splitlines() if line.strip()]
    assert lines == ["funnel:", "parameter", "─" * len(lines[2]), "steps", "window", "order", "timeRange", "for"]
    assert "list of {event, where}" in shown
    assert "ordered | any | null" in shown
    example = shown.splitlines()[-1]
    assert example == (
        'for example: analytics ask funnel --param steps=\'[{"event":"EVENT"},{"event":"EVENT"}]\' --since 7d'
    )


def test_the_description_of_nothing_names_what_is_near() -> None:
    refused = answered("ask", "funel", "--describe", answer=CATALOGUE)
    assert refused.exit_code == 2
    assert refused.stderr == "analytics: no analysis is named 'funel'; did you mean 'funnel'?\n"


# --- on a terminal ---------------------------------------------------------------------------------------------------


def drawn(answer: dict[str, Any], width: int = 120) -> list[str]:
    out = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, highlight=False)
    show_answer(answer, out)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_funnel_has_bars_beside_its_users() -> None:
    cart, purchase = (line for line in drawn(FUNNEL) if "cart " in line or "chase " in line)
    assert (cart.count("█"), purchase.count("█")) == (24, 6)


def test_a_narrow_terminal_cuts_no_number() -> None:
    lines = drawn(FUNNEL, 70)
    assert max(len(line) for line in lines if "█" in line) <= 70
    assert {"12,345", "3,086", "100.0%", "25.0%"} <= {word for line in lines for word in line.split()}
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [50, 80, 110])
def test_columns_that_do_not_fit_stand_below_each_other_behind_the_names(width: int) -> None:
    figures = [
        f"{side}_of_the_{kind}_conversion" for side in ("start", "end") for kind in ("median", "mean", "ninetieth")
    ]
    rows = [{"step": n, "event": event, "users": 100 // n, **dict.fromkeys(figures, 12_345_678 + n)}
            for n, event in ((1, "product_view"), (2, "purchase"))]  # fmt: skip
    lines = drawn({**FUNNEL, "columns": ["step", "event", "users", *figures], "data": rows}, width)
    end = next(at for at, line in enumerate(lines) if line.startswith("note: "))
    table = lines[1:end]
    words = " ".join(table).split()
    assert max(map(len, table)) <= width
    assert (words.count("12,345,679"), words.count("12,345,680")) == (6, 6)
    assert words.count("ninetieth") == 2
    bands = [line.split() for line in table if "product_view" in line]
    assert len(bands) > 1
    assert all(band[:2] == ["1", "product_view"] for band in bands)
    assert [line.count("█") for line in table if "█" in line] == [8, 4]


def test_what_goes_over_time_has_a_line() -> None:
    rows = [{"day": f"2025-01-0{n}", "users": n, "sessions": None} for n in range(1, 9)]
    answer = {**FUNNEL, "columns": ["day", "users", "sessions"], "data": rows,
              "chart": {"kind": "line", "x": "day", "y": ["users", "sessions", "gone"], "series": ""}}  # fmt: skip
    assert [line for line in drawn(answer) if "▁" in line] == ["users    ▁▂▃▄▅▆▇█ 1 to 8"]


def test_cohorts_are_a_triangle() -> None:
    rows = [
        {"cohort": cohort, "period": period, "retention": value}
        for cohort, values in {"2025-01-06": [1.0, 0.5, 0.25], "2025-01-13": [1.0, 0.4, None]}.items()
        for period, value in enumerate(values)
    ]
    answer = {**FUNNEL, "columns": ["cohort", "period", "retention"], "data": rows,
              "chart": {"kind": "heatmap", "x": "period", "y": ["retention"], "series": "cohort"}}  # fmt: skip
    triangle = [line.split() for line in drawn(answer) if line.startswith(("cohort", "2025-01-"))]
    assert triangle == [
        ["cohort", "\\", "period", "0", "1", "2"],
        ["2025-01-06", "100.0%", "50.0%", "25.0%"],
        ["2025-01-13", "100.0%", "40.0%", "-"],
    ]


def test_a_triangle_has_the_size_of_its_cohorts_and_fits_its_room() -> None:
    rows = [
        {"cohort": cohort, "period": period, "users": users, "retention": users / 400}
        for cohort, users in ((None, 300), ("2025-01-06", 200), ("2025-01-13", 100))
        for period in range(15)
    ]
    answer = {**FUNNEL, "columns": ["cohort", "period", "users", "retention"], "data": rows,
              "chart": {"kind": "heatmap", "x": "period", "y": ["retention"], "series": "cohort"}}  # fmt: skip
    triangle = [line for line in drawn(answer, 200) if line.startswith(("cohort", "all", "2025-01-"))]
    assert [line.split()[:-13] for line in triangle] == [
        ["cohort", "\\", "period", "users", "0", "1"],
        ["all", "300", "75.0%", "75.0%"],
        ["2025-01-06", "200", "50.0%", "50.0%"],
        ["2025-01-13", "100", "25.0%", "25.0%"],
    ]
    for width, bands in ((110, 1), (80, 2)):
        lines = [line for line in drawn(answer, width) if line.startswith("2025-01-06")]
        assert (len(lines), " ".join(lines).split().count("50%")) == (bands, 15)
        assert all(len(line) <= width for line in lines)


def test_an_empty_range_says_so() -> None:
    assert drawn({**FUNNEL, "quality": {**FUNNEL["quality"], "events": 0}})[-1] == "no event in the range"


def test_an_answer_without_rows_says_so() -> None:
    empty = {**FUNNEL, "data": [], "insights": [], "recommendations": [], "data_as_of": None, "watermark": None,
             "notes": [], "quality": None}  # fmt: skip
    assert drawn(empty)[1:] == ["(no rows)", "as of nothing: no event has come yet"]


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=200))
def test_a_sparkline_keeps_the_order_of_its_values(values: list[float | None]) -> None:
    line = sparkline(values)
    assert len(line) <= 60
    if len(values) <= 60:
        assert len(line) == len(values)
        for a, x in zip(values, line, strict=True):
            assert (a is None) == (x == " ")
            assert all(x <= y for b, y in zip(values, line, strict=True) if a is not None and b is not None and a <= b)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"), (0.25, "250 ms"), (4.2, "4.2 s"), (59.4, "59.4 s"), (60, "1 min"), (200, "3 min 20 s"),
        (3599.9, "1 h"), (3600, "1 h"), (7500, "2 h 5 min"), (100_000, "1 d 4 h"), (-90, "-1 min 30 s"), (None, "-"),
    ],
)  # fmt: skip
def test_durations_are_readable(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(1234567, "1,234,567"), (3.0, "3"), (0.0123456, "0.01235"), (1234.56, "1,235"), (None, "-")]
)
def test_numbers_are_readable(value: float | None, shown: str) -> None:
    assert number(value) == shown


# --- insights --------------------------------------------------------------------------------------------------------

INSIGHTS = {
    "dataSource": None,
    "timeRange": FUNNEL["parameters"]["timeRange"],
    "analysisType": "comprehensive",
    "insights": [{**FUNNEL["insights"][0], "id": "funnel:drop-off", "query": {"analysis": "funnel", "parameters": {}}}],
    "recommendations": [{**FUNNEL["recommendations"][0], "insight": "funnel:drop-off"}],
    "analyses": [
        {"name": "funnel", "parameters": FUNNEL["parameters"], "rows": 2, "data_as_of": None},
        {"name": "slow", "parameters": {"timezone": "UTC"}, "rows": 0, "data_as_of": None, "error": "it broke"},
    ],
    "data_as_of": "2025-01-10T11:00:00+00:00",
    "watermark": "2025-01-10T11:00:01+00:00",
}


def test_insights_are_listed_with_what_failed_apart() -> None:
    shown = answered("insights", answer=INSIGHTS)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "insights, 2025-01-03 12:00 to 2025-01-10 12:00 (Europe/Berlin)",
        "high: Most are lost. 75% of them. (funnel, confidence 90%)",
        "  → Look: at the cart",
        "as of 2025-01-10 12:00 (Europe/Berlin), watermark 2025-01-10 12:00:01",
    ]
    assert shown.stderr == "analytics: slow was not answered: it broke\n"
    assert "nothing that stands out" in answered("insights", answer={**INSIGHTS, "insights": []}).stdout


def test_insights_are_asked_as_told(sent: Callable[..., Any]) -> None:
    path, body = sent(
        "insights", "--source", "user_behavior", "--analysis", "changes", "--since", "14d", "--no-recommendations",
        "--param", "filters.properties.plan=pro",
    )  # fmt: skip
    assert path == "POST /api/v1/insights"
    assert body == {
        "dataSource": "user_behavior",
        "analysisType": "changes",
        "timeRange": "14d",
        "includeRecommendations": False,
        "filters": {"properties.plan": "pro"},
    }
