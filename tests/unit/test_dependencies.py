"""What a process has imported of the distributions below its plugins, against what is installed by then."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest

from analytics_core.host.installed.dependencies import HOST, Dependencies
from analytics_core.host.installed.discovery import Found

Import = Callable[[str], None]


class Site:
    """A site-packages of its own, with what ``pip`` leaves behind, and the questions about the plugin in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(
        self,
        name: str,
        version: str = "1.0",
        requires: Iterable[str] = (),
        files: Iterable[str] | None = None,
        *,
        extras: Iterable[str] = (),
        content: str = "",
    ) -> Path:
        """``files`` default to a package of the same name; each gets a hash of the version and ``content``."""
        self.uninstall(name)
        stem = name.replace("-", "_")
        info = self.path / f"{stem}-{version}.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {each}\n" for each in requires] + [f"Provides-Extra: {each}\n" for each in extras]
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}"
        (info / "METADATA").write_text(text, "utf-8")
        listed = (f"{stem}/__init__.py", f"{stem}/deep/inner.py") if files is None else files
        rows = [f"{file},sha256={version}{content},1\n" for file in listed]
        record = f"{info.name}/METADATA,,\n../../bin/{stem},sha256=abc,1\n{stem}/__pycache__/a.cpython-311.pyc,,\n"
        (info / "RECORD").write_text("".join([*rows, record]), "utf-8")
        return info

    def uninstall(self, name: str) -> None:
        for info in self.path.glob(f"{name.replace('-', '_')}-*-info"):
            shutil.rmtree(info)

    def found(self, distribution: str = "shop", package: str = "shop") -> Found:
        return Found(distribution, distribution, "1.0", package, self.path / package)

    def dependencies(self) -> Dependencies:
        """As a host has them that has seen the plugin once."""
        dependencies = Dependencies([str(self.path)])
        dependencies.changed(self.found())
        return dependencies

    def drifts(self, dependencies: Dependencies) -> list[str]:
        dependencies.look()
        return [str(drift) for drift in dependencies.changed(self.found())]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Import:
    return lambda name: monkeypatch.setitem(sys.modules, name, ModuleType(name))


