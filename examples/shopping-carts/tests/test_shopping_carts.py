"""Carts by hand, the contract over every kind of event, and the state of version 1."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from analytics_core.testing import batch, check_plugin, run, started
from shopping_carts.plugin import ShoppingCarts

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
QUICK = {"abandon_minutes": 30}
EVENTS = (*["add_to_cart"] * 3, "remove_from_cart", "purchase", "page_view")


def row(event, user="ada", minute=0.0, **more):
    found = {"event": event, "user_id": user, "timestamp": NOON + timedelta(minutes=minute)}
    properties = {key: more.pop(key) for key in ("price", "quantity") if key in more}
    return {**found, **more, "properties": properties}


def later(minutes):
    """What an idle log is given."""
    return batch([], watermark=NOON + timedelta(minutes=minutes))


def totals(found):
    """Every metric over all minutes."""
    summed = {}
    for metric in found.metrics:
        summed[metric.name] = summed.get(metric.name, 0) + metric.value
    return summed


def shop(count=120, seed=1):
    """Visitors who put in, take out, buy and leave, some without a name until they buy."""
    choose = random.Random(seed)
    rows, minute = [], 0.0
    for _ in range(count):
        minute += choose.choice((0.0, 0.1, 1.0, 40.0))
        event = choose.choice(EVENTS)
        who = choose.choice(("ada", "bob", "cat", "dan"))
        ids = {"anonymous_id": f"a-{who}", "user": who if event == "purchase" or choose.random() < 0.5 else None}
        rows.append(row(event, minute=minute, price=choose.choice((9.9, 0.1, 250)), **ids))
    return rows


# --- what is counted


def test_a_cart_that_is_bought():
    rows = [
        row("add_to_cart", price=19.99, quantity=2),
        row("add_to_cart", minute=1, price=0.02),
        row("remove_from_cart", minute=2, price=19.99),
        row("purchase", minute=3),
    ]
    assert totals(run(ShoppingCarts, [batch(rows)])) == {
        "opened": 1,
        "items": 3,
        "added_value": pytest.approx(40.0),
        "purchased": 1,
        "purchased_value": 20.01,
    }


def test_a_cart_that_is_left_alone_is_abandoned_when_its_wait_ends():
    given = [batch([row("add_to_cart", price=5)]), later(29), later(30)]
    assert "abandoned" not in totals(run(ShoppingCarts, given[:2], QUICK))
    found = {metric.name: metric for metric in run(ShoppingCarts, given, QUICK).metrics}
    assert (found["abandoned"].value, found["abandoned_value"].value) == (1, 5)
    assert found["abandoned"].window.start == NOON + timedelta(minutes=30)


def test_what_is_noticed_late_counts_in_the_minute_in_which_it_was_due():
    rows = [row("add_to_cart"), row("add_to_cart", "bob", 0.4), row("page_view", "cat", 500)]
    found = [metric for metric in run(ShoppingCarts, [batch(rows)], QUICK).metrics if metric.name == "abandoned"]
    assert [(metric.value, metric.window.start) for metric in found] == [(2, NOON + timedelta(minutes=30))]


def test_two_requests_that_cross_do_not_turn_the_clock_back():
    rows = [row("page_view", "bob", 1.0), row("add_to_cart", "ada", 0.9999)]
    for batches in ([batch(rows)], [batch(rows[:1]), batch(rows[1:], first_seq=1)]):
        (opened, *_) = run(ShoppingCarts, batches).metrics
        assert opened.window.start == NOON + timedelta(minutes=1)


def test_a_cart_that_is_emptied_is_neither_bought_nor_abandoned():
    rows = [row("add_to_cart", quantity=2), row("remove_from_cart", minute=1, quantity=2), row("purchase", minute=2)]
    found = totals(run(ShoppingCarts, [batch(rows), later(500)], QUICK))
    assert found == {"opened": 1, "items": 2, "added_value": 0, "emptied": 1}


def test_signing_in_at_the_checkout_takes_the_cart_along():
    rows = [
        row("add_to_cart", None, anonymous_id="browser", price=7),
        row("add_to_cart", "ada", 1, price=3),
        row("purchase", "ada", 2, anonymous_id="browser"),
    ]
    assert totals(run(ShoppingCarts, [batch(rows), later(500)]))["purchased_value"] == 10


def test_every_cart_comes_to_one_end():
    named = [{**each, "user_id": each["anonymous_id"], "anonymous_id": None} for each in shop()]
    found = totals(run(ShoppingCarts, [batch(named), later(100_000)], QUICK))
    assert found["opened"] == found["purchased"] + found["emptied"] + found["abandoned"]
    assert min(found.values()) > 0


@pytest.mark.parametrize("odd", ["12", None, True, -3, 1e300, [1], {}])
def test_an_odd_price_or_quantity_stops_nothing(odd):
    found = totals(run(ShoppingCarts, [batch([row("add_to_cart", price=odd, quantity=odd)])]))
    assert found == {"opened": 1, "items": 1, "added_value": 0}


def test_open_carts_are_bounded():
    plugin = started(ShoppingCarts, {"max_open": 3})
    found = plugin.process(batch([row("add_to_cart", f"u{n}") for n in range(10)]))
    assert totals(found)["abandoned"] == 7
    assert [who for who, *_ in plugin.export_state()["default"]["open"]] == ["u7", "u8", "u9"]


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="name one event"):
        started(ShoppingCarts, {"added": "cart", "removed": "cart"})


# --- the contract


def test_the_contract_is_kept():
    check_plugin(ShoppingCarts)
    report = check_plugin(ShoppingCarts, shop(), QUICK)
    assert report.checks["reload"] == report.checks["tenants"] == "passed"


def test_erased_users_are_in_no_later_state_or_output():
    plugin = started(ShoppingCarts, QUICK)
    plugin.process(batch([row("add_to_cart", user, price=5) for user in ("ada", "bob")]))
    plugin.process(batch([row("add_to_cart", "ada")], tenant="other"))
    plugin.erase("default", ["ada", "nobody"])
    plugin.erase("unknown", ["ada"])
    state = plugin.export_state()
    assert [[who for who, *_ in state[tenant]["open"]] for tenant in ("default", "other")] == [["bob"], ["ada"]]
    assert totals(plugin.process(later(500)))["abandoned"] == 1


# --- version 1

V1 = {"acme": {"minute": 29_146_320, "counts": {"opened": 2, "items": 3}, "open": {"ada": 1, "bob": 2}}}
"""What version 0.1 exported at 12:00 UTC on 1 June 2025."""


def of_v1():
    plugin = started(ShoppingCarts, QUICK)
    plugin.import_state(V1, version=1)
    return plugin


def test_the_counts_of_version_1_go_on():
    rows = [row("add_to_cart", "ada", 0.5, price=4), row("add_to_cart", "cat", 0.6, price=1)]
    found = of_v1().process(batch(rows, "acme"))
    assert totals(found) == {"opened": 3, "items": 5, "added_value": 5}


def test_what_version_1_did_not_know_begins_with_the_migration():
    plugin = of_v1()
    state = plugin.export_state()["acme"]
    assert state["clock"] == NOON.timestamp() * 1_000_000
    assert state["open"] == [["ada", 1, 0, state["clock"]], ["bob", 2, 0, state["clock"]]]
    plugin.process(batch([row("add_to_cart", "ada", 10, price=4)], "acme"))
    found = {metric.name: metric for metric in plugin.process(batch([], "acme", NOON + timedelta(minutes=35))).metrics}
    assert (found["abandoned"].value, found["abandoned_value"].value) == (1, 0)  # bob's, of unknown value
    assert found["abandoned"].window.start == NOON + timedelta(minutes=30)


def test_a_migrated_state_goes_on_as_version_2():
    plugin, again = of_v1(), started(ShoppingCarts, QUICK)
    again.import_state(plugin.export_state(), version=2)
    assert again.export_state() == plugin.export_state()


def test_a_later_version_is_refused():
    with pytest.raises(ValueError, match="state version 3 is not known; valid are 1 and 2"):
        started(ShoppingCarts).import_state({}, version=3)


def test_a_shorter_wait_ends_now_and_not_in_a_minute_that_is_over():
    plugin, again = started(ShoppingCarts), started(ShoppingCarts, {"abandon_minutes": 1})
    plugin.process(batch([row("add_to_cart"), row("page_view", "bob", 50)]))
    again.import_state(plugin.export_state(), version=2)
    (found, _) = again.process(later(55)).metrics
    assert found.window.start == NOON + timedelta(minutes=50)
