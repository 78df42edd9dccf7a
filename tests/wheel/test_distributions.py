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

SERVER, CLIENT = "repeater_server", "repeater_client"
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
    "service/repeater_client/pyproject.toml",
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


def package(name: str) -> set[str]:
    """The files of a package, as they stand in a wheel."""
    found = {one.removeprefix("service/") for one in tracked()}
    return {one for one in found if one.startswith(f"{name}/")}


def in_sdist(distribution: str = SERVER) -> set[str]:
    """The files of the sdist, without its own folder's name."""
    with tarfile.open(built(f"{distribution}-*.tar.gz")) as archive:
        names = [member.name for member in archive if member.isfile()]
    return {name.split("/", 1)[1] for name in names}


def in_wheel(distribution: str = SERVER) -> set[str]:
    with zipfile.ZipFile(built(f"{distribution}-*.whl")) as archive:
        return set(archive.namelist())


def metadata(distribution: str = SERVER) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(built(f"{distribution}-*.whl")) as archive:
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
    assert {name for name in in_wheel() if name.startswith("repeater/")} == package("repeater")


def test_client_s_wheel_is_its_package_and_nothing_beside_it() -> None:
    """`repeater_client` alone: what makes a distribution of its folder is not in it."""
    makes_it = {f"repeater_client/{name}" for name in ("LICENSE", "README.md", "pyproject.toml")}
    files = {name for name in in_wheel(CLIENT) if ".dist-info/" not in name}
    assert files == package("repeater_client") - makes_it


def test_client_s_sdist_is_its_folder() -> None:
    """And what hatchling adds to each."""
    files = {name.removeprefix("repeater_client/") for name in package("repeater_client")}
    assert in_sdist(CLIENT) == files | {"PKG-INFO", ".gitignore"}


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


def test_client_s_metadata_is_true() -> None:
    """The server's version and licence; it needs nothing, and runs on any system."""
    seen = metadata(CLIENT)
    assert (seen["Name"], seen["Version"]) == ("repeater-client", repeater.__version__)
    assert (seen["License-Expression"], seen["License-File"]) == ("Apache-2.0", "LICENSE")
    assert seen.get_all("Requires-Dist") is None
    assert seen["Description-Content-Type"] == "text/markdown"
    assert "Operating System :: OS Independent" in seen.get_all("Classifier", [])
