"""The operator's word in the manifests: one line changes and every other byte stays, or nothing does."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from analytics_core.config import Plugins, Settings
from analytics_core.errors import ManifestError, ManifestNotWrittenError, NotSwitchedError
from analytics_core.host.intent import set_enabled
from analytics_core.manifest import read_deployment
from analytics_core.manifest.switching import Switched, switch
from tests.unit.cli_plugins_site import NOBODY, Site

TODAY = f"{datetime.now(UTC):%Y-%m-%d}"
HEAD = "kind: plugin-settings\nname: shop\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def turned(home: Path, text: str, enabled: bool, environ: dict[str, str] | None = None, **given: Any) -> str:
    """``text`` after shop was switched in it."""
    path = home / "plugins.yaml"
    path.write_bytes(text.encode())
    done = switch(home, "shop", enabled, environ or {}, **given)
    assert done == Switched("shop", enabled, True, str(path))
    assert read_deployment(home, environ or {}).plugins["shop"].enabled is enabled
    assert [each.name for each in home.iterdir()] == ["plugins.yaml"], "no draft is left"
    return path.read_bytes().decode()


WHOLE = """# on top
kind: metric
name: shop          # a metric of that name
---
# first, a comment
kind: plugin-settings
settings: {token: "${TOKEN:-x}", 'quoted': 'it''s', on: "${ON:-}"}
enabled:   true     # kept, with its blanks\t
limits:
    call_seconds: 1.50
name: shop
---
kind: plugin-settings
name: other
enabled: true
# at the end, without a line break"""


def test_only_the_one_word_changes_and_all_else_stays_byte_for_byte(home: Path) -> None:
    off = turned(home, WHOLE, False)
    assert off == WHOLE.replace("enabled:   true     # kept", "enabled:   false     # kept")
    assert turned(home, off, True) == WHOLE


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_breaks_and_a_byte_order_mark_stay(home: Path, newline: str) -> None:
    text = "\ufeff" + WHOLE.replace("\n", newline)
    assert turned(home, text, False) == text.replace("enabled:   true     # kept", "enabled:   false     # kept")
    without = f"kind: plugin-settings{newline}name: shop{newline}isolation: thread{newline}"
    assert turned(home, without, False) == without.replace("shop", f"shop{newline}enabled: false")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEAD + "enabled: true", HEAD + "enabled: false"),
        (HEAD + "enabled: TRUE\n", HEAD + "enabled: false\n"),
        (HEAD, HEAD + "enabled: false\n"),
        ("kind: plugin-settings\nname: shop", HEAD + "enabled: false"),
        ("name: shop # here\nkind: plugin-settings\n", "name: shop # here\nenabled: false\nkind: plugin-settings\n"),
        ("  kind: plugin-settings\n  name: shop\n", "  kind: plugin-settings\n  name: shop\n  enabled: false\n"),
        ("---\n" + HEAD + "...\n", "---\n" + HEAD + "enabled: false\n...\n"),
        ("# é 日本\n" + HEAD + "enabled: true\n", "# é 日本\n" + HEAD + "enabled: false\n"),
        (HEAD + "settings:\n  enabled: true\n", HEAD + "enabled: false\nsettings:\n  enabled: true\n"),
        (HEAD + "x-a: &on true\nenabled: true\n", HEAD + "x-a: &on true\nenabled: false\n"),
    ],
)
def test_however_the_document_is_written(home: Path, before: str, after: str) -> None:
    assert turned(home, before, False) == after


def test_a_name_out_of_the_environment(home: Path) -> None:
    text = "kind: plugin-settings\nname: ${WHICH}\n"
    assert turned(home, text, False, {"WHICH": "shop"}) == text + "enabled: false\n"


def test_a_reason_is_a_comment_that_enabling_takes_away(home: Path) -> None:
    text = HEAD + "enabled: true  # ours\nisolation: thread\n"
    off = turned(home, text, False, reason=" it floods:\n  #1 \x07")
    assert off == HEAD + f"enabled: false  # ours  # disabled {TODAY}: it floods: #1\nisolation: thread\n"
    assert turned(home, off, True) == text


REFUSED = {
    "environment": (HEAD + "enabled: ${SHOP_ON:-true}\n", r"line 3\) is \$\{SHOP_ON:-true\}; let that be false"),
    "flow style": ("{kind: plugin-settings, name: shop, enabled: true}\n", r"line 1\) is written between braces"),
    "an alias": (HEAD + "x-on: &on true\nenabled: *on\n", r"line 4\) is no plain true or false"),
    "an anchor": (HEAD + "enabled: &on true\nx-on: *on\n", r"line 3\) is no plain true or false"),
    "a tag": (HEAD + "enabled: !!bool true\n", r"line 3\) is no plain true or false"),
    "a key of two lines": (HEAD + "? enabled\n: true\n", "is no plain true or false"),
    "a name of two lines": ("kind: plugin-settings\nname: >-\n  shop\nsettings:\n  a: 1\n", "cannot be edited safely"),
}


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED)
def test_what_only_a_person_can_edit_is_refused_and_left_alone(home: Path, text: str, why: str) -> None:
    path = home / "plugins.yaml"
    path.write_text(text)
    with pytest.raises(NotSwitchedError, match=why) as refusal:
        switch(home, "shop", False, {})
    assert "Plugin 'shop'" in str(refusal.value)
    assert "false" in str(refusal.value) or "by hand" in str(refusal.value)
    assert path.read_text() == text


