"""plugins.lock: what it says of an installation, how drift is told, and what of it may run under ``locked``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analytics_core.config import Plugins, Settings
from analytics_core.host.code.fingerprint import read_copy
from analytics_core.host.installed.admission import idle_patterns
from analytics_core.host.installed.discovery import Found, discover
from analytics_core.host.installed.provenance import (
    LockError,
    check_lock,
    drift,
    installed,
    lock_file,
    locked,
    read_lock,
    write_lock,
)
from analytics_core.host.installed.selection import Choice, choose
from analytics_core.manifest import Deployment, PluginSettingsManifest
from tests.unit.cli_plugins_site import NOBODY, Site

GUARD = {"hooks": ["enrich"], "on_failure": "reject"}


class Locked(Site):
    """A site with a lock beside its manifests. `wheel` installs as pip does, with a RECORD."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = path / "plugins.lock"
        self.settings = Settings(plugins=Plugins(locked=True), manifests_dir=self.manifests)

    def wheel(self, name: str, code: str = "", *, version: str = "1.0", **manifest: Any) -> Path:
        home = self.plugin(name, code, version=version, **manifest)
        self.record(name, version)
        return home

    def info(self, name: str, version: str = "1.0") -> Path:
        return self.path / f"dist_{name.replace('-', '_')}-{version}.dist-info"

    def record(self, name: str, version: str = "1.0", *extra: tuple[str, str, str]) -> None:
        """RECORD of the package and its metadata as they are now."""
        info = self.info(name, version)
        files = [p for d in (self.path / name.replace("-", "_"), info) for p in d.rglob("*") if p.is_file()]
        rows = [(p.relative_to(self.path).as_posix(), digest(p), str(p.stat().st_size)) for p in files]
        rows = [row for row in rows if not row[0].endswith("/RECORD")]
        out = io.StringIO()
        csv.writer(out).writerows([*rows, *extra, (f"{info.name}/RECORD", "", "")])
        (info / "RECORD").write_text(out.getvalue(), "utf-8")

    def editable(self, name: str) -> None:
        told = {"url": "file:///somewhere", "dir_info": {"editable": True}}
        (self.info(name) / "direct_url.json").write_text(json.dumps(told), "utf-8")
        self.record(name)

    def found(self) -> list[Found]:
        return discover([str(self.path)])

    def write(self, *names: str) -> None:
        there = installed(self.found())
        write_lock(self.lock, locked(there, names or there))

    def drift(self, **options: Any) -> list[tuple[str, str]]:
        return [(one.distribution, one.change) for one in self.drifts(**options)]

    def drifts(self, **options: Any) -> list[Any]:
        return drift(read_lock(self.lock), installed(self.found(), **options), self.lock)

    def choice(self, name: str, settings: Settings | None = None, deployment: Deployment | None = None) -> Choice:
        found = choose(self.found(), settings or self.settings, deployment or Deployment())
        return next(each for each in found if each.name == name)


def digest(path: Path) -> str:
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


@pytest.fixture
def site(tmp_path: Path) -> Locked:
    return Locked(tmp_path)


# --- the file


def test_the_lock_is_text_that_a_person_can_compare(site: Locked) -> None:
    site.wheel("shop")
    site.wheel("till", version="2.0")
    site.editable("shop")
    site.write()
    text = site.lock.read_text("utf-8")
    shop, till = (read_lock(site.lock).distributions[name] for name in ("dist-shop", "dist-till"))
    assert text.startswith("# ")
    assert text.partition("lock: 1\n")[2] == (
        "distributions:\n"
        f"  dist-shop:\n    version: '1.0'\n    plugins: [shop]\n    editable: true\n    sources: {shop.sources}\n"
        f"  dist-till:\n    version: '2.0'\n    plugins: [till]\n    record: {till.record}\n"
    )


def test_what_is_locked_has_not_drifted_and_is_to_run(site: Locked) -> None:
    site.wheel("shop")
    site.plugin("bare")  # installed by something that writes no RECORD
    site.write()
    assert site.drift() == []
    assert [site.choice(name).state for name in ("shop", "bare")] == ["discovered", "discovered"]


