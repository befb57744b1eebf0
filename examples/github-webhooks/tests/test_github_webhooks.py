"""Deliveries as GitHub signs and sends them, in either content type, and the answers to them."""

import hmac
import json
from urllib.parse import urlencode

import pytest

from analytics_core import FieldError, Outcome, Request
from analytics_core.testing import check_plugin, started
from github_webhooks.plugin import GithubWebhooks

SECRET = "it is no secret at all"
SENDER = {"sender": {"login": "octocat"}, "repository": {"full_name": "acme/shop", "pushed_at": 1_748_779_200}}
PUSH = {**SENDER, "ref": "refs/heads/main", "forced": False, "commits": [{"id": "a"}, {"id": "b"}]}
ISSUE = {
    **SENDER,
    "action": "opened",
    "issue": {"number": 7, "state": "open", "updated_at": "2025-06-01T12:00:00Z", "title": "not kept"},
}


@pytest.fixture
def plugin():
    return started(GithubWebhooks, {"secret": SECRET})


def delivery(payload, kind="push", *, secret=SECRET, form=False, **headers):
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    body = urlencode({"payload": body}).encode() if form else body
    given = {
        "content-type": "application/x-www-form-urlencoded" if form else "application/json",
        "x-github-event": kind,
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "x-hub-signature-256": "sha256=" + hmac.new(secret.encode(), body, "sha256").hexdigest(),
    }
    kept = {name: value for name, value in {**given, **headers}.items() if value is not None}
    return Request(method="POST", path="/webhooks/github", headers=kept, query={}, body=body, tenant="default")


@pytest.mark.parametrize("form", [False, True])
def test_a_push_is_one_event(plugin, form):
    (event,) = plugin.ingest(delivery(PUSH, form=form))
    assert (event.name, event.user_id, event.timestamp) == ("github_push", "octocat", 1_748_779_200)
    assert event.message_id == "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    assert json.loads(bytes(event.properties)) == {
        "repository": "acme/shop",
        "branch": "main",
        "commits": 2,
        "forced": False,
    }


def test_of_an_issue_what_is_counted_is_kept(plugin):
    (event,) = plugin.ingest(delivery(ISSUE, "issues"))
    assert (event.name, event.timestamp) == ("github_issues", "2025-06-01T12:00:00Z")
    kept = {"repository": "acme/shop", "action": "opened", "number": 7, "state": "open"}
    assert json.loads(bytes(event.properties)) == kept


@pytest.mark.parametrize(
    ("kind", "payload", "kept"),
    [
        ("pull_request", {"pull_request": {"number": 3, "merged": True, "title": "t"}}, {"number": 3, "merged": True}),
        ("release", {"release": {"tag_name": "v1", "prerelease": False}}, {"tag": "v1", "prerelease": False}),
        ("push", {"ref": "refs/tags/v1", "commits": "none", "sender": "odd", "repository": []}, {"commits": 0}),
    ],
)
def test_what_is_kept_of_other_kinds(plugin, kind, payload, kept):
    (event,) = plugin.ingest(delivery(payload, kind))
    assert json.loads(bytes(event.properties)) == kept
    assert (event.user_id, event.timestamp) == (None, None)


def test_a_kind_that_is_not_wanted_is_answered_and_left(plugin):
    ping = delivery({"zen": "Keep it logically awesome."}, "ping")
    assert plugin.ingest(ping) == []
    assert plugin.reply(ping, Outcome()).status == 202
    (event,) = started(GithubWebhooks, {"secret": SECRET, "events": ["star"]}).ingest(delivery(SENDER, "star"))
    assert event.name == "github_star"


@pytest.mark.parametrize(
    "forged",
    [
        delivery(PUSH, secret="another secret, wrong"),
        delivery(PUSH, **{"x-hub-signature-256": None}),
        delivery(PUSH, **{"x-hub-signature-256": "sha256=größe"}),
        delivery(PUSH, **{"x-hub-signature-256": "sha1=" + 40 * "0"}),
    ],
    ids=["secret", "none", "unicode", "sha1"],
)
def test_a_forged_delivery_is_refused(plugin, forged):
    assert plugin.ingest(forged) == []
    answer = plugin.reply(forged, Outcome())
    assert (answer.status, answer.headers["Content-Type"]) == (401, "application/problem+json")
    assert json.loads(answer.body)["title"] == "Unauthorized"
    assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (delivery(b"{"), "Expecting"),
        (delivery(b"\xff"), "utf-8"),
        (delivery([]), "no JSON object"),
        (delivery(b"[" * 100_000), "too deeply"),
        (delivery(b"payload", **{"content-type": "application/x-www-form-urlencoded"}), "Expecting"),
        (delivery(PUSH, **{"x-github-delivery": None}), "X-GitHub-Delivery is missing"),
    ],
    ids=["json", "utf-8", "list", "depth", "form", "header"],
)
def test_a_signed_delivery_that_cannot_be_read_is_malformed(plugin, sent, problem):
    with pytest.raises(ValueError, match=problem):
        plugin.ingest(sent)


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        (Outcome(accepted=1), 202, {"accepted": 1, "duplicates": 0}),
        (Outcome(duplicates=1), 202, {"accepted": 0, "duplicates": 1}),
        (Outcome(overloaded="the log is full"), 503, {"detail": "the log is full", "title": "Service Unavailable"}),
        (Outcome(rejected=[FieldError(0, "timestamp", "is no time")]), 422, {"detail": "timestamp: is no time"}),
    ],
)
def test_the_answer_says_what_became_of_it(plugin, outcome, status, said):
    answer = plugin.reply(delivery(PUSH), outcome)
    assert (answer.status, "Retry-After" in answer.headers) == (status, status == 503)
    assert json.loads(answer.body).items() >= said.items()


def test_the_contract_is_kept():
    assert check_plugin(GithubWebhooks, settings={"secret": SECRET}).checks["hooks"] == "passed"


def test_without_a_secret_it_does_not_start():
    with pytest.raises(Exception, match="secret"):
        started(GithubWebhooks)
