"""The application's settings, beside the server's, and what they ask of the node."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import conninfo

from repeater.comments import settings as module
from repeater.comments.settings import CommentsSettings
from repeater.config import ConfigError
from repeater.serving.extension import EXTENSION, load_settings


def loaded(**overrides: Any) -> CommentsSettings:
    settings = load_settings(**overrides)
    assert isinstance(settings, CommentsSettings)
    return settings


def test_the_application_is_for_development_unless_asked_for() -> None:
    """Where it is on, its channel is open and a ping comes every 20 s; a weak secret is refused."""
    on, off = loaded(dev=True), loaded(dev=True, comments=False)
    assert on.comments_on
    assert not off.comments_on
    assert not loaded().comments_on
    assert on.node_options().public_channels == {"comments"}
    assert on.node_options().ping_interval == 20
    assert off.node_options().public_channels == set()
    assert off.node_options().ping_interval == 25
    for secret in (None, "too short"):
        with pytest.raises(ConfigError, match="comments_secret_key"):
            loaded(comments=True, comments_secret_key=secret)
    served = loaded(comments=True, comments_secret_key="long enough to be one")
    assert served.comments_options().secret_key == "long enough to be one"


def test_plain_subscribers_hear_comments_unless_another_channel_is_the_default() -> None:
    """Where the application runs, `/ws` without a channel is its channel; a setting wins."""
    assert loaded(dev=True).node_options().default_channel == "comments"
    assert loaded(dev=True, comments=False).node_options().default_channel == ""
    options = loaded(dev=True, default_channel="news").node_options()
    assert options.default_channel == "news"
    assert options.public_channels == {"comments"}


def test_without_its_libraries_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Development mode starts without it and says what to install; `--comments` is a mistake."""
    monkeypatch.setattr(module, "is_installed", lambda: False)
    monkeypatch.setattr("repeater.comments.extension.is_installed", lambda: False)
    settings = loaded(dev=True)
    assert not EXTENSION.is_on(settings)
    assert "pip install 'repeater-server[comments]'" in str(EXTENSION.notice(settings))
    assert EXTENSION.notice(loaded(dev=True, comments=False)) is None
    assert EXTENSION.notice(loaded()) is None
    with pytest.raises(ConfigError, match=r"^comments: .* pip install 'repeater-server\[comments"):
        loaded(dev=True, comments=True)


@pytest.mark.parametrize("url", ["redis://h:hush/0", "valkeys://h:70000/0", "redis://[::1/0"])
def test_a_cache_url_that_cannot_be_is_found_before_the_start(url: str) -> None:
    """One line that names the setting, and shows nothing of the URL."""
    with pytest.raises(ConfigError, match=r"^comments_cache_url: needs a host") as caught:
        loaded(dev=True, comments_cache_url=url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg://ann@h:77/name", {"host": "h", "port": "77", "user": "ann"}),
        ("postgresql://u:p%2B%40w@h/name?sslmode=require", {"password": "p+@w", "host": "h"}),
        ("postgresql+psycopg://u@/name?host=a:1&host=b:2", {"host": "a,b", "port": "1,2"}),
        ("postgresql://u@/name?host=/run/one", {"host": "/run/one"}),
    ],
)
def test_the_comments_postgresql_is_the_outbox_as_well(url: str, said: dict[str, str]) -> None:
    """As libpq takes it, where the comments run; other databases, and those that never run, not."""
    settings = loaded(dev=True, comments_database_url=url)
    found = conninfo.conninfo_to_dict(settings.outbox_url())
    assert found.items() >= {**said, "dbname": "name"}.items()
    assert settings.outbox_setting == "comments_database_url"
    for none in (
        loaded(dev=True, comments=False, comments_database_url=url),
        loaded(comments_database_url=url),
        loaded(dev=True, comments_database_url="sqlite:///x"),
        loaded(dev=True),
    ):
        assert none.outbox_url() == ""
        assert none.outbox_setting == "outbox"


def test_the_comments_are_heard_from_their_own_database() -> None:
    """An outbox of another host, port or name is a mistake; more words for the same one are not."""
    comments = "postgresql+psycopg://ann:hush@host/name"
    for outbox in (
        "postgresql://server:hush@host:5432/name",
        "postgres://host/name?sslmode=require",
        "host=past_the_pooler port=5433 dbname=name",
    ):
        settings = loaded(dev=True, comments_database_url=comments, outbox=outbox)
        assert settings.outbox_url() == outbox
        assert settings.outbox_setting == "outbox"
    for other in ("host2/name", "host/name2", "host:5433/name"):
        with pytest.raises(ConfigError, match=r"^outbox: is another database than") as caught:
            loaded(dev=True, comments_database_url=comments, outbox=f"postgresql://a:hush@{other}")
        assert "hush" not in str(caught.value)
        loaded(
            dev=True, comments=False, comments_database_url=comments, outbox=f"postgresql://{other}"
        )
        loaded(dev=True, outbox=f"postgresql://{other}")


def test_a_postgresql_of_the_comments_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the start, and by the setting that was given."""
    monkeypatch.setattr("repeater.config.outgoing.is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"^comments_database_url: .* 'repeater-server\[postgres"):
        loaded(dev=True, comments_database_url="postgresql+psycopg://ann:hush@host/name")


@pytest.mark.parametrize("url", ["mysql://host/x", "nonsense", "postgresql:host"])
def test_what_is_not_a_database_or_cache_is_found_before_the_start(url: str) -> None:
    """`config check` needs no driver for it, and says what the address may begin with."""
    for name in ("comments_database_url", "comments_cache_url"):
        with pytest.raises(ConfigError) as caught:
            loaded(dev=True, **{name: f"{url}hush"})
        (line,) = caught.value.lines
        assert line.startswith(f"{name}: must begin with")
        assert "hush" not in line
