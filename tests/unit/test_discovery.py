"""Which plugins are installed, found in real distribution metadata on disk and read without an import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest

from analytics_core.host.installed.dependencies import Dependencies
from analytics_core.host.installed.discovery import Found, discover

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
    found = site.only()
    assert (found.problem, found.directory, found.single) == (None, site.path, True)
    assert found.manifest_file == site.path / "tiny_shop.yaml"


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


def test_all_who_claim_a_name_are_found(site: Site) -> None:
    for package in ("shop_a", "shop_b"):
        site.package(package, name="shop-watch")
        site.distribution(package, {"shop-watch": f"{package}:plugin.yaml"})
    assert [(f.distribution, f.name, f.problem) for f in site.discover()] == [
        ("shop_a", "shop-watch", None),
        ("shop_b", "shop-watch", None),
    ]


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


# --- in a process that has been running for a while ------------------------------------------------------------------

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "edited-shop"
version = "3.1"
[project.entry-points."analytics_core.plugins"]
shop = "edited_shop:plugin.yaml"
"""


def test_what_comes_within_one_tick_of_the_clock_is_seen(site: Site) -> None:
    """What is cached of a directory goes by its time."""
    site.package("one_shop", name="one")
    site.distribution("one", {"one": "one_shop:plugin.yaml"})
    os.utime(site.path, (1000.0, 1000.0))
    assert [f.name for f in site.discover()] == ["one"]
    site.package("two_shop", name="two")
    site.distribution("two", {"two": "two_shop:plugin.yaml"})
    os.utime(site.path, (1000.0, 1000.0))
    assert [(f.name, f.problem) for f in site.discover()] == [("one", None), ("two", None)]
    shutil.rmtree(site.path / "one-1.2.dist-info")
    os.utime(site.path, (1000.0, 1000.0))
    assert [f.name for f in site.discover()] == ["two"]


