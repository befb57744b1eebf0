"""Which plugins are installed, found in real distribution metadata on disk and read without an import."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest

from analytics_core.host.discovery import Found, discover

YAML = """
kind: plugin
manifest: 1
name: {name}
entry: {package}.plugin:Plugin
hooks: [process]
"""


class Site:
    """A site-packages of its own, with what ``pip`` leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def distribution(
        self,
        name: str,
        entries: dict[str, str],
        version: str = "1.2",
        files: tuple[str, ...] = (),
        direct_url: str = "",
    ) -> None:
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(
            f"[console_scripts]\na = b:c\n\n[analytics_core.plugins]\n{lines}", "utf-8"
        )
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files), "utf-8")
        if direct_url:
            (info / "direct_url.json").write_text(direct_url, "utf-8")

    def package(self, package: str, yaml: str | None = None, *, name: str = "shop", namespace: bool = False) -> Path:
        folder = self.path.joinpath(*package.split("."))
        folder.mkdir(parents=True)
        if not namespace:
            (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", "utf-8")
        (folder / "plugin.yaml").write_text(yaml or YAML.format(name=name, package=package), "utf-8")
        return folder

    def discover(self) -> list[Found]:
        return discover([str(self.path)])

    def only(self) -> Found:
        (found,) = self.discover()
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_a_plugin_is_found_and_not_imported(site: Site) -> None:
    folder = site.package("shop_watch")
    site.distribution("Shop-Watch", {"shop": "shop_watch:plugin.yaml"})
    site.distribution("unrelated", {})
    found = site.only()
    assert (found.name, found.distribution, found.version, found.package) == ("shop", "Shop-Watch", "1.2", "shop_watch")
    assert (found.directory, found.state, found.problem) == (folder, "discovered", None)
    assert found.manifest is not None
    assert found.manifest.entry == "shop_watch.plugin:Plugin"
    assert "shop_watch" not in sys.modules


@pytest.mark.parametrize("namespace", [False, True])
def test_a_package_inside_another(site: Site, namespace: bool) -> None:
    folder = site.package("company_x.analytics.shop", namespace=namespace)
    site.distribution("shop", {"shop": "company_x.analytics.shop:plugin.yaml"})
    assert site.only().directory == folder
    assert site.only().problem is None
    assert "company_x" not in sys.modules


def test_a_single_module_keeps_its_manifest_beside_it(site: Site) -> None:
    (site.path / "tiny_shop.py").write_text("raise RuntimeError('imported')\n", "utf-8")
    (site.path / "tiny_shop.yaml").write_text(
        YAML.format(name="shop", package="tiny_shop").replace(".plugin:", ":"), "utf-8"
    )
    site.distribution("tiny", {"shop": "tiny_shop:tiny_shop.yaml"})
    assert (site.only().problem, site.only().directory) == (None, site.path)


def test_two_plugins_of_one_distribution(site: Site) -> None:
    site.package("one_shop", name="one")
    site.package("two_shop", name="two")
    site.distribution("both", {"two": "two_shop:plugin.yaml", "one": "one_shop:plugin.yaml"})
    assert [f.name for f in site.discover()] == ["one", "two"]


def test_an_editable_install_by_path_file_is_found_while_running(site: Site, tmp_path: Path) -> None:
    folder = Site(tmp_path / "checkout").package("edited_shop")
    (site.path / "_edited.pth").write_text(f"# made by hatchling\nimport nothing\n{tmp_path / 'checkout'}\n", "utf-8")
    site.distribution("edited", {"shop": "edited_shop:plugin.yaml"}, files=("_edited.pth",))
    assert (site.only().problem, site.only().directory) == (None, folder)


def test_an_editable_install_by_import_hook_says_what_to_do(site: Site) -> None:
    url = json.dumps({"url": "file:///src", "dir_info": {"editable": True}})
    site.distribution("hooked", {"shop": "hooked_shop:plugin.yaml"}, direct_url=url)
    found = site.only()
    assert found.state == "invalid"
    assert "editable install by an import hook" in (found.problem or "")
    assert "restart the host" in (found.problem or "")


def test_an_import_hook_of_this_process_is_asked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Site(tmp_path / "checkout").package("mapped_shop")

    class Hook:
        @classmethod
        def find_spec(cls, name: str, path: object, target: object = None) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(folder.parent)]) if name == "mapped_shop" else None

    site.distribution("mapped", {"shop": "mapped_shop:plugin.yaml"})
    monkeypatch.syspath_prepend(str(site.path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    found = next(f for f in discover() if f.distribution == "mapped")
    assert (found.problem, found.directory) == (None, folder)
    assert "mapped_shop" not in sys.modules


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("shop_watch", "its entry point is 'shop_watch'; valid is 'package:plugin.yaml'"),
        ("shop_watch:other.yaml", "other.yaml: cannot be read: No such file"),
        ("missing_shop:plugin.yaml", "the package 'missing_shop' is not to be found in broken; is it left out"),
        ("shop_watch.inner:plugin.yaml", "the package 'shop_watch.inner' of its entry point does not exist"),
    ],
)
def test_an_entry_point_that_leads_nowhere(site: Site, value: str, expected: str) -> None:
    site.package("shop_watch")
    site.distribution("broken", {"shop": value})
    found = site.only()
    assert (found.state, found.manifest, found.name) == ("invalid", None, "shop")
    assert expected in (found.problem or "")