def test_a_variable_that_decides_is_named(home: Path) -> None:
    (home / "plugins.yaml").write_text(HEAD + 'enabled: "${SHOP_ON:-true}"\n')
    with pytest.raises(NotSwitchedError, match=r"is \$\{SHOP_ON:-true\}; let that be false, or write"):
        switch(home, "shop", False, {"SHOP_ON": "true"})
    assert not switch(home, "shop", False, {"SHOP_ON": "false"}).changed


def test_two_documents_for_one_plugin_are_refused_with_both_places(home: Path) -> None:
    text = HEAD + "---\n" + HEAD
    (home / "plugins.yaml").write_text(text)
    with pytest.raises(ManifestError, match=r"declared already in .*plugins\.yaml \(line 1\); rename or remove one"):
        switch(home, "shop", False, {})
    assert (home / "plugins.yaml").read_text() == text


def test_manifests_that_no_server_would_take_are_refused(home: Path) -> None:
    (home / "metrics.yaml").write_text("kind: metrik\n")
    with pytest.raises(ManifestError, match="did you mean 'metric'"):
        switch(home, "shop", False, {})
    assert not (home / "plugin-shop.yaml").exists()


# --- a file of its own


def test_without_a_document_a_file_with_a_clear_name_is_made(home: Path) -> None:
    path = home / "plugin-shop.yaml"
    assert switch(home, "shop", False, {}, reason="no") == Switched("shop", False, True, str(path))
    made = path.read_text()
    assert made.endswith(HEAD + f"enabled: false  # disabled {TODAY}: no\n")
    assert path.stat().st_mode & 0o777 == 0o644
    assert switch(home, "shop", True, {}).changed
    assert path.read_text().endswith(HEAD + "enabled: true\n")