def test_a_real_editable_install_and_its_end(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    pytest.importorskip("hatchling")
    checkout = tmp_path / "checkout"
    folder = Site(checkout).package("edited_shop")
    (checkout / "pyproject.toml").write_text(PROJECT, "utf-8")
    packages = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    assert discover([str(packages)]) == []
    options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--prefix", str(tmp_path)]
    pip = [sys.executable, "-m", "pip", "install", *options, "--editable", str(checkout)]
    subprocess.run(pip, check=True, capture_output=True)
    (found,) = discover([str(packages)])
    assert (found.version, found.directory, found.problem) == ("3.1", folder, None)
    for path in packages.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert discover([str(packages)]) == []


def test_the_checkout_that_is_linked_now_counts(site: Site, tmp_path: Path) -> None:
    """``sys.path`` still has the one that was linked when the process began."""
    before, now = (Site(tmp_path / name) for name in ("before", "now"))
    before.package("edited_shop")
    folder = now.package("edited_shop")
    (site.path / "_edited.pth").write_text(f"{now.path}\n", "utf-8")
    site.distribution("edited", {"shop": "edited_shop:plugin.yaml"}, files=("_edited.pth",))
    (found,) = discover([str(site.path), str(before.path)])
    assert found.directory == folder


@pytest.mark.parametrize("linked", [False, True])
def test_a_package_that_is_missing_is_expected_somewhere(site: Site, tmp_path: Path, linked: bool) -> None:
    if linked:
        (site.path / "_edited.pth").write_text(f"{tmp_path / 'gone'}\n", "utf-8")
    site.distribution("shop", {"shop": "company_x.shop:plugin.yaml"}, files=("_edited.pth",))
    found = site.only()
    assert found.state == "invalid"
    assert found.directory == (tmp_path / "gone" if linked else site.path) / "company_x" / "shop"


def test_what_pip_has_moved_aside_does_not_count(site: Site) -> None:
    site.package("shop_watch")
    site.distribution("shop", {"shop": "shop_watch:plugin.yaml"})
    (site.path / "shop-1.2.dist-info").rename(site.path / "~hop-1.2.dist-info")
    assert site.discover() == []


@pytest.mark.parametrize("file", ["METADATA", "entry_points.txt"])
def test_an_installation_without_all_its_metadata_is_not_one_yet(site: Site, file: str) -> None:
    site.package("shop_watch")
    site.distribution("shop", {"shop": "shop_watch:plugin.yaml"})
    (site.path / "shop-1.2.dist-info" / file).unlink()
    assert site.discover() == []


def test_half_written_entry_points_are_a_problem_of_one(site: Site) -> None:
    site.package("shop_watch")
    for name in ("shop", "half", "garbled"):
        site.distribution(name, {"shop": "shop_watch:plugin.yaml"})
    (site.path / "half-1.2.dist-info" / "entry_points.txt").write_text("[analytics_core.plugins]\nsh", "utf-8")
    (site.path / "garbled-1.2.dist-info" / "entry_points.txt").write_bytes(b"[analytics_core.plugins]\nsh = \xff")
    half, shop = site.discover()
    assert (half.name, half.state) == ("half", "invalid")
    assert shop.problem is None


@pytest.mark.parametrize(
    ("name", "linked", "counts"),
    [
        ("shop-1.2-py3.11.egg-info", False, True),
        ("shop-1.2.egg-info", False, True),
        ("shop.egg-info", False, False),
        ("shop.egg-info", True, True),
    ],
    ids=["installed by setup.py", "installed by a system", "left by a build or a develop install", "developed"],
)
def test_an_egg_info_counts_when_it_stands_for_an_installation(
    site: Site, tmp_path: Path, name: str, linked: bool, counts: bool
) -> None:
    checkout = Site(tmp_path / "checkout")
    folder = checkout.package("shop_watch")
    checkout.distribution("shop", {"shop": "shop_watch:plugin.yaml"})
    info = (checkout.path / "shop-1.2.dist-info").rename(checkout.path / name)
    (info / "METADATA").rename(info / "PKG-INFO")
    if linked:
        (site.path / "shop.egg-link").write_text(f"{checkout.path}\n../", "utf-8")
    found = discover([str(checkout.path), str(site.path)])
    assert [f.directory for f in found] == ([folder] if counts else [])


def test_an_egg_info_beside_linked_sources_does_not_stand_before_the_installation(site: Site, tmp_path: Path) -> None:
    checkout = Site(tmp_path / "checkout")
    folder = checkout.package("shop_watch")
    checkout.distribution("shop", {"old": "shop_watch:plugin.yaml"}, version="1")
    (checkout.path / "shop-1.dist-info").rename(checkout.path / "shop.egg-info")
    (site.path / "shop.pth").write_text(str(checkout.path), "utf-8")
    site.distribution("shop", {"shop": "shop_watch:plugin.yaml"}, version="2", files=("shop.pth",))
    (found,) = discover([str(checkout.path), str(site.path)])
    assert (found.version, found.directory, found.problem) == ("2", folder, None)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("RECORD", b"\xff,,\n"),
        ("RECORD", b"shop_watch/__init__.py,sha256=x,many\n"),
        ("RECORD", b"a,b,c,d\n"),
        ("METADATA", b"Name: shop\nVersion: 1.2\nAuthor: M\xfcller\n"),
    ],
)
def test_garbled_metadata_of_one_are_no_trouble_of_the_others(site: Site, file: str, content: bytes) -> None:
    for name in ("shop", "till"):
        site.package(f"{name}_watch", name=name)
        site.distribution(name, {name: f"{name}_watch:plugin.yaml"})
    (site.path / "shop-1.2.dist-info" / file).write_bytes(content)
    assert [(f.name, f.version, f.problem) for f in site.discover()] == [("shop", "1.2", None), ("till", "1.2", None)]
    dependencies = Dependencies([str(site.path)])
    assert [dependencies.changed(each) for each in site.discover()] == [(), ()]


@pytest.mark.parametrize("value", ["shop_watch:plugin\0.yaml", "shop_watch:plugin.yaml"])
def test_what_python_itself_refuses_to_read_is_a_problem_of_one(site: Site, value: str) -> None:
    site.package("shop_watch", YAML.format(name="shop", package="shop_watch") + f"x-large: {'9' * 5000}\n")
    site.distribution("shop", {"shop": value})
    assert site.only().state == "invalid"