@pytest.mark.parametrize(
    ("old", "new", "state", "expected"),
    [
        ("hooks: [process]", "hoks: [process]", "invalid", "hoks: the key is not known; did you mean 'hooks'?"),
        ("manifest: 1", "manifest: 2\nlater: 1", "incompatible", "manifest: version 2 is not known to this host"),
        ("name: shop", "name: shops", "invalid", "its entry point is named 'shop' and its plugin.yaml 'shops'"),
        ("shop_watch.plugin", "shop_watched.plugin", "invalid", "is outside the package 'shop_watch'"),
        ("kind: plugin", "kind: metric", "invalid", "kind: 'metric' is not valid in a package; valid is: plugin"),
        ("hooks: [process]", "hooks: [", "invalid", "is not YAML"),
    ],
)
def test_a_broken_manifest_is_shown_with_its_reason(site: Site, old: str, new: str, state: str, expected: str) -> None:
    site.package("shop_watch", YAML.format(name="shop", package="shop_watch").replace(old, new))
    site.distribution("broken", {"shop": "shop_watch:plugin.yaml"})
    found = site.only()
    assert found.state == state
    assert expected in (found.problem or "")


def test_one_name_of_two_distributions_stops_both(site: Site) -> None:
    site.package("shop_a", name="shop-watch")
    site.package("shop_b", name="shop-watch")
    site.package("shop_c", name="other")
    site.distribution("dist-a", {"shop-watch": "shop_a:plugin.yaml"})
    site.distribution("dist-b", {"shop-watch": "shop_b:plugin.yaml"}, version="3")
    site.distribution("dist-c", {"other": "shop_c:plugin.yaml"})
    found = {f.distribution: f for f in site.discover()}
    assert found["dist-c"].problem is None
    for name in ("dist-a", "dist-b"):
        assert "claimed by dist-a 1.2 and dist-b 3" in (found[name].problem or "")
        assert found[name].state == "invalid"


def test_names_that_differ_by_their_dashes_clash_too(site: Site) -> None:
    site.package("shop_a", name="shop-watch")
    site.package("shop_b", name="shop-watch")
    site.distribution("dist-a", {"shop-watch": "shop_a:plugin.yaml"})
    site.distribution("dist-b", {"shop_watch": "shop_b:plugin.yaml"})
    assert ["claimed by" in (f.problem or "") for f in site.discover()] == [True, True]


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(site: Site, tmp_path: Path) -> None:
    behind = Site(tmp_path / "behind")
    for place, version in ((site, "2.0"), (behind, "1.0")):
        place.package("shop_watch")
        place.distribution("shop-watch", {"shop": "shop_watch:plugin.yaml"}, version=version)
    (found,) = discover([str(site.path), str(behind.path)])
    assert (found.version, found.problem) == ("2.0", None)


def test_the_metadata_of_other_distributions_is_not_parsed(site: Site) -> None:
    """What keeps discovery fast among hundreds: only those with an entry point of ours are looked into."""
    site.package("shop_watch")
    site.distribution("shop", {"shop": "shop_watch:plugin.yaml"})
    for number in range(100):
        info = site.path / f"other_{number}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_bytes(b"\xff\xfe not to be read")
        (info / "entry_points.txt").write_text("[console_scripts]\na = b:c\n", "utf-8")
    assert site.only().problem is None