def test_one_wheel_gives_one_hash_on_every_machine(site: Locked, tmp_path: Path) -> None:
    site.wheel("shop")
    (tmp_path / "elsewhere").mkdir()
    other = Locked(tmp_path / "elsewhere")
    home = other.wheel("shop")
    for name in ("INSTALLER", "REQUESTED", "uv_cache.json"):
        (other.info("shop") / name).write_text("another")
    (home / "__pycache__").mkdir()
    (home / "__pycache__" / "__init__.cpython-311.pyc").write_text("compiled")
    other.record("shop", "1.0", ("../../bin/shop", "sha256=abc", "3"))
    here, there = (installed(each.found())["dist-shop"] for each in (site, other))
    assert here == there
    assert here.locked.record
    assert not here.altered


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "there is no lock; 'analytics plugins lock' writes it"),
        ("lock: [", "is not YAML"),
        ("- x", "a manifest is a mapping"),
        ("lock: 2\n", "lock: 2 is not known to this host; valid is 'lock: 1'"),
        ("lock: 1\ndistribution: {}\n", "distribution: the key is not known; did you mean 'distributions'?"),
        ("lock: 1\ndistributions: {a: {version: '1', plugins: [a], record: sha256:12}}\n", "does not match"),
        ("lock: 1\ndistributions: {a: {plugins: [a]}}\n", "the key 'version' is missing"),
    ],
)
def test_a_lock_that_cannot_be_used_is_one_line_and_lets_nothing_run(
    site: Locked, text: str | None, problem: str
) -> None:
    site.wheel("shop")
    if text is not None:
        site.lock.write_text(text, "utf-8")
    with pytest.raises(LockError) as raised:
        check_lock(site.settings)
    assert str(raised.value).startswith(f"{site.lock}: ")
    assert problem in str(raised.value)
    assert "'analytics plugins lock'" in str(raised.value)
    assert "\n" not in str(raised.value)
    choice = site.choice("shop")
    assert (choice.state, choice.reason) == ("invalid", str(raised.value))


def test_names_in_a_lock_are_those_of_distributions(site: Locked) -> None:
    site.wheel("shop")
    site.write()
    site.lock.write_text(site.lock.read_text("utf-8").replace("dist-shop", "Dist_Shop"), "utf-8")
    assert site.drift() == []


def test_without_locked_no_lock_is_read(site: Locked) -> None:
    site.wheel("shop")
    site.lock.write_text("lock: [", "utf-8")
    check_lock(Settings(manifests_dir=site.manifests))
    assert site.choice("shop", Settings(manifests_dir=site.manifests)).state == "discovered"


def test_the_operator_may_say_where_the_lock_is(site: Locked, tmp_path: Path) -> None:
    assert lock_file(Settings(manifests_dir=site.manifests)) == site.lock
    told = Settings(plugins=Plugins(lock=tmp_path / "x.lock"), manifests_dir=site.manifests)
    assert lock_file(told) == tmp_path / "x.lock"


# --- drift


def newer(site: Locked, home: Path) -> None:
    for path in site.info("shop").iterdir():
        path.unlink()
    site.info("shop").rmdir()
    site.distribution("dist-shop", "shop = shop:plugin.yaml", version="1.1")
    site.record("shop", "1.1")


def rebuilt(site: Locked, home: Path) -> None:
    (home / "__init__.py").write_text("from analytics_core import *\nclass Plugin:\n    'another build'\n")
    site.record("shop")


def edited(site: Locked, home: Path) -> None:
    path = home / "__init__.py"
    path.write_bytes(path.read_bytes()[:-2] + b"#\n")  # of the same size


def emptied(site: Locked, home: Path) -> None:
    (home / "plugin.yaml").rename(home / "plugin.yml")
    (home / "plugin.yml").unlink()


def slipped_in(site: Locked, home: Path) -> None:
    (home / "shadow.py").write_text("")


def made_editable(site: Locked, home: Path) -> None:
    site.editable("shop")


@pytest.mark.parametrize(
    ("alter", "change", "state", "said"),
    [
        (newer, "version", "invalid", ["dist-shop 1.0 (sha256:", "installed is 1.1 (sha256:", "lock dist-shop'"]),
        (rebuilt, "content", "invalid", ["dist-shop 1.0 (sha256:", "installed is 1.0 (sha256:", "lock dist-shop'"]),
        (edited, "content", "invalid", ["shop/__init__.py was changed", "--force-reinstall --no-deps dist-shop==1.0"]),
        (emptied, "content", "invalid", ["plugin.yaml"]),
        (slipped_in, "content", "invalid", ["shadow.py is not listed", "install it again"]),
        (made_editable, "content", "invalid", ["installed is 1.0 (editable sha256:", "lock dist-shop'"]),
    ],
)
def test_drift_is_told_and_does_not_run(
    site: Locked, alter: Callable[[Locked, Path], None], change: str, state: str, said: list[str]
) -> None:
    home = site.wheel("shop")
    site.write()
    alter(site, home)
    (found,) = site.drifts()
    assert (found.distribution, found.change, found.plugins) == ("dist-shop", change, ("shop",))
    choice = site.choice("shop")
    assert choice.state == state
    if alter is not emptied:  # its own manifest is the more urgent reason
        assert choice.reason == found.reason
    for text in said:
        assert text in choice.reason