def test_what_is_so_already_is_not_written(home: Path) -> None:
    assert switch(home, "shop", True, {}) == Switched("shop", True, False, None)
    assert switch(home, "shop", False, {}, otherwise=False) == Switched("shop", False, False, None)
    assert not list(home.iterdir())
    assert switch(home, "shop", True, {}, otherwise=False).changed
    before = (home / "plugin-shop.yaml").stat()
    assert switch(home, "shop", True, {}) == Switched("shop", True, False, str(home / "plugin-shop.yaml"))
    after = (home / "plugin-shop.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_is_there_for_something_else_is_not_written_over(home: Path) -> None:
    (home / "plugin-shop.yaml").write_text("kind: metric\nname: shop\n")
    with pytest.raises(NotSwitchedError, match=r"add a document by hand: kind: plugin-settings; name: shop; enabled: "):
        switch(home, "shop", False, {})


def test_a_name_that_plugin_settings_cannot_have_makes_no_file(home: Path) -> None:
    below = home / "manifests"
    below.mkdir()
    with pytest.raises(NotSwitchedError, match="does not match"):
        switch(below, "x/../../shop", False, {})
    assert [each.name for each in home.rglob("*")] == ["manifests"]


def test_a_folder_that_is_missing_is_not_made(home: Path) -> None:
    with pytest.raises(NotSwitchedError, match=r"does not exist; make it, or name another with --manifests"):
        switch(home / "nowhere", "shop", False, {})
    assert not (home / "nowhere").exists()


# --- the disk


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(home: Path) -> None:
    real, manifests = home / "real.txt", home / "manifests"
    manifests.mkdir()
    real.write_text(HEAD)
    real.chmod(0o640)
    (manifests / "shop.yaml").symlink_to(real)
    switch(manifests, "shop", False, {})
    assert (manifests / "shop.yaml").is_symlink()
    assert real.read_text() == HEAD + "enabled: false\n"
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["analytics_core.manifest.switching.mkstemp", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("text", ["", HEAD])
def test_what_the_system_refuses_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: str, text: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = home / "shop.yaml"
    path.write_text(text)
    monkeypatch.setattr(call, refuse)
    with pytest.raises(ManifestNotWrittenError, match="cannot be written: Read-only file system; nothing was changed"):
        switch(home, "shop", False, {})
    assert [each.name for each in home.iterdir()] == ["shop.yaml"]
    assert path.read_text() == text


def test_readers_see_the_old_text_or_the_new_one_and_switches_wait_for_each_other(home: Path) -> None:
    others = "".join(f"---\nkind: plugin-settings\nname: p{n}\nenabled: true\n" for n in range(8))
    (home / "plugins.yaml").write_text(others)
    threads = [threading.Thread(target=switch, args=(home, f"p{n}", False, {})) for n in range(8)]
    with (home / "plugins.yaml").open() as held:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert held.read() == others, "who has it open reads the old text to its end"
    assert not any(each.enabled for each in read_deployment(home, {}).plugins.values())


def test_a_switch_waits_for_the_one_before(home: Path) -> None:
    descriptor = os.open(home, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting = threading.Thread(target=switch, args=(home, "shop", False, {}))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert not (home / "plugin-shop.yaml").exists()
    os.close(descriptor)
    waiting.join(5)
    assert (home / "plugin-shop.yaml").exists()


# --- who decides


def test_a_list_that_decides_alone_is_named(home: Path) -> None:
    settings = Settings(manifests_dir=home, plugins=Plugins(enabled=("other", "third")))
    with pytest.raises(NotSwitchedError, match=r"PLUGINS_ENABLED .*lists other, third and beats .*add it to that list"):
        set_enabled("shop", True, settings, {})
    with pytest.raises(NotSwitchedError, match="take it off that list"):
        set_enabled("other", False, settings, {})
    assert not list(home.iterdir())


def test_without_auto_load_a_plugin_is_enabled_by_name(home: Path) -> None:
    settings = Settings(manifests_dir=home, plugins=Plugins(auto_load=False))
    assert not set_enabled("shop", False, settings, {}).changed
    assert set_enabled("shop", True, settings, {}).changed


# --- the commands, without a server


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_commands_write_and_say_when_it_takes_effect(site: Site) -> None:
    site.plugin("shop", "raise SystemExit('imported')", distribution="Acme-Shop")
    path = site.manifests / "plugin-shop.yaml"
    shown = site.run("disable", "acme_shop", "--reason", "too loud", *NOBODY)
    assert (shown.exit_code, shown.stdout) == (
        0,
        f"shop is disabled in {path}\n"
        "  disabled: plugin-settings say 'enabled: false' (as it is installed)\n"
        "  no server answers at http://127.0.0.1:1: it takes effect at the next start\n",
    )
    assert path.read_text().endswith(f"enabled: false  # disabled {TODAY}: too loud\n")
    why = site.run("why", "shop", *NOBODY)
    assert f"  {path}, line 4: enabled: false  # disabled {TODAY}: too loud\n" in why.stdout
    assert site.json("why", "shop", *NOBODY, PLUGINS_ENABLED="other")["line"].startswith(str(path))
    again = site.run("disable", "shop", *NOBODY)
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, f"shop is disabled already in {path}")
    told = site.json("enable", "shop", *NOBODY)
    assert (told["enabled"], told["changed"], told["file"], told["state"]) == (True, True, str(path), "discovered")
    assert site.json("enable", "shop", *NOBODY)["changed"] is False


def test_enabled_but_not_able_to_run_is_said_with_the_reason(site: Site) -> None:
    site.plugin("shop", requires={"plugins": {"missing": ""}})
    site.operator("shop", enabled=False)
    shown = site.run("enable", "shop", *NOBODY)
    assert shown.exit_code == 1
    assert "blocked: requires 'missing', which is not installed" in shown.stdout


def test_an_unknown_plugin_suggests_the_nearest_and_writes_nothing(site: Site) -> None:
    site.plugin("checkout-watch")
    shown = site.run("disable", "checkout-wach", *NOBODY)
    assert (shown.exit_code, shown.stderr) == (
        2,
        "analytics: no plugin is named 'checkout-wach'; did you mean 'checkout-watch'?\n",
    )
    assert not list(site.manifests.iterdir())


def test_a_plugin_that_is_not_installed_can_be_disabled_where_it_is_named(site: Site) -> None:
    site.operator("gone", enabled=True)
    shown = site.run("disable", "gone", *NOBODY)
    assert shown.exit_code == 0
    assert "  it is not installed (as it is installed)\n" in shown.stdout
    told = site.json("disable", "gone", *NOBODY)
    assert (told["state"], told["reason"]) == ("", "it is not installed")
    assert site.run("enable", "gone", *NOBODY).exit_code == 1


@pytest.mark.parametrize("command", ["enable", "disable"])
def test_the_variable_that_beats_the_manifests_is_named(site: Site, command: str) -> None:
    site.plugin("shop")
    shown = site.run(command, "shop", *NOBODY, PLUGINS_ENABLED="other")
    assert shown.exit_code == 1
    assert "PLUGINS_ENABLED ('plugins.enabled' of host.yaml) lists other and beats every 'enabled'" in shown.stderr
    assert not list(site.manifests.iterdir())
