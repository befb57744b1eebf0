"""The watcher over real files: what counts, when it tells, and what happens where notifications do not come."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analytics_core.host.installed import sight, watcher
from analytics_core.host.installed.sight import see_sources
from analytics_core.host.installed.watcher import Watcher
from tests.flow.plugin_house import captured_logs

SOON = 5.0
ONCE = {"look_seconds": 3600.0, "poll_seconds": 0.02, "settle_seconds": 0.05}


class House:
    """A deployment, a plugin and a site, with a watcher over them whose calls are waited for."""

    def __init__(self, path: Path) -> None:
        self.manifests = path / "manifests"
        self.source = path / "checkout" / "shop"
        self.site = path / "site"
        for directory in (self.manifests, self.source, self.site):
            directory.mkdir(parents=True)
        self.plugin = self.source / "plugin.py"
        self.plugin.write_text("a = 1\n", "utf-8")
        self.calls: queue.Queue[frozenset[str]] = queue.Queue()
        self.watcher: Watcher

    @contextmanager
    def watching(self, *, warm: bool = False, **options: Any) -> Iterator[Watcher]:
        """With ``warm`` the looks of the beginning are over, so that only notifications, or polls, lead to more."""
        self.watcher = Watcher(self.manifests, self.calls.put, **{**ONCE, **options})
        self.watcher.start()
        try:
            self.watcher.watch([self.source])
            if warm:
                (self.site / "warm.pth").touch()
                assert self.told() == {"distributions"}
            yield self.watcher
        finally:
            self.watcher.stop(SOON)

    def told(self) -> set[str]:
        return set(self.calls.get(timeout=SOON))

    def only_told(self, reason: str) -> None:
        """After what must not be told, a change of another kind: that alone is told."""
        (self.manifests / "end.yaml" if reason == "manifests" else self.source / "end.py").write_text("1", "utf-8")
        assert self.told() == {reason}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)
    monkeypatch.setattr(watcher, "FRESH_SECONDS", 3600.0)  # no second look of its own accord
    monkeypatch.setattr(sys, "path", [str(house.site), str(tmp_path / "missing"), str(tmp_path / "a.zip")])
    return house


@pytest.fixture(params=["notified", "polling"])
def polling(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "polling")


def replaced(path: Path, text: str) -> None:
    """As editors save: a new file takes the name."""
    new = path.with_name(f"{path.name}.tmp")
    new.write_text(text, "utf-8")
    new.replace(path)


SOURCES: dict[str, Callable[[House], object]] = {
    "of the same size": lambda h: h.plugin.write_text("a = 2\n", "utf-8"),
    "a syntax error": lambda h: h.plugin.write_text("a = (\n", "utf-8"),
    "by rename": lambda h: replaced(h.plugin, "a = 3\n"),
    "deleted": lambda h: h.plugin.unlink(),
    "a new module": lambda h: (h.source / "more.py").write_text("", "utf-8"),
    "a C extension": lambda h: (h.source / "fast.so").write_bytes(b""),
    "all gone": lambda h: shutil.rmtree(h.source.parent),
    "renamed": lambda h: h.source.rename(h.source.with_name("gone")),
}


@pytest.mark.parametrize("change", SOURCES.values(), ids=SOURCES)
def test_a_change_of_sources(house: House, polling: bool, change: Callable[[House], object]) -> None:
    with house.watching(polling=polling):
        change(house)
        assert house.told() == {"sources"}


MANIFESTS: dict[str, Callable[[House], object]] = {
    "new": lambda h: (h.manifests / "new.yaml").write_text("a", "utf-8"),
    "edited": lambda h: (h.manifests / "old.yml").write_text("b", "utf-8"),
    "by rename": lambda h: replaced(h.manifests / "old.yml", "b"),
    "deleted": lambda h: (h.manifests / "old.yml").unlink(),
    "all gone": lambda h: shutil.rmtree(h.manifests),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_change_of_manifests(house: House, polling: bool, change: Callable[[House], object]) -> None:
    (house.manifests / "old.yml").write_text("a", "utf-8")
    with house.watching(polling=polling):
        change(house)
        assert house.told() == {"manifests"}


DISTRIBUTIONS: dict[str, Callable[[House], object]] = {
    "installed": lambda h: (h.site / "new-1.dist-info").mkdir(),
    "upgraded": lambda h: (h.site / "old-1.dist-info").rename(h.site / "old-2.dist-info"),
    "uninstalled": lambda h: shutil.rmtree(h.site / "old-1.dist-info"),
    "set aside": lambda h: (h.site / "old-1.dist-info").rename(h.site / "~ld-1.dist-info"),
    "completed": lambda h: (h.site / "old-1.dist-info" / "RECORD").write_text("", "utf-8"),
    "linked": lambda h: (h.site / "new.pth").write_text("/src", "utf-8"),
    "linked elsewhere": lambda h: (h.site / "old.pth").write_text("/new", "utf-8"),
    "developed": lambda h: (h.site / "new.egg-link").write_text("/src", "utf-8"),
    "egg-info rewritten": lambda h: (h.site / "old.egg-info" / "entry_points.txt").write_text("b", "utf-8"),
}


@pytest.mark.parametrize("change", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_change_of_distributions(house: House, polling: bool, change: Callable[[House], object]) -> None:
    (house.site / "old-1.dist-info").mkdir()
    (house.site / "old.pth").write_text("/old", "utf-8")
    (house.site / "old.egg-info").mkdir()
    (house.site / "old.egg-info" / "entry_points.txt").write_text("a", "utf-8")
    with house.watching(polling=polling, look_seconds=0.2):
        change(house)
        assert house.told() == {"distributions"}


IGNORED = [
    "checkout/shop/.plugin.py.swp",
    "checkout/shop/plugin.py~",
    "checkout/shop/.#plugin.py",
    "checkout/shop/#plugin.py#",
    "checkout/shop/4913",
    "checkout/shop/data.csv",
    "checkout/shop/__pycache__/plugin.cpython-311.pyc",
    "checkout/other/plugin.py",
    "manifests/.#old.yaml",
    "manifests/.hidden/old.yaml",
    "manifests/notes.md",
    "site/some_package/new.pth",
    "site/module.py",
    "site/~ld-1.dist-info",
]


@pytest.mark.parametrize("name", IGNORED)
def test_what_does_not_count(house: House, polling: bool, name: str) -> None:
    with house.watching(polling=polling):
        path = house.manifests.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", "utf-8")
        house.only_told("sources" if name.startswith("manifests") else "manifests")


def test_two_edits_of_one_size_within_a_second(house: House, polling: bool) -> None:
    with house.watching(polling=polling, warm=True):
        for text in ("a = 2\n", "a = 3\n"):
            house.plugin.write_text(text, "utf-8")
            assert house.told() == {"sources"}


def test_an_edit_that_leaves_the_stamp_is_notified_of(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight.Sight, "_stamp", lambda *_: (1, 1, 6, 1, False))
    with house.watching(warm=True):
        house.plugin.write_text("a = 2\n", "utf-8")
        assert house.told() == {"sources"}


def test_half_a_file_and_then_the_whole(house: House, polling: bool) -> None:
    with house.watching(polling=polling), house.plugin.open("w", encoding="utf-8") as file:
        file.write("a = ")
        file.flush()
        assert house.told() == {"sources"}
        file.write("2\n")
        file.flush()
        assert house.told() == {"sources"}


def test_twenty_saves_in_a_second_give_few_calls(house: House, polling: bool) -> None:
    with house.watching(polling=polling, settle_seconds=0.15):
        pause = threading.Event()
        for number in range(20):
            house.plugin.write_text(f"a = {number}\n", "utf-8")
            pause.wait(0.05)
        calls = [house.told()]
        (house.manifests / "end.yaml").write_text("1", "utf-8")
        while "manifests" not in calls[-1]:
            calls.append(house.told())
        assert calls[0] == {"sources"}
        assert len(calls) <= 4
        assert house.calls.qsize() <= 1


def test_a_stream_of_saves_does_not_postpone_it_for_ever(house: House, polling: bool) -> None:
    with house.watching(polling=polling, settle_seconds=0.2, longest_seconds=0.4):
        begin = time.monotonic()
        while house.calls.empty() and time.monotonic() < begin + SOON:
            house.plugin.write_text(f"a = {time.monotonic()}\n", "utf-8")
            time.sleep(0.01)
        assert 0.3 < time.monotonic() - begin < 1.5


def test_several_reasons_come_together(house: House, polling: bool) -> None:
    with house.watching(polling=polling, settle_seconds=0.3):
        house.plugin.unlink()
        (house.manifests / "new.yaml").write_text("", "utf-8")
        (house.site / "new-1.dist-info").mkdir()
        assert house.told() == {"sources", "manifests", "distributions"}


@pytest.mark.parametrize("what", ["plugin", "source", "manifests"])
def test_what_is_deleted_and_restored_is_still_watched(house: House, polling: bool, what: str, tmp_path: Path) -> None:
    (house.manifests / "host.yaml").write_text("a", "utf-8")
    path = getattr(house, what)
    file = path / "host.yaml" if what == "manifests" else house.plugin
    reason = "manifests" if what == "manifests" else "sources"
    with house.watching(polling=polling, warm=True):
        path.rename(tmp_path / "away")
        assert house.told() == {reason}
        (tmp_path / "away").rename(path)
        assert house.told() == {reason}
        file.write_text("after", "utf-8")
        assert house.told() == {reason}


def test_a_directory_that_is_deleted_and_made_anew_at_once_is_watched(house: House, polling: bool) -> None:
    with house.watching(polling=polling, warm=True):
        shutil.rmtree(house.source)
        house.source.mkdir()
        house.plugin.write_text("new", "utf-8")
        assert house.told() == {"sources"}
        house.plugin.write_text("newer", "utf-8")
        assert house.told() == {"sources"}


def test_a_subpackage_that_comes_is_watched(house: House, polling: bool) -> None:
    with house.watching(polling=polling, warm=True):
        (house.source / "inner" / "deep").mkdir(parents=True)
        (house.source / "inner" / "deep" / "one.py").write_text("1", "utf-8")
        assert house.told() == {"sources"}
        (house.source / "inner" / "deep" / "one.py").write_text("2", "utf-8")
        assert house.told() == {"sources"}


def test_manifests_that_are_missing_at_first(house: House, polling: bool) -> None:
    house.manifests.rmdir()
    house.manifests = house.manifests / "below" / "here"
    with house.watching(polling=polling, warm=True):
        house.manifests.mkdir(parents=True)
        (house.manifests / "host.yaml").write_text("a", "utf-8")
        assert house.told() == {"manifests"}
        (house.manifests / "host.yaml").write_text("b", "utf-8")
        assert house.told() == {"manifests"}


def test_a_folder_of_manifests_by_symbolic_link(house: House, polling: bool, tmp_path: Path) -> None:
    house.manifests.rmdir()
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "host.yaml").write_text(version, "utf-8")
    house.manifests.symlink_to(tmp_path / "one")
    with house.watching(polling=polling, warm=True):
        (tmp_path / "one" / "host.yaml").write_text("1", "utf-8")
        assert house.told() == {"manifests"}
        (tmp_path / "link").symlink_to(tmp_path / "two")
        (tmp_path / "link").replace(house.manifests)
        assert house.told() == {"manifests"}
        (tmp_path / "two" / "host.yaml").write_text("2", "utf-8")
        assert house.told() == {"manifests"}


def test_manifests_as_a_cluster_mounts_them(house: House, polling: bool) -> None:
    def publish(version: str) -> None:
        home = house.manifests / f"..{version}"
        home.mkdir()
        (home / "host.yaml").write_text(version, "utf-8")
        (house.manifests / "..data_tmp").symlink_to(home.name)
        (house.manifests / "..data_tmp").replace(house.manifests / "..data")

    publish("one")
    (house.manifests / "host.yaml").symlink_to("..data/host.yaml")
    with house.watching(polling=polling, warm=True):
        publish("two")
        shutil.rmtree(house.manifests / "..one")
        assert house.told() == {"manifests"}


def test_a_source_by_symbolic_link(house: House, polling: bool, tmp_path: Path) -> None:
    real = tmp_path / "real.py"
    real.write_text("1", "utf-8")
    house.plugin.unlink()
    house.plugin.symlink_to(real)
    with house.watching(polling=polling, warm=True):
        real.write_text("2", "utf-8")
        assert house.told() == {"sources"}
        replaced(real, "3")
        assert house.told() == {"sources"}


def test_a_single_module_and_no_other_beside_it(house: House, polling: bool) -> None:
    with house.watching(polling=polling, warm=True) as watcher:
        watcher.watch([house.plugin])
        (house.source / "other.py").write_text("", "utf-8")
        (house.manifests / "new.yaml").write_text("", "utf-8")
        assert house.told() == {"manifests"}
        replaced(house.plugin, "a = 2\n")
        assert house.told() == {"sources"}


def test_another_set_of_sources(house: House, polling: bool) -> None:
    other = house.source.with_name("other")
    other.mkdir()
    with house.watching(polling=polling, warm=True) as watcher:
        watcher.watch([other])
        house.plugin.write_text("not any more", "utf-8")
        house.only_told("manifests")
        (other / "plugin.py").write_text("new", "utf-8")
        assert house.told() == {"sources"}
        watcher.watch([other, house.source])
        house.plugin.write_text("again", "utf-8")
        assert house.told() == {"sources"}


def test_a_call_that_fails_is_logged_and_not_the_end(house: House, polling: bool) -> None:
    calls: queue.Queue[frozenset[str]] = queue.Queue()

    def changed(reasons: frozenset[str]) -> None:
        calls.put(reasons)
        raise RuntimeError("in the receiver")

    watcher = Watcher(house.manifests, changed, polling=polling, **ONCE)
    with captured_logs() as logs:
        watcher.start()
        for text in ("a", "b"):
            (house.manifests / "new.yaml").write_text(text, "utf-8")
            assert calls.get(timeout=SOON) == {"manifests"}
        watcher.stop(SOON)
    failures = [(log["event"], log["reasons"]) for log in logs if log["log_level"] == "error"]
    assert failures == [("change_not_handled", ["manifests"])] * 2


def test_the_receiver_may_change_what_is_watched(house: House) -> None:
    other = house.source.with_name("other")
    other.mkdir()
    done: queue.Queue[frozenset[str]] = queue.Queue()

    def changed(reasons: frozenset[str]) -> None:
        watcher.watch([other])
        done.put(reasons)

    watcher = Watcher(house.manifests, changed, **ONCE)
    watcher.start()
    (house.manifests / "new.yaml").write_text("", "utf-8")
    assert done.get(timeout=SOON) == {"manifests"}
    (other / "plugin.py").write_text("", "utf-8")
    assert done.get(timeout=SOON) == {"sources"}
    watcher.stop(SOON)


def test_nothing_is_told_after_the_stop(house: House, polling: bool) -> None:
    with house.watching(polling=polling, settle_seconds=30.0, longest_seconds=30.0) as watcher:
        house.plugin.write_text("b", "utf-8")
        begin = time.monotonic()
        watcher.stop(SOON)
        assert time.monotonic() - begin < 1.0
    assert house.calls.empty()


# --- where notifications do not come ---------------------------------------------------------------------------------


class Deaf:
    """A file system that notifies of nothing."""

    def __init__(self, paths: list[str], **_: object) -> None: ...

    def watch(self, debounce: int, step: int, timeout: int, stop: threading.Event) -> str:
        return "stop" if stop.wait(timeout / 1000) else "timeout"

    def close(self) -> None: ...


class Refused(Deaf):
    def __init__(self, paths: list[str], **_: object) -> None:
        raise OSError(28, "inotify watch limit reached")


class Failing(Deaf):
    def watch(self, *_: object) -> str:
        raise RuntimeError("error in underlying watcher")


def test_a_missed_notification_is_found_by_a_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "RustNotify", Deaf)
    with house.watching(look_seconds=0.05):
        house.plugin.write_text("b", "utf-8")
        assert house.told() == {"sources"}


@pytest.mark.parametrize("kind", [Refused, Failing])
def test_without_notifications_it_polls_and_says_so_once(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    monkeypatch.setattr(watcher, "RustNotify", kind)
    with captured_logs() as logs, house.watching():
        for text in ("b", "c"):
            house.plugin.write_text(text, "utf-8")
            assert house.told() == {"sources"}
    assert [log["event"] for log in logs] == ["watching_by_polling"]


def test_a_fresh_stamp_is_doubted_until_it_is_old(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two edits in one tick of a file system's clock have one stamp: the second is found when the tick is over."""
    os.utime(house.plugin, (1000.0, 1000.0))
    stamps = []
    for now in (1000.5, 1001.0, 1002.5, 1010.0):
        monkeypatch.setattr(sight.time, "time", lambda now=now: now)
        stamps.append(see_sources(house.source).stamps)
    assert stamps[0] == stamps[1] != stamps[2] == stamps[3]
    monkeypatch.setattr(sight.time, "time", lambda: 1000.5)
    assert see_sources(house.source, {house.plugin}).stamps == stamps[3]
