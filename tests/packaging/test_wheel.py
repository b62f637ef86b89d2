"""The built wheel, in an environment of its own: what is in it, and that it works away from the checkout."""

from __future__ import annotations

import configparser
import email.message
import email.parser
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = ("torch", "lightning", "transformers", "keras", "jax", "tensorflow")
PACKAGES = (*ADAPTERS, "links")
SOURCES = {
    "ckpt_core": ROOT / "ckpt_core",
    **{f"ckpt_{name}": ROOT / "integrations" / f"ckpt_{name}" for name in PACKAGES},
}
FRAMEWORKS = {*ADAPTERS, "flax", "orbax-checkpoint", "pytorch-lightning", "tensorflow-cpu"}

SAVE_AND_LOAD = """
from ckpt_core import CheckpointManager
with CheckpointManager("store", experiment="wheel") as manager:
    manager.save({"weights": [1.5, 2.5], "epoch": 3}, step=7, wait=True)
    print(manager.load("latest"))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that sees neither the checkout nor the caller's pip settings."""
    hidden = ("PYTHONPATH", "PIP_CONSTRAINT", "CKPT_STORE")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk."""

    path: Path

    @cached_property
    def names(self) -> set[str]:
        with zipfile.ZipFile(self.path) as archive:
            return {name for name in archive.namelist() if not name.endswith("/")}

    def information(self, name: str) -> str:
        """A file of the wheel's `.dist-info` folder."""
        (found,) = (each for each in self.names if each.partition("/")[2] == name and ".dist-info/" in each)
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(found).decode()

    @cached_property
    def metadata(self) -> email.message.Message:
        return email.parser.Parser().parsestr(self.information("METADATA"))

    @cached_property
    def entry_points(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser(delimiters=("=",))
        parser.optionxform = str
        parser.read_string(self.information("entry_points.txt"))
        return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return Wheel(path)


@pytest.fixture(scope="module")
def binaries(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that holds the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    binaries = folder / "bin"
    run(
        *(sys.executable, "-m", "pip", "--python", binaries / "python"),
        *("install", "--quiet", "--no-deps", "--no-index", wheel.path),
        cwd=folder,
    )
    # A folder named in a .pth file goes behind the environment's own, and its own .pth files are not read:
    # the editable install of this checkout, if there is one, stays out of sight.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return binaries


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_every_file_of_the_package_is_in_the_wheel(wheel: Wheel, package: str) -> None:
    source = SOURCES[package]
    expected = {
        f"{package}/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= expected
    assert {name for name in wheel.names if name.startswith(f"{package}/")} == expected


def test_nothing_else_is_in_the_wheel(wheel: Wheel) -> None:
    tops = {name.partition("/")[0] for name in wheel.names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(SOURCES)


def test_migrations_are_in_the_wheel(wheel: Wheel) -> None:
    versions = [
        name for name in wheel.names if name.startswith("ckpt_core/catalog/") and "/versions/" in name
    ]
    assert [name for name in versions if not name.endswith("__init__.py")]


def test_license_is_in_the_wheel(wheel: Wheel) -> None:
    assert wheel.information("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert wheel.metadata["License-Expression"] == "Apache-2.0"


def test_the_core_depends_on_no_framework(wheel: Wheel) -> None:
    unconditional = [line for line in wheel.metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert unconditional
    for line in unconditional:
        assert not any(line.startswith(framework) for framework in FRAMEWORKS), line


def test_entry_points_name_modules_of_the_wheel(wheel: Wheel) -> None:
    points = wheel.entry_points
    assert points["console_scripts"]["ckpt"] == "ckpt_core.cli:main"
    for group in points.sections():
        for name, target in points[group].items():
            stem = target.partition(":")[0].strip().replace(".", "/")
            assert {f"{stem}.py", f"{stem}/__init__.py"} & wheel.names, f"[{group}] {name} = {target}"


def test_entry_points_of_the_core_load(wheel: Wheel, binaries: Path, tmp_path: Path) -> None:
    targets = [
        target
        for group in wheel.entry_points.sections()
        for target in wheel.entry_points[group].values()
        if target.startswith("ckpt_core.")
    ]
    code = f"import pkgutil\nfor target in {targets!r}: assert callable(pkgutil.resolve_name(target)), target"
    run(binaries / "python", "-c", code, cwd=tmp_path)


def test_imports_come_from_the_wheel(binaries: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util, json\n"
        f"found = [importlib.util.find_spec(name).origin for name in {sorted(SOURCES)!r}]\n"
        "print(json.dumps(found))"
    )
    origins = json.loads(run(binaries / "python", "-c", code, cwd=tmp_path))
    for origin in origins:
        assert Path(origin).is_relative_to(binaries.parent), origin


def test_a_state_is_saved_and_loaded(binaries: Path, tmp_path: Path) -> None:
    printed = run(binaries / "python", "-c", SAVE_AND_LOAD, cwd=tmp_path)
    assert printed == "{'weights': [1.5, 2.5], 'epoch': 3}\n"


@pytest.mark.parametrize("command", [["ckpt"], ["python", "-m", "ckpt_core"]], ids=" ".join)
def test_the_command_tells_its_version(
    wheel: Wheel, binaries: Path, tmp_path: Path, command: list[str]
) -> None:
    printed = run(binaries / command[0], *command[1:], "--version", cwd=tmp_path)
    assert wheel.metadata["Version"] in printed.split()
