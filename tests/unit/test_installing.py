"""`plugins install`: what pip would change, what of it is refused, and an installation in an environment of its own.

Nothing is asked of an index: the wheels are made here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from base64 import urlsafe_b64encode
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from analytics_core.cli.plugins import installing
from analytics_core.host.examining.installing import HOST, Asked, Change, Own, PipError, Plan, own_dependencies, plan
from tests.unit.cli_plugins_site import Site

ROOT = Path(__file__).parents[2]
CLICK = version("click")


class Wheels:
    """A folder to find links in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ("--no-index", f"--find-links={folder}")

    def add(self, name: str, version: str = "1.0", *requires: str, plugin: str = "") -> Path:
        info = f"{name}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
        files = {
            f"{name}/__init__.py": "class Plugin: ...\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if plugin:
            files[f"{name}/plugin.yaml"] = (
                f"kind: plugin\nmanifest: 1\nname: {plugin}\nentry: {name}:Plugin\nhooks: [process]\n"
            )
            files[f"{info}/entry_points.txt"] = f"[analytics_core.plugins]\n{plugin} = {name}:plugin.yaml\n"
        files[f"{info}/RECORD"] = "".join(map(row, files.items())) + f"{info}/RECORD,,\n"
        wheel = self.folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return wheel

    def plan(self, *names: str, own: dict[str, Own] | None = None) -> Plan:
        return plan(Asked(names, options=self.options), own or own_dependencies())


def row(file: tuple[str, str]) -> str:
    path, text = file
    digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(text)}\n"


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    (tmp_path / "wheels").mkdir()
    return Wheels(tmp_path / "wheels")


def test_the_hosts_own_are_all_that_it_requires_and_not_its_tools() -> None:
    own = own_dependencies()
    assert own[HOST].required == ()
    assert own["click"] == Own("click", CLICK, ("analytics-core requires click>=8.1",))
    assert own["click"].pin == f"click=={CLICK}"
    assert any(by.startswith("aiohttp requires") for by in own["attrs"].required)  # by way of another
    assert not {"pytest", "ruff", "hatchling", "uvloop-not-there"} & own.keys()


def test_a_clean_plan_names_what_and_who(wheels: Wheels) -> None:
    wheels.add("zz_shop", "1.0", "zz_dep>1", HOST)
    wheels.add("zz_dep", "2.0")
    found = wheels.plan("zz-shop")
    seen = [(c.distribution, c.before, c.after, c.kind, c.asked_by, c.own) for c in found.changes]
    assert seen == [
        ("zz-dep", None, "2.0", "install", ("zz_shop 1.0 requires zz_dep>1",), False),
        ("zz-shop", None, "1.0", "install", ("you",), False),
    ]
    assert (found.refusals, found.breaks) == ((), ())


def test_the_host_itself_is_its_own(wheels: Wheels) -> None:
    wheels.add("zz_shop", "1.0", f"{HOST}>=99")
    wheels.add("analytics_core", "99.0")
    (refusal,) = wheels.plan("zz_shop").refusals
    assert f"{HOST} is the host's own and would change from " in refusal
    assert "to 99.0: zz_shop 1.0 requires analytics-core>=99" in refusal


def test_an_earlier_version_that_leaves_the_host_alone_is_taken(wheels: Wheels) -> None:
    wheels.add("zz_shop", "2.0", "click<8.1")
    wheels.add("zz_shop", "1.0", "click")
    wheels.add("click", "8.0.4")
    found = wheels.plan("zz_shop")
    assert [(c.distribution, c.after) for c in found.changes] == [("zz-shop", "1.0")]
    assert found.refusals == ()


def test_what_would_break_for_others_is_told(wheels: Wheels) -> None:
    wheels.add("click", "8.0.4")
    found = wheels.plan("click==8.0.4", own={"aiohttp": own_dependencies()["aiohttp"]})
    assert "analytics-core requires click>=8.1 and would get 8.0.4" in found.breaks


def test_what_is_not_to_be_had_is_said_in_the_words_of_pip(wheels: Wheels) -> None:
    """Not the host's own are blamed, which are not in the way: under their pins pip speaks of a conflict alone."""
    wheels.add("zz_shop", "1.0", "click<8.1")
    with pytest.raises(PipError, match=r"No matching distribution found for click<8\.1"):
        wheels.plan("zz-shop")


BACKEND = """
import os
assert "JWT_SECRET" not in os.environ, "the host's secret"
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, "zz_built-VERSION.dist-info"))
    with open(os.path.join(folder, "zz_built-VERSION.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: zz_built\\nVersion: VERSION\\n")
    return "zz_built-VERSION.dist-info"
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel
def get_requires_for_build_wheel(config_settings=None): return []
get_requires_for_build_editable = get_requires_for_build_wheel
def build_wheel(*given): raise SystemExit
build_editable = build_wheel
"""


OFFLINE = ("--no-index", "--no-build-isolation")


def project(folder: Path, name: str, version: str) -> str:
    """A project with a build backend of its own, which tells name and version and builds nothing."""
    (folder / "backend.py").write_text(BACKEND.replace("zz_built", name).replace("VERSION", version))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return str(folder)


