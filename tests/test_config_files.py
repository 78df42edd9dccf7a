"""The configuration in writing: the template, the one in force, the reference, and the commands."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from repeater.cli.main import main
from repeater.config import ConfigError, Settings, reloadable
from repeater.config.descriptions import descriptions
from repeater.config.documentation import STARS, effective, renew, template
from repeater.config.tables import ANY_NAME, leaves_of, tables_of
from repeater.serving.extension import EXTENSION, load_settings
from tests.certificates import Authority

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("REPEATER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_setting_says_what_it_is_for() -> None:
    """Settings and tables have a description, or the reference would be silent on them."""
    for _, model in tables_of(EXTENSION.settings):
        for name in model.model_fields:
            assert descriptions(model).get(name), f"{name} needs a docstring"


def test_reference_is_what_the_settings_say() -> None:
    """docs/configuration.md has every setting and default; `just docs` renews it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == renew(page, EXTENSION.settings), "run `just docs`"
    for path, model in tables_of(EXTENSION.settings):
        assert not path or f"`[{'.'.join(path)}]`" in page
        for name in leaves_of(model):
            assert f"| `{name}` |" in page


def test_examples_of_the_reference_are_right(tmp_path: Path) -> None:
    """The example configuration loads."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "repeater.toml").write_text(example)
    assert load_settings().node_options().namespaces["chat"].history_ttl == 86_400.0


def test_template_changes_nothing() -> None:
    """As it is written, it is the defaults; so it is with every setting uncommented."""
    text = template(EXTENSION.settings)
    assert tomllib.loads(text) == {}
    uncommented = re.sub(r"^#(?=[^ ])", "", text, flags=re.MULTILINE)
    Path("all.toml").write_text(uncommented, encoding="utf-8")
    loaded = load_settings("all.toml")
    alone = load_settings(namespaces={"chat": {}}, subscription_token={})
    assert loaded == alone
    written = tomllib.loads(uncommented)
    for path, model in tables_of(EXTENSION.settings):
        table = written
        for part in path:
            table = table[part.replace(ANY_NAME, "chat")]
        if ANY_NAME not in path and path != ("subscription_token",):
            assert leaves_of(model).keys() <= table.keys()


def test_lines_of_the_template_fit() -> None:
    """No comment is wider than a hundred characters."""
    assert all(len(line) <= 100 for line in template(EXTENSION.settings).splitlines())


def test_show_has_no_secret() -> None:
    """Secrets are stars in the effective configuration."""
    text = effective(
        load_settings(
            api_key="hunter2",
            token={
                "hmac_secret_key": "hunter2",
                "jwks_url": "https://me:hunter2@a/keys",
                "jwks_proxy": "http://me:hunter2@proxy:3128",
            },
            callbacks={
                "rpc_url": "https://me:@hunter2@a:80/b",
                "proxy": "http://me:hunter2@proxy:3128",
            },
            allowed_origins="https://a",
        )
    )
    assert "hunter2" not in text
    assert tomllib.loads(text)["token"]["hmac_secret_key"] == STARS
    assert tomllib.loads(text)["callbacks"]["proxy"] == STARS
    assert tomllib.loads(text)["allowed_origins"] == ["https://a"]
    assert tomllib.loads(text)["token"]["jwks_url"] == f"https://me:{STARS}@a/keys"
    assert tomllib.loads(text)["callbacks"]["rpc_url"] == f"https://me:{STARS}@a:80/b"


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_CHANNEL = st.fixed_dictionaries(
    {},
    optional={
        "history_size": st.integers(0, 10**9),
        "history_ttl": st.floats(0.001, 1_000),
        "presence": st.booleans(),
        "force_recovery_mode": st.sampled_from(["stream", "cache"]),
        "allowed_delta_types": st.sampled_from([[], ["fossil"]]),
        "channel_regex": st.sampled_from(["[a-z]+", r"\w+\"'é"]),
    },
)
_GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "host": st.sampled_from(["0.0.0.0", "::", "localhost", "news.example"]),
        "port": st.integers(0, 65_535),
        "allow_anonymous": st.booleans(),
        "allowed_origins": st.lists(st.sampled_from(["*", "https://*.a.b", "https://\u00fc.de"])),
        "public_channels": st.lists(_TEXT),
        "close_timeout": st.floats(0.001, 1e9),
        "channel": _CHANNEL,
        "namespaces": st.dictionaries(
            st.from_regex(r"[-a-zA-Z0-9_.]{2,9}", fullmatch=True), _CHANNEL, max_size=3
        ),
        "token": st.fixed_dictionaries(
            {}, optional={"audience": _TEXT, "issuer_regex": _TEXT.map(re.escape)}
        ),
    },
)


@given(given=_GIVEN)
@settings(max_examples=60)
def test_what_is_shown_can_be_loaded(given: dict[str, object]) -> None:
    """The effective configuration, written to a file, is the same configuration."""
    before = Settings(**given)  # type: ignore[arg-type]
    file = Path("shown.toml")
    file.write_text(effective(before), encoding="utf-8", newline="")
    after = load_settings(file)
    assert reloadable(before, after) == ((), ())


def test_changes_are_sorted_by_what_they_need() -> None:
    """Keys, channels, limits, origins and log level can be reloaded; the address can't."""
    old = load_settings(api_key="a", namespaces={"chat": {}, "news": {}})
    new = load_settings(
        api_key="b", port=1, ping_interval=60, log_level="debug", allowed_origins="https://a",
        channel_limit=5, channel={"history_size": 5}, token={"audience": "x"},
        namespaces={"chat": {"presence": True}, "blog": {}}, subscription_token={},
    )  # fmt: skip
    changes = reloadable(old, new)
    assert sorted(changes.live) == [
        "allowed_origins", "api_key", "channel.history_size", "channel_limit", "log_level",
        "namespaces.blog", "namespaces.chat.presence", "namespaces.news", "subscription_token",
        "token.audience",
    ]  # fmt: skip
    assert sorted(changes.restart) == ["ping_interval", "port"]
    assert reloadable(old, old) == ((), ())