@pytest.mark.parametrize("prepare", ["editable", "without RECORD"])
def test_sources_that_no_record_lists_are_hashed_themselves(site: Locked, prepare: str) -> None:
    home = site.wheel("shop")
    if prepare == "editable":
        site.editable("shop")
    else:
        (site.info("shop") / "RECORD").unlink()
    site.write()
    assert site.drift() == []
    (home / "more.py").write_text("")
    assert site.drift() == [("dist-shop", "content")]
    (home / "more.py").unlink()
    for ignored in (home / ".more.py.swp", home / "more.py~"):
        ignored.write_text("an editor's")
    assert site.drift() == []


def test_added_and_removed_distributions(site: Locked) -> None:
    site.wheel("shop")
    site.wheel("till")
    site.write("dist-shop")
    for path in site.info("shop").iterdir():
        path.unlink()
    site.info("shop").rmdir()
    assert site.drift() == [("dist-shop", "removed"), ("dist-till", "added")]
    gone, new = site.choice("shop"), site.choice("till")
    assert gone.state == "unresolved"
    assert "has dist-shop 1.0, which is not installed; install it, or" in gone.reason
    assert (new.state, new.verdict.standing) == ("invalid", "unaccepted")
    assert new.reason == f"dist-till 1.0 is not in {site.lock}; accept it with 'analytics plugins lock dist-till'"


def test_what_the_operator_does_not_want_is_not_missed(site: Locked) -> None:
    site.wheel("shop")
    site.write()
    for path in site.info("shop").iterdir():
        path.unlink()
    site.info("shop").rmdir()
    off = Deployment(plugins={"shop": PluginSettingsManifest(name="shop", enabled=False)})
    assert choose(site.found(), site.settings, off) == []


def test_only_what_was_accepted_once_holds_events_back(site: Locked) -> None:
    """A plugin that nobody has accepted must not stop the intake; a locked one that was altered must."""
    home = site.wheel("mask", **GUARD)
    site.write()
    site.wheel("other", **GUARD)
    edited(site, home)
    assert site.choice("mask").guards
    assert not site.choice("other").guards


def test_the_largest_files_are_compared_by_size_at_each_look_and_in_full_by_check(site: Locked) -> None:
    home = site.wheel("shop")
    (home / "model.bin").write_bytes(b"0" * 5000)
    site.record("shop")
    site.write()
    (home / "model.bin").write_bytes(b"1" * 5000)
    assert site.drift(most_bytes=4000) == []
    assert site.drift(most_bytes=None) == [("dist-shop", "content")]
    (home / "model.bin").write_bytes(b"1" * 5001)
    assert site.drift(most_bytes=4000) == [("dist-shop", "content")]


def test_a_row_without_a_hash_is_no_proof(site: Locked) -> None:
    home = site.wheel("shop")
    (home / "extra.py").write_text("")
    (site.info("shop") / "RECORD").open("a").write("shop/extra.py,,\n")
    assert "extra.py has no hash that counts" in installed(site.found())["dist-shop"].altered[0]


def test_a_manifest_that_the_record_does_not_list_is_an_alteration(site: Locked) -> None:
    """Anybody may have laid it there, and it says what runs and how."""
    home = site.wheel("shop", manifest=None)
    site.write()
    (home / "plugin.yaml").write_text("kind: plugin\nmanifest: 1\nname: shop\nentry: shop:Plugin\nhooks: [process]\n")
    (found,) = site.drifts()
    assert "shop/plugin.yaml is not listed" in found.reason
    assert site.choice("shop").state == "invalid"


@pytest.mark.parametrize("prepare", ["wheel", "editable"])
def test_what_is_read_after_the_comparison_has_to_be_what_was_compared(site: Locked, prepare: str) -> None:
    home = site.wheel("shop")
    (home / "inner").mkdir()
    (home / "inner" / "more.py").write_text("a = 1\n")
    (site.editable if prepare == "editable" else site.record)("shop")
    site.write()
    choice = site.choice("shop")
    assert choice.found is not None
    assert choice.confirmed(read_copy(choice.found).files).state == "discovered"
    (home / "inner" / "more.py").write_text("a = 2\n")
    late = choice.confirmed(read_copy(choice.found).files)
    assert (late.state, late.reason.partition(" was changed while")[0]) == ("invalid", "inner/more.py")
    assert choice.confirmed([("new.py", b"")]).state == "invalid"
    assert choice.confirmed(None).state == "invalid"
    assert site.choice("shop", Settings()).confirmed(None).state == "discovered", "without locked nothing is compared"


