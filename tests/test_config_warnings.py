"""What `config check` warns of, and the secrets that `config init --secrets` makes."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from repeater.cli.main import main
from repeater.config.warnings import can_match, warnings_of
from repeater.serving.extension import load_settings
from tests.signing import SECRET

SECRETS = (
    ("api_key",),
    ("metrics_token",),
    ("comments_secret_key",),
    ("token", "hmac_secret_key"),
    ("callbacks", "secret"),
)


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def config(*arguments: str, **variables: str) -> Result:
    result = CliRunner().invoke(main, ["config", *arguments], env=variables)
    assert result.exit_code == 0, result.output
    return result


def warned(**settings: object) -> set[str]:
    """The settings that are warned of."""
    return {".".join(one.path) for one in warnings_of(load_settings(**settings))}


def test_short_secrets() -> None:
    """Those that sign need 32 bytes, those that are compared 16 characters; none is no warning."""
    assert warned() == set()
    short = {"hmac_secret_key": "x" * 31, "hmac_previous_secret_key": "é" * 15}
    assert warned(
        api_key="x" * 15,
        api_previous_key="x",
        metrics_token="x",
        token=short,
        subscription_token=short,
        callbacks={"secret": "x" * 31},
    ) == {
        "api_key",
        "api_previous_key",
        "metrics_token",
        "token.hmac_secret_key",
        "token.hmac_previous_secret_key",
        "subscription_token.hmac_secret_key",
        "subscription_token.hmac_previous_secret_key",
        "callbacks.secret",
    }
    long = {"hmac_secret_key": SECRET, "hmac_previous_secret_key": "é" * 16}
    assert (
        warned(api_key="x" * 16, metrics_token="x" * 16, token=long, callbacks={"secret": "x" * 32})
        == set()
    )


@pytest.mark.parametrize(
    ("pattern", "warns"),
    [
        ("^news:", True),
        ("news:.*", True),
        ("[a-z0-9]+", True),
        ("^chat$", True),
        ("(?!chat).*", False),  # $chat:1 is of the namespace, too
        ("(?!\\$?chat).*", True),
        ("chat:\\d+", False),
        ("\\$chat:\\d+", False),
        ("^(chat|news):.+$", False),
        ("(?i)CHAT:.*", False),
        ("[a-z:]{5}", False),
        ("[a-z:]{4}", True),
        ("(?P<n>c)hat:(?P=n)", False),
    ],
)
def test_a_pattern_of_no_channel_of_its_namespace(pattern: str, warns: bool) -> None:
    """The whole name must match, with the namespace, and with or without the private prefix."""
    found = warned(namespaces={"chat": {"channel_regex": pattern}})
    assert found == ({"namespaces.chat.channel_regex"} if warns else set())


@pytest.mark.parametrize("pattern", ["[[:digit:]]+", "(?:news){e<=1}", "("])
def test_what_nobody_knows_is_no_alarm(pattern: str) -> None:
    """What the two libraries read in different ways, or only one of them reads."""
    assert can_match(pattern, "chat:")


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ":", "chat", ".", "[a-c]", "[^b]", "\\w", "\\d", "(?:)"]),
    lambda parts: st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(parts, st.sampled_from(["*", "+", "?", "{2}", "{0,3}"])).map(
            lambda one: f"(?:{one[0]}){one[1]}"
        ),
    ),
    max_leaves=6,
)


def test_letters_of_other_alphabets_are_no_alarm() -> None:
    """Only `re` takes this digit for a part of a word."""
    assert re.fullmatch("\\w", "²")
    assert can_match("\\w", "²")


@given(st.data())
def test_it_is_never_a_false_alarm(data: st.DataObject) -> None:
    """Whatever `re` matches, each of its beginnings can be gone on with."""
    pattern = re.compile(data.draw(PATTERNS))
    ascii_alone = st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
    text = data.draw(ascii_alone | st.from_regex(pattern, fullmatch=True))
    end = data.draw(st.integers(0, len(text)))
    assert can_match(pattern.pattern, text[:end])


def test_warnings_go_to_standard_error_and_end_with_0() -> None:
    """One line each, without the secret; how many there are stands behind "no mistakes"."""
    Path("repeater.toml").write_text(
        'api_key = "hunter2"\n[namespaces.chat]\nchannel_regex = "^news:"\n'
    )
    result = config("check")
    assert result.stdout == "repeater.toml: no mistakes; 2 to think about\n"
    first, second = result.stderr.splitlines()
    assert first == (
        "warning: api_key: is short and may be guessed; use 16 random characters or more"
    )
    assert second == (
        "warning: namespaces.chat.channel_regex: matches no channel of its namespace: "
        "the whole name must match, chat: included"
    )
    assert "hunter2" not in result.output


def secrets_in(text: str) -> list[str]:
    """Those that are set in a file; nothing else is."""
    values = tomllib.loads(text)
    found = [
        values.pop(path[0]) if len(path) == 1 else values[path[0]].pop(path[1]) for path in SECRETS
    ]
    assert values == {"token": {}, "callbacks": {}}
    return found


def test_new_secrets() -> None:
    """Of 256 bits, all different, in a file for its owner only, which checks without a warning."""
    made = config("init", "--secrets", "repeater.toml")
    assert made.stderr == "wrote repeater.toml, with new secrets\n"
    file = Path("repeater.toml")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = secrets_in(file.read_text())
    assert len(set(found)) == len(SECRETS)
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", one) for one in found)
    assert not any(one in made.output for one in found)
    checked = config("check")
    assert (checked.stdout, checked.stderr) == ("repeater.toml: no mistakes\n", "")
    shown = config("show").stdout
    assert not any(one in shown for one in found)


def test_new_secrets_on_standard_output() -> None:
    """They are printed because somebody asked for it, and that is said; each time others."""
    first, second = config("init", "--secrets"), config("init", "--secrets")
    assert first.stderr == "standard output has the new secrets: keep it from others\n"
    assert not set(secrets_in(first.stdout)) & set(secrets_in(second.stdout))
    assert tomllib.loads(config("init").stdout) == {}