def test_init_writes_once(tmp_path: Path) -> None:
    """It writes a file that only its owner may read, and never over another."""
    run = CliRunner().invoke(main, ["config", "init", "new.toml"])
    assert run.exit_code == 0
    file = tmp_path / "new.toml"
    assert file.read_text(encoding="utf-8") == template(EXTENSION.settings)
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("port = 1")
    again = CliRunner().invoke(main, ["config", "init", "new.toml"])
    assert again.exit_code == 1
    assert again.stderr == "Error: new.toml exists already and was not changed\n"
    assert file.read_text() == "port = 1"


def test_init_without_a_file_prints() -> None:
    """The template goes to standard output."""
    assert CliRunner().invoke(main, ["config", "init"]).stdout == template(EXTENSION.settings)


def test_init_says_why_it_cannot_write() -> None:
    """A directory that is not there is one line."""
    run = CliRunner().invoke(main, ["config", "init", "nowhere/new.toml"])
    assert run.stderr == "Error: nowhere/new.toml: No such file or directory\n"


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    """One line and 0 for a right configuration; a line for each mistake and 1 for a wrong one."""
    file = tmp_path / "a.toml"
    file.write_text("port = 1")
    right = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
    assert (right.exit_code, right.stdout) == (0, f"{file}: no mistakes\n")
    file.write_text("prt = 1\ndev = 7")
    wrong = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
    assert wrong.exit_code == 1
    assert wrong.stderr.splitlines() == [
        f"{file}: prt: unknown setting; did you mean port?",
        f"{file}: dev: must be true or false",
    ]
    assert CliRunner().invoke(main, ["config", "check"]).exit_code == 0


def test_show_prints_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """File and environment together; a mistake is one line."""
    Path("repeater.toml").write_text("port = 1\napi_key = 'hunter2'")
    monkeypatch.setenv("REPEATER_CHANNEL__HISTORY_SIZE", "7")
    shown = CliRunner().invoke(main, ["config", "show"])
    found = tomllib.loads(shown.stdout)
    assert (found["port"], found["api_key"], found["channel"]["history_size"]) == (1, STARS, 7)
    monkeypatch.setenv("REPEATER_PORT", "hunter2")
    wrong = CliRunner().invoke(main, ["config", "show"])
    assert wrong.exit_code == 1
    assert "hunter2" not in wrong.output


def test_serve_reads_the_file_it_is_given(tmp_path: Path) -> None:
    """`repeater serve --config` stops at a mistake in that file."""
    (tmp_path / "a.toml").write_text("prt = 1")
    run = CliRunner().invoke(main, ["serve", "--config", "a.toml"])
    assert run.exit_code == 1
    assert run.stderr == "Error: a.toml: prt: unknown setting; did you mean port?\n"


def test_check_loads_the_certificate(tmp_path: Path, authority: Authority) -> None:
    """Missing files, and what is not a certificate, are found before the start, in one line."""
    file = tmp_path / "repeater.toml"

    def check(cert: Path, key: Path) -> tuple[int, str]:
        file.write_text(f'tls_cert = "{cert}"\ntls_key = "{key}"\n', encoding="utf-8")
        done = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
        return done.exit_code, done.output

    assert check(authority.certificate, authority.key)[0] == 0
    status, output = check(tmp_path / "nope.pem", authority.key)
    assert status == 1
    assert output == f"tls_cert, tls_key: {tmp_path}/nope.pem: No such file or directory\n"
    status, output = check(authority.certificate, authority.certificate)
    assert status == 1
    assert output.startswith("tls_cert, tls_key: ")
    assert "are not a certificate and its key" in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "listen",
    ["http://0.0.0.0:80", "a b:80", "[localhost]:80", "[::1::2]:80", "a/b:80", "*:80", "me@a:80"],
)
def test_an_address_that_cannot_be_listened_on(listen: str) -> None:
    """Neither `listen` nor `host` takes what is neither an address nor a name."""
    with pytest.raises(ConfigError, match="listen"):
        load_settings(listen=[listen])
    with pytest.raises(ConfigError, match="host"):
        load_settings(host=listen.rpartition(":")[0])
