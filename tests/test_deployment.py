"""docs/deployment.md: its units, commands and settings are right. nginx has test_nginx."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path

import pytest

from repeater.cli.main import main
from repeater.config.settings import Settings
from tests.deadlines import LOOP_ANSWERS

PAGE = (Path(__file__).parent.parent / "docs" / "deployment.md").read_text(encoding="utf-8")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def blocks(language: str) -> list[str]:
    """The page's blocks in this language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found


def units() -> Mapping[str, str]:
    """The page's unit files, by name."""
    return {Path(text.partition("\n")[0]).name: text for text in blocks("ini")}


def setting(unit: str, section: str, key: str) -> str:
    """One value of a unit; of a key that is there several times, the last."""
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read_string(units()[unit])
    return parser[section][key]


def accepts(command: str) -> Mapping[str, object]:
    """What the command line makes of a command, without carrying it out."""
    program, name, *arguments = shlex.split(command)
    assert Path(program).name == "repeater"
    subcommand = main.commands[name]
    return subcommand.make_context(name, arguments).params


def test_the_commands_are_accepted() -> None:
    """The one with TLS, the one that takes over, and the one that systemd starts."""
    alone, upgrade = (one.strip() for one in blocks("sh"))
    assert accepts(alone)["port"] == 443
    assert accepts(upgrade)["take_over"]
    started = setting("repeater.service", "Service", "ExecStart")
    assert accepts(started)["config_file"] == Path("/etc/repeater.toml")


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_settings_are_accepted(text: str) -> None:
    """Each file of the page is a configuration without a mistake."""
    Settings.model_validate(tomllib.loads(text))


def test_the_service_keeps_its_data() -> None:
    """The data directory is the one that systemd makes: denials outlive a restart."""
    directory = setting("repeater.service", "Service", "StateDirectory")
    data_dir = setting("repeater.service", "Service", "Environment")
    assert data_dir == f"REPEATER_DATA_DIR=%S/{directory}"


def test_the_service_may_finish_its_shutdown() -> None:
    """systemd waits longer than the server takes at most."""
    patience = float(setting("repeater.service", "Service", "TimeoutStopSec"))
    assert patience > Settings.model_fields["shutdown_timeout"].default


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Without a warning; only the program is another one, since ours is not in /opt here."""
    assert SYSTEMD_ANALYZE is not None
    for name, text in units().items():
        (tmp_path / name).write_text(text.replace("/opt/repeater/bin/repeater", "/bin/true"))
    command = [SYSTEMD_ANALYZE, "verify", "--man=no", *(str(tmp_path / name) for name in units())]
    verified = subprocess.run(
        command, capture_output=True, text=True, timeout=LOOP_ANSWERS, check=False
    )
    ours = [line for line in verified.stderr.splitlines() if "repeater" in line]
    assert (verified.returncode, ours) == (0, [])