def test_an_upgrade_of_what_is_imported_is_named(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib>=1"])
    site.install("dep-lib")
    imports("dep_lib")
    dependencies = site.dependencies()
    assert site.drifts(dependencies) == []
    site.install("dep-lib", "1.1")
    assert site.drifts(dependencies) == ["dep-lib 1.0 -> 1.1, of which 1.0 is imported already"]
    assert site.drifts(dependencies) != [], "it stays so"
    site.install("dep-lib")
    assert site.drifts(dependencies) == [], "what was imported is back"


def test_what_is_not_imported_is_imported_as_it_is_then(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib")
    dependencies = site.dependencies()
    site.install("dep-lib", "1.1")
    assert site.drifts(dependencies) == []
    imports("dep_lib")
    assert site.drifts(dependencies) == []
    site.install("dep-lib", "1.2")
    assert site.drifts(dependencies) == ["dep-lib 1.1 -> 1.2, of which 1.1 is imported already"]


def test_the_same_version_with_other_files(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib")
    imports("dep_lib")
    dependencies = site.dependencies()
    site.install("dep-lib", content="x")
    assert site.drifts(dependencies) == ["dep-lib 1.0 has been installed with other files, and is imported already"]


def test_the_same_files_installed_anew_are_no_change(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib")
    imports("dep_lib")
    dependencies = site.dependencies()
    info = site.install("dep-lib")
    (info / "REQUESTED").write_text("", "utf-8")
    with (info / "RECORD").open("a") as record:
        record.write(f"{info.name}/REQUESTED,sha256=0,0\n")
    assert site.drifts(dependencies) == []


def test_while_pip_is_at_work_nothing_is_said(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    info = site.install("dep-lib")
    imports("dep_lib")
    dependencies = site.dependencies()
    aside = info.rename(site.path / "~ep_lib-1.0.dist-info")
    assert site.drifts(dependencies) == []
    (aside / "RECORD").unlink()
    aside.rename(info)
    assert site.drifts(dependencies) == []
    site.install("dep-lib", "1.1")
    assert len(site.drifts(dependencies)) == 1


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        (["middle"], ["deepest"]),
        (["Middle"], ["deepest"]),
        (["middle; python_version < '3'"], []),
        (["middle; extra == 'ml'"], ["deepest"]),
        (["extended"], []),
        (["extended[more]"], ["deepest"]),
        (["extended[other]"], []),
        (["not-installed", "middle"], ["deepest"]),
        (["no requirement ~~", "middle"], ["deepest"]),
        ([], []),
    ],
)
def test_what_is_required_by_whatever_way(
    site: Site, imports: Import, requires: list[str], expected: list[str]
) -> None:
    site.install("shop", requires=requires, extras=["ml"])
    site.install("middle", requires=["shop", "circle"])
    site.install("circle", requires=["middle", "deepest"])
    site.install("extended", requires=["middle; extra == 'more'"], extras=["more", "other"])
    site.install("deepest")
    imports("deepest")
    dependencies = site.dependencies()
    site.install("deepest", "2.0")
    dependencies.look()
    assert [drift.distribution for drift in dependencies.changed(site.found())] == expected


@pytest.mark.parametrize(
    ("files", "imported", "expected"),
    [
        (["single.py"], "single", True),
        (["fast.cpython-311-x86_64-linux-gnu.so"], "fast", True),
        (["shared/mine/__init__.py"], "shared.mine", True),
        (["shared/mine/__init__.py"], "shared", False),
        (["shared/mine/__init__.py"], "shared.others", False),
        (["shared/one.py"], "shared.one", True),
        (["pack/__init__.py", "pack/deep/__init__.py"], "pack", True),
        (["pack/__init__.py", "pack/data.json"], "pack", True),
        (["dep_lib.libs/lib.so", "dep_lib/__init__.py"], "dep_lib", True),
    ],
)
def test_by_which_modules_a_distribution_is_known(
    site: Site, imports: Import, files: list[str], imported: str, expected: bool
) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib", files=files)
    imports(imported)
    dependencies = site.dependencies()
    site.install("dep-lib", "1.1", files=files)
    assert bool(site.drifts(dependencies)) is expected


@pytest.mark.parametrize("told", ["top_level.txt", ".pth", "nothing"])
def test_of_an_editable_one_only_the_version_counts(site: Site, imports: Import, tmp_path: Path, told: str) -> None:
    def install(version: str) -> None:
        info = site.install("dep-lib", version, files=["_dep.pth"])
        if told == "top_level.txt":
            (info / told).write_text("lib_of_dep\n", "utf-8")
        if told == ".pth":
            (site.path / "_dep.pth").write_text(f"{tmp_path / 'src'}\n", "utf-8")

    source = tmp_path / "src" / "lib_of_dep" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("a = 1", "utf-8")
    site.install("shop", requires=["dep-lib"])
    install("1.0")
    imports("dep_lib" if told == "nothing" else "lib_of_dep")
    dependencies = site.dependencies()
    source.write_text("a = 2", "utf-8")
    install("1.0")
    assert site.drifts(dependencies) == []
    install("1.1")
    assert len(site.drifts(dependencies)) == 1


def test_an_editable_one_in_place_of_a_wheel_is_another(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib")
    imports("dep_lib")
    dependencies = site.dependencies()
    site.install("dep-lib", files=["_dep.pth"])
    assert len(site.drifts(dependencies)) == 1


def test_of_an_installation_without_a_record_the_version_counts(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    (site.install("dep-lib") / "RECORD").unlink()
    imports("dep_lib")
    dependencies = site.dependencies()
    (site.install("dep-lib", content="x") / "RECORD").unlink()
    assert site.drifts(dependencies) == []
    (site.install("dep-lib", "1.1") / "RECORD").unlink()
    assert len(site.drifts(dependencies)) == 1


def test_the_egg_info_beside_sources_does_not_count(site: Site, imports: Import) -> None:
    site.install("shop", requires=["dep-lib"])
    info = site.install("dep-lib").rename(site.path / "dep_lib.egg-info")
    (info / "METADATA").rename(info / "PKG-INFO")
    (info / "RECORD").unlink()
    imports("dep_lib")
    dependencies = site.dependencies()
    (info / "PKG-INFO").write_text("Name: dep-lib\nVersion: 2.0\n", "utf-8")
    assert site.drifts(dependencies) == []


def test_the_plugins_own_package_does_not_count_but_others_of_its_distribution_do(site: Site, imports: Import) -> None:
    files = ["shop/__init__.py", "shop_lib/__init__.py"]
    site.install("shop", files=files)
    imports("shop")
    dependencies = site.dependencies()
    site.install("shop", "1.1", files=files)
    assert site.drifts(dependencies) == []
    imports("shop_lib")
    site.install("shop", "1.2", files=files)
    assert site.drifts(dependencies) != []


def test_another_plugins_distribution_counts_as_any_library(site: Site, imports: Import) -> None:
    site.install("shop", requires=["other-plugin"])
    site.install("other-plugin")
    imports("other_plugin")
    dependencies = site.dependencies()
    site.install("other-plugin", "1.1")
    assert len(site.drifts(dependencies)) == 1


def test_the_host_counts_for_every_plugin(site: Site, imports: Import) -> None:
    site.install("shop")
    site.install(HOST, requires=["dep-lib"], files=["host_of_test/__init__.py"])
    site.install("dep-lib")
    imports("host_of_test")
    imports("dep_lib")
    dependencies = Dependencies([str(site.path)])
    site.install(HOST, "2.0", requires=["dep-lib"], files=["host_of_test/__init__.py"])
    site.install("dep-lib", "2.0")
    dependencies.look()
    assert [drift.distribution for drift in dependencies.changed(site.found())] == [HOST, "dep-lib"]
    assert [drift.distribution for drift in dependencies.changed(site.found(), "process")] == [HOST]


def test_the_identity_is_of_all_that_a_new_process_would_import(site: Site) -> None:
    site.install("shop", requires=["dep-lib"])
    site.install("dep-lib")
    dependencies = Dependencies([str(site.path)])

    def identity() -> str:
        dependencies.look()
        return dependencies.identity(site.found())

    first = identity()
    site.install("shop", "1.1", requires=["dep-lib"])
    assert identity() == first, "its own package has a fingerprint of its own"
    site.uninstall("dep-lib")
    assert identity() == first, "it may be on its way"
    site.install("dep-lib", content="x")
    assert identity() != first
    site.install("dep-lib")
    assert identity() == first
    site.install("shop", requires=["dep-lib", "further"])
    site.install("further")
    assert identity() != first
