"""How a plugin author tests: rows in, metrics out, the contract that every plugin keeps, and a host to run it in."""

from analytics_core.testing import batch, check_plugin, differences, record, run, started
from my_purchases.plugin import Purchases

ROWS = [
    {"event": "purchase", "user_id": "ada", "timestamp": "2025-06-01T12:00:10Z"},
    {"event": "page_view", "user_id": "ada", "timestamp": "2025-06-01T12:00:40Z"},
    {"event": "purchase", "user_id": "bob", "timestamp": "2025-06-01T12:00:50Z"},
    {"event": "purchase", "user_id": "ada", "timestamp": "2025-06-01T12:01:00Z"},
]


def test_purchases_are_counted_by_the_minute():
    assert [metric.value for metric in run(Purchases, [batch(ROWS)]).metrics] == [2, 1]


def test_the_contract_is_kept():
    check_plugin(Purchases)
    check_plugin(Purchases, ROWS)


def test_a_failure_counts_nothing_twice(analytics_host, analytics_faults):
    with analytics_faults.raises(Purchases, "process", at=2):
        host = analytics_host(Purchases)
        for row in ROWS:
            host.post([row])
            host.settle()
    assert [point.value for point in host.metric("purchases.purchases")] == [2, 1]


def test_a_recording_is_a_test(tmp_path):
    record(started(Purchases), tmp_path / "calls").process(batch(ROWS))
    assert differences(tmp_path / "calls", Purchases) == []


# --- what the README leaves out


def test_the_windows_are_minutes():
    found = run(Purchases, [batch(ROWS)])
    assert [f"{metric.window.start:%H:%M} {metric.window.seconds}" for metric in found.metrics] == [
        "12:00 60",
        "12:01 60",
    ]


def test_the_host_goes_on_after_a_restart(analytics_host):
    analytics_host(Purchases).post(ROWS)
    host = analytics_host(Purchases)
    host.post(ROWS[:1])
    host.settle()
    assert [point.value for point in host.metric("purchases.purchases")] == [3, 1]


def test_a_new_generation_goes_on_where_the_old_one_was(analytics_events, analytics_reload):
    plugin = started(Purchases)
    plugin.process(analytics_events(ROWS))
    again = analytics_reload(plugin)
    assert [metric.value for metric in again.process(analytics_events(ROWS[:1])).metrics] == [3]
