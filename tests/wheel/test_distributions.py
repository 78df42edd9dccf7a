"""What is in the files that `just wheels` builds."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser

import pytest

import repeater
from tests.wheel.environment import ROOT, built

LEFT_OUT = ("docs/benchmarks/", "docs/images/")
NEEDED = {
    ".ci/run",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "docs/configuration.md",
    "justfile",
    "pyproject.toml",
    "requirements-dev.txt",
    "service/repeater/py.typed",
    "tests/conftest.py",
    "tests/wheel/environment.py",
}


def tracked() -> set[str]:
    """The files that git knows."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git repository")
    command = (
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    )
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def in_sdist() -> set[str]:
    """The files of the sdist, without its own folder's name."""
    with tarfile.open(built("repeater_server-*.tar.gz")) as archive:
        names = [member.name for member in archive if member.isfile()]
    return {name.split("/", 1)[1] for name in names}


def in_wheel() -> set[str]:
    with zipfile.ZipFile(built("repeater_server-*.whl")) as archive:
        return set(archive.namelist())


def metadata() -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(built("repeater_server-*.whl")) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_sdist_is_the_repository_without_the_benchmarks_numbers_and_pictures() -> None:
    """It holds what git knows, and nothing that a build or a test left behind."""
    expected = {name for name in tracked() if not name.startswith(LEFT_OUT)}
    assert in_sdist() == expected | {"PKG-INFO"}


def test_sdist_holds_what_its_user_needs() -> None:
    """To read, to test and to build."""
    assert in_sdist() >= NEEDED


def test_wheel_is_the_package_and_nothing_beside_it() -> None:
    """`repeater` is its only name at the top, and each file of the package is there."""
    parts = {name.split("/")[0] for name in in_wheel()}
    assert parts == {"repeater", f"repeater_server-{repeater.__version__}.dist-info"}
    prefix = "service/"
    package = {name.removeprefix(prefix) for name in tracked() if name.startswith(prefix)}
    assert {name for name in in_wheel() if name.startswith("repeater/")} == package


def test_metadata_is_true() -> None:
    """Name, version, licence; Linux only; no address, because none exists yet."""
    seen = metadata()
    assert (seen["Name"], seen["Version"]) == ("repeater-server", repeater.__version__)
    assert (seen["License-Expression"], seen["License-File"]) == ("Apache-2.0", "LICENSE")
    assert seen.get_all("Project-URL") is None
    assert seen["Home-page"] is None
    classifiers = seen.get_all("Classifier", [])
    systems = [one for one in classifiers if one.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    versions = [one.rsplit(" ", 1)[1] for one in classifiers if ":: Python :: 3." in one]
    assert versions == ["3.11", "3.12", "3.13"]
