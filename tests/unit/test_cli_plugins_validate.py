"""`plugins validate`: each point of the checklist, one fault at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from analytics_core import cli
from analytics_core.host.examining import wheels

FILES = {
    "shop/__init__.py": "",
    "shop/py.typed": "",
    "shop/plugin.py": "from analytics_core import hookimpl\n"
    "class Shop:\n    @hookimpl\n    def process(self, batch): pass\n",
    "shop/plugin.yaml": "kind: plugin\nmanifest: 1\nname: shop\nentry: shop.plugin:Shop\nhooks: [process]\n",
    "acme_shop-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme-shop\nVersion: 1.0\n"
    "Requires-Dist: analytics-core>=0.1\n\n# Shop\n",
    "acme_shop-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "acme_shop-1.0.dist-info/entry_points.txt": "[analytics_core.plugins]\nshop = shop:plugin.yaml\n",
}
"""A wheel without a fault."""
ENTRY = "acme_shop-1.0.dist-info/entry_points.txt"
METADATA = "acme_shop-1.0.dist-info/METADATA"
ALL = ["wheel", "entry point", "package", "manifest", "entry", "hooks", "dependency", "py.typed", "README"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["plugins", *arguments])


def wheel(folder: Path, changes: Mapping[str, str | bytes | None]) -> Path:
    """The good wheel with files changed, or left out."""
    path = folder / "acme_shop-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**FILES, **changes}.items():
            if text is not None:
                archive.writestr(name, text)
    return path


def checks(path: Path) -> list[dict[str, Any]]:
    told = json.loads(run("validate", str(path), "--json").stdout)
    found: list[dict[str, Any]] = told["checks"]
    assert told["ok"] == all(check["ok"] is not False for check in found)
    return found


def test_a_good_wheel_passes_all(tmp_path: Path) -> None:
    path = wheel(tmp_path, {})
    assert [(check["what"], check["ok"]) for check in checks(path)] == [(what, True) for what in ALL]
    shown = run("validate", str(path))
    assert shown.exit_code == 0
    assert shown.stdout.count("✓") == len(ALL)


@pytest.mark.parametrize(
    ("changes", "what", "text", "advice"),
    [
        ({ENTRY: None}, "entry point", "none in the group", '[project.entry-points."analytics_core.plugins"]'),
        (
            {ENTRY: "[analytics-core.plugins]\nshop = shop:plugin.yaml\n"},
            "entry point",
            "the group is 'analytics-core.plugins', not 'analytics_core.plugins'",
            "name = ",
        ),
        (
            {ENTRY: "[analytics_core.plugins]\nshop = shop.plugin\n"},
            "package",
            "valid is 'package:plugin.yaml'",
            'shop = "package:plugin.yaml"',
        ),
        (
            {ENTRY: "[analytics_core.plugins]\nshop = shp:plugin.yaml\n"},
            "package",
            "the package 'shp' is not to be found in acme-shop",
            "have the package in the wheel",
        ),
        (
            {"shop/plugin.yaml": None},
            "plugin.yaml",
            "shop:plugin.yaml is missing",
            '[tool.setuptools.package-data] "shop" = ["plugin.yaml"]',
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("hooks", "hoks")},
            "manifest",
            "shop/plugin.yaml: hoks: the key is not known; did you mean 'hooks'?",
            "analytics schemas",
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("shop.plugin:", "shop.plugn:")},
            "entry",
            "there is no module 'shop.plugn'",
            "package.module:Class",
        ),
        (
            {"shop/plugin.yaml": FILES["shop/plugin.yaml"].replace("[process]", "[process, alert]")},
            "hooks",
            "hook 'alert' is listed in plugin.yaml and not implemented",
            "hookspecs.py",
        ),
        ({"shop/plugin.py": "import no_such_module"}, "import", "No module named 'no_such_module'", "dependencies"),
        ({"shop/plugin.py": "import os; os._exit(3)"}, "import", "the process ended: exit code 3", "plugins doctor"),
    ],
)
def test_each_fault_is_found_with_what_to_do(
    tmp_path: Path, changes: dict[str, str | None], what: str, text: str, advice: str
) -> None:
    path = wheel(tmp_path, changes)
    (fault,) = [check for check in checks(path) if check["ok"] is False]
    assert fault["what"] == what
    assert text in fault["text"]
    assert advice in fault["advice"]
    assert "/wheel-" not in fault["text"] + fault["trace"], "a folder that is gone"
    shown = run("validate", str(path))
    assert shown.exit_code == 1
    assert f"✗ {what}: " in shown.stdout


def test_what_would_be_nice_is_advice(tmp_path: Path) -> None:
    bare = "Metadata-Version: 2.1\nName: acme-shop\nVersion: 1.0\n"
    path = wheel(tmp_path, {"shop/py.typed": None, METADATA: bare})
    advised = [check["what"] for check in checks(path) if check["ok"] is None]
    assert advised == ["dependency", "py.typed", "README"]
    assert run("validate", str(path)).exit_code == 0


def test_what_is_no_plugin_at_all_is_refused(tmp_path: Path) -> None:
    assert "has no pyproject.toml" in run("validate", str(tmp_path)).stderr
    (tmp_path / "a.txt").touch()
    assert "is no wheel" in run("validate", str(tmp_path / "a.txt")).stderr
    (tmp_path / "a.whl").write_text("no zip")
    shown = run("validate", str(tmp_path / "a.whl"))
    assert (shown.exit_code, shown.stdout.splitlines()[0][:30]) == (1, "✗ wheel: a.whl is no wheel: Fi")


def test_a_build_that_fails_shows_the_end_of_what_pip_says(tmp_path: Path) -> None:
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    (tmp_path / "pyproject.toml").write_text(f'{build}[project]\nname = "x y"\nversion = "1"\n')
    (check,) = checks(tmp_path)
    assert (check["what"], check["ok"]) == ("wheel", False)
    assert "pip wheel ended with exit code 1" in check["text"]


TWO_INFOS = {"other-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n"}


@pytest.mark.parametrize(
    ("changes", "what", "text"),
    [
        ({METADATA: None}, "wheel", "is no wheel: it has no .dist-info/METADATA"),
        (TWO_INFOS, "wheel", "is no wheel: it has acme_shop-1.0.dist-info and other-1.0.dist-info"),
        ({METADATA: "Metadata-Version: 2.1\n"}, "wheel", "METADATA has no Name and no Version"),
        ({METADATA: "Metadata-Version: 2.1\nName: acme-shop\nVersion:\n"}, "wheel", "METADATA has no Version"),
        ({METADATA: b"Name: \xff\n"}, "wheel", "METADATA cannot be read: 'utf-8' codec"),
        ({ENTRY: b"[analytics_core.plugins]\n\xff = a:b\n"}, "entry point", "cannot be read: 'utf-8' codec"),
        ({ENTRY: "[analytics_core.plugins]\nshop\n"}, "entry point", "entry_points.txt cannot be read: "),
    ],
)
def test_a_malformed_wheel_is_a_point_and_no_traceback(
    tmp_path: Path, changes: dict[str, str | bytes | None], what: str, text: str
) -> None:
    path = wheel(tmp_path, changes)
    shown = run("validate", str(path))
    assert (shown.exit_code, type(shown.exception)) == (1, SystemExit)
    (fault,) = [check for check in checks(path) if check["ok"] is False]
    assert fault["what"] == what
    assert text in fault["text"]


def test_an_egg_info_beside_the_distribution_is_no_second_one(tmp_path: Path) -> None:
    path = wheel(tmp_path, {"acme_shop.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: acme-shop\nVersion: 1.0\n"})
    assert [check["ok"] for check in checks(path)] == [True] * len(ALL)


@pytest.mark.parametrize("at", ["content", "flags", "end"])
def test_a_damaged_archive_is_no_wheel(tmp_path: Path, at: str) -> None:
    path = tmp_path / "acme_shop-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("shop/data.bin", os.urandom(64) * 400)
    content = bytearray(path.read_bytes())
    if at == "content":
        content[60:90] = b"\xff" * 30
    elif at == "flags":  # says that it is encrypted
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    else:
        del content[-30:]
    path.write_bytes(content)
    (fault,) = checks(path)
    assert (fault["what"], fault["ok"]) == ("wheel", False)
    assert "acme_shop-1.0-py3-none-any.whl is no wheel: " in fault["text"]


@pytest.mark.parametrize(
    ("pyproject", "text"),
    [
        ("[build-system", "pyproject.toml cannot be read: "),
        ("build-system = 1\n", "build-system: 1 is not valid; valid is a table [build-system]"),
        (
            "[build-system]\nrequires = 'hatchling'\n",
            "build-system.requires: 'hatchling' is not valid; valid is a list",
        ),
        ("[build-system]\nrequires = [1]\n", "build-system.requires: [1] is not valid; valid is a list"),
    ],
)
def test_a_project_that_says_nonsense_about_its_build_is_a_point(tmp_path: Path, pyproject: str, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(pyproject)
    (fault,) = checks(tmp_path)
    assert (fault["what"], fault["ok"]) == ("wheel", False)
    assert text in fault["text"]


# --- the build, by a backend of the project's own


@pytest.mark.parametrize(
    ("requirement", "installed", "met"),
    [
        ("setuptools>=61", {"setuptools": "65.5.0"}, False),  # which makes wheels with the distribution 'wheel' alone
        ("setuptools>=61", {"setuptools": "65.5.0", "wheel": "0.40"}, True),
        ("Setuptools", {"setuptools": "70.1"}, True),
        ("setuptools>=80", {"setuptools": "70.1"}, False),
        ("hatchling", {"hatchling": "1.0"}, True),
        ("hatchling; python_version < '3'", {}, True),
        ("hatchling", {}, False),
    ],
)
def test_where_this_environment_cannot_make_a_wheel_it_is_built_in_isolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, installed: dict[str, str], met: bool
) -> None:
    def version(name: str) -> str:
        try:
            return installed[name.lower()]
        except KeyError:
            raise PackageNotFoundError(name) from None

    asked: list[bool] = []

    def build(project: Path, folder: Path, *, isolated: bool) -> None:
        asked.append(isolated)
        folder.mkdir()
        (folder / "shop-1-py3-none-any.whl").touch()

    monkeypatch.setattr(wheels, "version", version)
    monkeypatch.setattr(wheels, "_build", build)
    (tmp_path / "pyproject.toml").write_text(f"[build-system]\nrequires = [{requirement!r}]\n".replace('"', '"'))
    how = wheels.wheel_of(tmp_path, tmp_path / "built").how
    assert asked == [not met]
    assert ("of this environment" in how) == met


def project(folder: Path, backend: str) -> Path:
    """A project whose build is ``backend``: it needs no package."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "acme-shop"\nversion = "1.0"\n'
    )
    (folder / "backend.py").write_text(backend)
    return folder