# --- claims on one name


@pytest.mark.parametrize("other", ["shop", "Shop"])
def test_of_two_that_may_both_run_neither_has_the_name(site: Locked, other: str) -> None:
    site.plugin("shop", distribution="one")
    site.plugin(other, distribution="two", version="3")
    (choice,) = choose(site.found(), Settings(), Deployment())
    assert choice.state == "invalid"
    assert "is claimed by one 1.0 and two 3; uninstall, rename or deny one of them" in choice.reason


def test_one_that_is_kept_out_has_no_power_over_a_name(site: Locked) -> None:
    site.plugin("shop", distribution="one")
    site.plugin("shop", distribution="two", **GUARD)
    for lists in (Plugins(deny=("one",)), Plugins(allow=("two",))):
        (choice,) = choose(site.found(), Settings(plugins=lists), Deployment())
        assert choice.found is not None
        assert (choice.state, choice.found.distribution, choice.guards) == ("discovered", "two", True)
    (choice,) = choose(site.found(), Settings(plugins=Plugins(deny=("two",))), Deployment())
    assert (choice.state, choice.guards) == ("discovered", False)
    (choice,) = choose(site.found(), Settings(plugins=Plugins(deny=("one", "two"))), Deployment())
    assert (choice.state, choice.guards) == ("disabled", False)


def test_under_a_lock_the_name_is_that_of_the_accepted_distribution(site: Locked) -> None:
    site.plugin("shop", distribution="one")
    site.write()
    site.plugin("shop", distribution="another")
    assert site.choice("shop").state == "discovered"
    (site.path / "shop_one" / "more.py").touch()
    altered = site.choice("shop")
    assert (altered.state, altered.reason) == ("invalid", site.drifts()[1].reason)
    assert "has one 1.0" in altered.reason


def test_why_shows_who_claims_a_name_without_a_say(site: Locked) -> None:
    site.plugin("shop", distribution="one")
    site.plugin("shop", distribution="two")
    told = site.json("why", "two", *NOBODY, PLUGINS_DENY="two")
    assert (told["name"], told["runs"]) == ("shop", True)
    assert [(one["distribution"], one["kept_out"]) for one in told["holders"]] == [
        ("one", ""),
        ("two", "plugins.deny (PLUGINS_DENY) has 'two'"),
    ]
    shown = site.run("why", "shop", *NOBODY, PLUGINS_DENY="two").stdout
    assert "shop_two, which has no say in it: plugins.deny (PLUGINS_DENY) has 'two'\n" in shown


def test_the_doctor_runs_no_code_of_what_is_kept_out(site: Locked) -> None:
    site.plugin("shop", f"open({str(site.path / 'ran')!r}, 'w')")
    for environ, step in (({"PLUGINS_DENY": "shop"}, []), ({"PLUGINS_LOCKED": "true"}, ["installation"])):
        site.write() if not step else site.lock.write_text("lock: 1\n")
        (told,) = site.json("doctor", "shop", **environ)["plugins"]
        assert [problem["step"] for problem in told["problems"]] == step
        assert told["kept_out"]
        assert f"none of its code was run: {told['kept_out']}" in site.run("doctor", "shop", **environ).stdout
    assert not (site.path / "ran").exists()


# --- the command


def test_the_command_writes_and_checks(site: Locked) -> None:
    home = site.wheel("shop")
    wrote = site.run("lock")
    assert (wrote.exit_code, wrote.stdout.splitlines()[-1]) == (0, "dist-shop 1.0: shop")
    assert site.run("lock", "--check").exit_code == 0
    rebuilt(site, home)
    told = site.run("lock", "--check", COLUMNS="250")
    assert told.exit_code == 1
    assert "dist-shop" in told.stdout
    assert "content" in told.stdout
    assert site.drifts()[-1].reason in told.stdout
    said = site.json("lock", "--check")
    assert (said["ok"], said["file"]) == (False, str(site.lock))
    assert [(one["distribution"], one["change"]) for one in said["drift"]] == [("dist-shop", "content")]
    assert site.json("lock")["distributions"]["dist-shop"]["version"] == "1.0"
    assert site.run("lock", "--check").exit_code == 0


def test_one_distribution_may_be_accepted_by_itself(site: Locked) -> None:
    site.wheel("shop")
    home = site.wheel("till")
    site.write("dist-till")
    (home / "__init__.py").write_text("class Plugin: 'other'\n")
    site.record("till")
    assert site.run("lock", "Dist_Shop").exit_code == 0
    assert site.drift() == [("dist-till", "content")]


