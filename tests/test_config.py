"""The configuration: where it comes from, what it refuses, what it never says."""

from __future__ import annotations

import os

import pytest

from service.config import ConfigError, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("REPEATER_"):
            monkeypatch.delenv(name)


def test_defaults_are_closed() -> None:
    """Without configuration: loopback, no key, nobody anonymous, no foreign pages."""
    settings = load_settings()
    assert settings.host == "127.0.0.1"
    assert settings.api_key is None
    assert not settings.node_options().allow_anonymous
    assert not settings.node_options().insecure
    assert settings.origins == ()


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting is a `REPEATER_` variable, and reaches the node's options."""
    monkeypatch.setenv("REPEATER_PORT", "9001")
    monkeypatch.setenv("REPEATER_HISTORY_SIZE", "7")
    monkeypatch.setenv("REPEATER_ALLOW_ANONYMOUS", "true")
    monkeypatch.setenv("REPEATER_ALLOWED_ORIGINS", '["https://a.example"]')
    settings = load_settings()
    assert settings.port == 9001
    assert settings.node_options().channel.history_size == 7
    assert settings.node_options().allow_anonymous
    assert settings.node_options().channel.allow_subscribe_for_anonymous
    assert settings.origins == ("https://a.example",)


def test_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line says wins over the environment; None says nothing."""
    monkeypatch.setenv("REPEATER_PORT", "9001")
    monkeypatch.setenv("REPEATER_HOST", "::1")
    settings = load_settings(port=9002, host=None)
    assert (settings.host, settings.port) == ("::1", 9002)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_development_mode_is_refused_off_loopback(host: str) -> None:
    """`--dev` is open to everybody, so no other machine may reach it."""
    with pytest.raises(ConfigError, match="loopback") as caught:
        load_settings(dev=True, host=host)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_development_mode_opens_everything(host: str) -> None:
    """On loopback it lets anonymous clients and any page in."""
    settings = load_settings(dev=True, host=host)
    assert settings.origins == ("*",)
    assert settings.node_options().insecure


def test_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API key is in no text that the settings turn into."""
    monkeypatch.setenv("REPEATER_API_KEY", "hunter2-and-more")
    settings = load_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "hunter2-and-more"
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in text


def test_error_does_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error about one setting shows neither its value nor the API key."""
    monkeypatch.setenv("REPEATER_API_KEY", "hunter2-and-more")
    monkeypatch.setenv("REPEATER_PORT", "swordfish")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert "swordfish" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "many"),
        ("log_level", "loud"),
        ("ping_interval", "0"),
        ("outbox_limit", "10"),
        ("dev", "perhaps"),
        ("allowed_origins", "https://a.example"),
    ],
)
def test_wrong_value_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong value is one line that names its setting."""
    monkeypatch.setenv(f"REPEATER_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pong_must_fit_between_pings() -> None:
    """A pong timeout as long as the interval is refused."""
    with pytest.raises(ConfigError, match="pong_timeout"):
        load_settings(ping_interval=5, pong_timeout=5)


def test_unknown_setting_is_refused() -> None:
    """A setting that there is not is named in the error."""
    with pytest.raises(ConfigError, match="colour"):
        load_settings(colour="red")