def test_the_build_sees_no_secret_and_no_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(tmp_path / "shop", "import os\nraise SystemExit(f'SEEN {sorted(os.environ)}')")
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    for name in ("API_KEYS", "ANALYTICS_API_KEY", "REDIS_PASSWORD"):
        monkeypatch.setenv(name, "s3cret")
    (fault,) = checks(made)
    assert "SEEN ['" in fault["text"]
    assert "'PYTHONPATH'" in fault["text"]
    assert "API_KEY" not in fault["text"]
    assert "REDIS_PASSWORD" not in fault["text"]


def test_an_interrupted_build_ends_with_all_its_processes(tmp_path: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    backend = f"import time\ntold = open({str(told)!r}, 'w')\nprint('here', file=told, flush=True)\n"
    made = project(tmp_path / "shop", f"{backend}time.sleep(5)\nprint('survived', file=told, flush=True)")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    validate = subprocess.Popen(
        [sys.executable, "-m", "analytics_core.cli", "plugins", "validate", str(made)],
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    with told.open() as lines:
        assert lines.readline() == "here\n"
        validate.send_signal(signal.SIGTERM)
        assert lines.read() == "", "until the last process that has it open is gone"
    assert validate.wait(20) == 128 + signal.SIGTERM
    assert [path for path in temporary.iterdir() if path.name.startswith("wheel-")] == []


def test_what_the_wheel_lacks_is_not_taken_from_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor from a ``src`` folder of it that an editable install has put on the path."""
    copies = "".join(f"    archive.writestr({name!r}, {text!r})\n" for name, text in FILES.items())
    backend = (
        "import zipfile\ndef build_wheel(folder, *_):\n  name = 'acme_shop-1.0-py3-none-any.whl'\n"
        f"  with zipfile.ZipFile(f'{{folder}}/{{name}}', 'w') as archive:\n{copies}  return name\n"
    ).replace("import hookimpl\\n", "import hookimpl\\nimport left_out\\n")
    made = project(tmp_path / "shop", backend)
    (made / "src").mkdir()
    for folder in (made, made / "src"):
        (folder / "left_out.py").touch()
        monkeypatch.syspath_prepend(str(folder))
    (fault,) = [check for check in checks(made) if check["ok"] is False]
    assert fault["what"] == "import"
    assert "No module named 'left_out'" in fault["text"]


def test_a_pin_that_the_host_does_not_meet_is_advice(tmp_path: Path) -> None:
    pins = "Requires-Dist: click<8.1\nRequires-Dist: attrs\nRequires-Dist: aiohttp<1; extra == 'old'\n"
    path = wheel(tmp_path, {METADATA: FILES[METADATA].replace("\n\n", f"\n{pins}\n", 1)})
    (found,) = [check for check in checks(path) if check["ok"] is None]
    assert found["text"] == f"click<8.1 does not go with click=={version('click')}, which is the host's own"
    assert "'analytics plugins install' refuses it" in found["advice"]