def test_altered_files_cannot_be_locked_and_nothing_is_written(site: Locked) -> None:
    home = site.wheel("shop")
    site.write()
    before = site.lock.read_bytes()
    edited(site, home)
    told = site.run("lock")
    assert told.exit_code == 1
    assert "shop/__init__.py was changed; install it again" in told.stderr
    assert site.lock.read_bytes() == before


def test_wrong_asking(site: Locked) -> None:
    site.wheel("shop")
    assert site.run("lock", "--check").exit_code == 2
    told = site.run("lock", "dist-shp")
    assert (told.exit_code, "did you mean 'dist-shop'?" in told.stderr) == (2, True)


def test_why_says_what_the_lock_says(site: Locked) -> None:
    site.wheel("shop")
    site.run("lock", "dist-shop")
    site.wheel("till")
    told = site.json("why", "till", *NOBODY, PLUGINS_LOCKED="true")
    assert told["state"] == "invalid"
    assert "accept it with 'analytics plugins lock dist-till'" in told["reason"]
    assert site.json("why", "shop", *NOBODY, PLUGINS_LOCKED="true")["runs"]
    assert "till" not in sys.modules


# --- allow and deny


@pytest.mark.parametrize(
    ("allow", "deny", "reason"),
    [
        (None, (), ""),
        (("shop",), (), ""),
        (("dist-*",), (), ""),
        (("Dist_Shop",), (), ""),
        (("till",), (), "plugins.allow (PLUGINS_ALLOW) has nothing that matches it; it has: 'till'"),
        ((), (), "plugins.allow (PLUGINS_ALLOW) has nothing that matches it; it has: nothing"),
        (None, ("sh?p",), "plugins.deny (PLUGINS_DENY) has 'sh?p'"),
        (("shop",), ("x", "dist-*"), "plugins.deny (PLUGINS_DENY) has 'dist-*'"),
        (None, ("ist-shop", "hop", "shop-*"), ""),
    ],
)
def test_lists_of_names(site: Locked, allow: tuple[str, ...] | None, deny: tuple[str, ...], reason: str) -> None:
    site.plugin("shop", **GUARD)
    choice = site.choice("shop", Settings(plugins=Plugins(allow=allow, deny=deny, enabled=("shop",))))
    assert (choice.state, choice.reason) == ("disabled" if reason else "discovered", reason)
    assert choice.guards == (not reason)


def test_entries_that_match_nothing_are_told(site: Locked) -> None:
    site.plugin("shop")
    lists = Plugins(allow=("shop", "tll"), deny=("acme-*", "dist-shop"))
    assert idle_patterns(site.found(), lists) == [("allow", "tll"), ("deny", "acme-*")]


def test_the_lists_come_from_the_environment(site: Locked) -> None:
    site.plugin("shop")
    assert site.json("why", "shop", *NOBODY, PLUGINS_DENY="other, sho*")["reason"].endswith("has 'sho*'")
    assert site.json("why", "shop", *NOBODY, PLUGINS_ALLOW="")["runs"]


def test_what_has_changed_and_what_still_differs_is_said(site: Locked) -> None:
    site.wheel("shop")
    home = site.wheel("till")
    site.wheel("cart")
    site.write("dist-shop", "dist-till")
    (home / "__init__.py").write_text("class Plugin: 'other'\n")
    site.record("till")
    told = site.run("lock", "dist-cart", "dist-shop")
    assert [line for line in told.stdout.splitlines() if not line.startswith("! ")][:2] == [
        "dist-cart 1.0: cart",
        "dist-shop 1.0: shop, as before",
    ]
    assert "accept it with 'analytics plugins lock dist-till'" in told.stdout
    assert "dist-till 1.0: till" not in told.stdout
    told = site.json("lock", "dist-till")
    assert (told["changed"], "dist-till" in [one["distribution"] for one in told["drift"]]) == (["dist-till"], False)


def test_doctor_holds_to_the_lock_when_it_is_told_to(site: Locked) -> None:
    site.wheel("shop", "raise SystemExit('run')")
    site.lock.write_text("lock: 1\ndistributions: {}\n", "utf-8")
    for told in (site.json("doctor", "shop", "--locked"), site.json("doctor", "shop", PLUGINS_LOCKED="true")):
        (seen,) = told["plugins"]
        assert "accept it with 'analytics plugins lock dist-shop'" in seen["kept_out"]
        assert seen["seconds"] == {}