def test_a_build_backend_sees_no_secret_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "hush")
    found = plan(Asked(editable=(project(tmp_path, "zz_built", "1"),), options=OFFLINE), own_dependencies())
    assert [(c.distribution, c.asked_by) for c in found.changes] == [("zz-built", ("you",))]


def test_another_build_of_the_same_version_is_a_change_too(tmp_path: Path) -> None:
    asked = Asked((project(tmp_path, "click", CLICK),), options=OFFLINE)
    (refusal,) = plan(asked, own_dependencies()).refusals
    assert f"would be replaced by another {CLICK}: you ask for it" in refusal


# --- the command


def test_a_refusal_is_shown_and_ends_with_1(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add("zz_shop", "1.0", "click<8.1")
    wheels.add("click", "8.0.4")
    told = Site(tmp_path).run("install", "zz_shop", "--yes", *wheels.options, COLUMNS="200")
    assert told.exit_code == 1
    assert "downgrade (the host's own)" in told.stdout
    assert (
        f"✗ click is the host's own and would change from {CLICK} to 8.0.4: zz_shop 1.0 requires click<8.1; "
        f"valid is what goes with click=={CLICK} (analytics-core requires click>=8.1)\n"
    ) in told.stdout
    assert version("click") == CLICK


def test_without_a_yes_nothing_is_installed(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add("zz_shop")
    told = Site(tmp_path).run("install", "zz_shop", *wheels.options)
    assert (told.exit_code, "Install this?" in told.stderr, "zz-shop" in told.stdout) == (1, True, True)
    assert not (Path(sysconfig.get_path("purelib")) / "zz_shop").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "name what to install"), (("x", "--json"), "--json cannot ask"), (("--", "--target=/x"), "no requirement")],
)
def test_wrong_asking(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    told = Site(tmp_path).run("install", *arguments)
    assert told.exit_code == 2
    assert said in told.stderr


def test_manifests_that_cannot_be_read_are_told_before_anything_is_installed(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add("zz_shop")
    site = Site(tmp_path)
    (site.manifests / "shop.yaml").write_text("kind: plugin-settings\nnam: shop\n")
    told = site.run("install", "zz_shop", "--dry-run", "--json", *wheels.options)
    assert (told.exit_code, "nam: the key is not known" in json.loads(told.stdout)["error"]) == (2, True)


@pytest.mark.parametrize("locked", [False, True])
def test_what_a_server_will_do_with_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool) -> None:
    site = Site(tmp_path)
    site.plugin("shop")
    site.plugin("till", requires={"plugins": {"missing": ""}})
    changes = [Change(f"dist-{name}", None, "1.0", "install", ("you",), False) for name in ("shop", "till")]
    monkeypatch.setattr(installing, "plan", lambda *_: Plan(tuple(changes)))
    monkeypatch.setattr(installing, "install", lambda *_: None)
    if locked:
        (tmp_path / "plugins.lock").write_text("lock: 1\ndistributions: {}\n", "utf-8")
    said = site.run("install", "dist-shop", "--yes").stdout
    assert "shop 1.0 is installed; a server that runs here, or starts, takes it in by itself\n" in said
    assert "till 1.0 is installed; no server runs it: blocked: requires 'missing', which is not installed" in said
    assert ("  a server that is locked keeps it out: dist-shop 1.0 is not in " in said) == locked
    assert ("'analytics plugins lock dist-shop'" in said) == locked


class Environment:
    """A virtual environment that has what these tests run with, and into which pip installs."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = folder / "env" / "lib" / name / "site-packages"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        (self.site / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")

    def run(self, *arguments: str) -> tuple[int, Any]:
        """Exit code of ``analytics plugins ... --json`` and what it says."""
        environ = {"PATH": os.environ["PATH"], "ANALYTICS_MANIFESTS_DIR": str(self.manifests)}
        command = [str(self.python), "-m", "analytics_core.cli", "plugins", *arguments, "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, cwd=self.site)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


def test_an_installation_from_plan_to_plugin_to_lock(wheels: Wheels, tmp_path: Path) -> None:
    wheels.add("zz_shop", "1.0", "click", plugin="zz-shop")
    environment = Environment(tmp_path)
    (tmp_path / "plugins.lock").write_text("lock: 1\ndistributions: {}\n", "utf-8")
    code, told = environment.run("install", "zz_shop", "--dry-run", *wheels.options)
    assert (code, told["ok"], told["installed"], told["plugins"]) == (0, True, False, [])
    assert not (environment.site / "zz_shop").exists()
    code, told = environment.run("install", "zz_shop", "--yes", *wheels.options)
    assert (code, told["ok"], told["installed"]) == (0, True, True)
    (brought,) = told["plugins"]
    assert (brought["name"], brought["state"], brought["reason"]) == ("zz-shop", "discovered", "")
    assert brought["locked_out"].endswith("accept it with 'analytics plugins lock zz-shop'")
    assert (environment.site / "zz_shop" / "plugin.yaml").exists()
    code, told = environment.run("lock", "zz-shop")  # what pip writes is what is locked
    assert told["distributions"]["zz-shop"]["record"].startswith("sha256:")
    code, told = environment.run("lock", "--check", "zz-shop")
    assert (code, told["ok"]) == (0, True)
    code, told = environment.run("install", "zz_shop", "--yes", *wheels.options)
    assert (code, told["installed"], told["plan"]["changes"]) == (0, False, [])
