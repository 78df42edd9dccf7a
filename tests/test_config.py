"""The configuration: where it comes from, what it refuses, what it never says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from repeater.access.origins import LOOPBACK_ORIGINS
from repeater.access.tokens.options import TokenOptions
from repeater.backend.options import CallbackOptions
from repeater.cli.main import main
from repeater.config import ConfigError, Settings, load_settings
from repeater.config.settings import _LEAST, _LIVE
from repeater.config.sources import OTHER_VARIABLES
from repeater.config.tables import table_in
from repeater.options import ChannelOptions, LimitOptions, NodeOptions


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("REPEATER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(text: str) -> Path:
    """`repeater.toml`, where the server looks for it."""
    file = Path("repeater.toml")
    file.write_text(text, encoding="utf-8")
    return file


def mistakes(**overrides: object) -> tuple[str, ...]:
    """The lines that a wrong configuration is refused with."""
    with pytest.raises(ConfigError) as caught:
        load_settings(**overrides)
    return caught.value.lines


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
    monkeypatch.setenv("REPEATER_CHANNEL__HISTORY_SIZE", "7")
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
    """On loopback it lets anonymous clients in, and this machine's pages."""
    settings = load_settings(dev=True, host=host)
    assert settings.origins == LOOPBACK_ORIGINS
    assert settings.hosts == ("localhost", "127.0.0.1", "::1")
    chosen = load_settings(dev=True, allowed_hosts="Dev.Example", allowed_origins="https://a.b")
    assert chosen.origins == (*LOOPBACK_ORIGINS, "https://a.b")
    assert chosen.hosts == ("localhost", "127.0.0.1", "::1", "dev.example")
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
    assert caught.value.__context__ is None, "a traceback would show pydantic's error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "many"),
        ("log_level", "loud"),
        ("ping_interval", "0"),
        ("outbox_limit", "10"),
        ("dev", "perhaps"),
        ("allowed_origins", "[https://a.example"),
        ("channel__history_ttl", "10 parsecs"),
        ("channel__history_size", "-1"),
        ("channel__allowed_delta_types", "xdelta"),
        ("channel__channel_regex", "["),
        ("close_timeout", "inf"),
    ],
)
def test_wrong_value_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong value is one line that names its variable, and does not repeat it."""
    monkeypatch.setenv(f"REPEATER_{name.upper()}", value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"REPEATER_{name.upper()}: ")
    assert len(value) < 3 or value not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pong_must_fit_between_pings() -> None:
    """A pong timeout as long as the interval is refused."""
    with pytest.raises(ConfigError, match="pong_timeout"):
        load_settings(ping_interval=5, pong_timeout=5)


def test_unknown_setting_is_refused() -> None:
    """A setting that there is not is named in the error."""
    assert mistakes(colour="red") == ("colour: unknown setting",)
    assert mistakes(prt=1) == ("prt: unknown setting; did you mean port?",)


def test_file_is_below_the_variables_and_these_below_the_overrides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each source wins over the one before it, setting by setting, in tables too."""
    written("""
        port = 1
        backlog = 1
        host = "::1"
        [channel]
        history_size = 1
        history_ttl = "10m"
        [namespaces.chat]
        presence = true
    """)
    monkeypatch.setenv("REPEATER_BACKLOG", "2")
    monkeypatch.setenv("REPEATER_PORT", "2")
    monkeypatch.setenv("REPEATER_CHANNEL__HISTORY_SIZE", "2")
    monkeypatch.setenv("REPEATER_NAMESPACES__CHAT__HISTORY_SIZE", "2")
    settings = load_settings(port=3)
    assert (settings.host, settings.backlog, settings.port) == ("::1", 2, 3)
    options = settings.node_options()
    assert (options.channel.history_size, options.channel.history_ttl) == (2, 600.0)
    assert options.namespaces["chat"] == ChannelOptions(presence=True, history_size=2)


def test_file_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that is named wins over REPEATER_CONFIG, that over `./repeater.toml`."""
    for port, name in enumerate(("repeater.toml", "variable.toml", "named.toml"), start=1):
        (tmp_path / name).write_text(f"port = {port}")
    assert load_settings().port == 1
    monkeypatch.setenv("REPEATER_CONFIG", "variable.toml")
    assert load_settings().port == 2
    assert load_settings("named.toml").port == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"port = ", "end of document"), (b'host = "\xff"', "UTF-8")],
)
def test_unreadable_file_is_one_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    """A file that is missing or no TOML is one line with its name."""
    file = tmp_path / "other.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings(file)
    (line,) = caught.value.lines
    assert line.startswith(f"{file}: ")


@pytest.mark.parametrize("options", [NodeOptions, ChannelOptions])
def test_every_option_is_a_setting_with_its_default(
    options: type[NodeOptions | ChannelOptions],
) -> None:
    """What a node or a channel can be told, the file can say; `dev` stands for `insecure`."""
    table = Settings if options is NodeOptions else type(Settings().channel)
    for option in options.__struct_fields__:
        name = "dev" if option == "insecure" else option
        assert name in table.model_fields, f"{option} can't be set"
    assert Settings().node_options() == NodeOptions()
    assert Settings().token_options() == TokenOptions()


def changed(value: object) -> object:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case float() | int():
            return value + 1
        case "stream":
            return "cache"
        case "json":
            return "json_object"
        case str():
            return f"{value}x"
        case frozenset():
            return ["fossil"]
        case None:
            return "[a-z]+"
    raise AssertionError(f"say how to change {value!r}")


@pytest.mark.parametrize("name", NodeOptions.__struct_fields__)
def test_every_node_option_reaches_the_node(name: str) -> None:
    """A value in the file arrives in `NodeOptions`."""
    chat = ChannelOptions(presence=True)
    given: dict[str, object] = {
        "channel": {"presence": True},
        "namespaces": {"chat": {"presence": True}},
        "personal_channel_namespace": "chat",
        "public_channels": ["news"],
        "limits": {"connections": 5},
    }
    wanted = {
        "channel": chat,
        "namespaces": {"chat": chat},
        "personal_channel_namespace": "chat",
        "public_channels": frozenset({"news"}),
        "limits": LimitOptions(connections=5),
    }
    value = given[name] if name in given else changed(getattr(NodeOptions(), name))
    more = {} if name != "personal_channel_namespace" else {"namespaces": given["namespaces"]}
    if name == "batch_limit":
        value = 65_537
    settings = load_settings(**more, **{"dev" if name == "insecure" else name: value})
    assert getattr(settings.node_options(), name) == wanted.get(name, value)


@pytest.mark.parametrize("name", [n for n in LimitOptions.__struct_fields__ if n != "scope"])
def test_every_limit_reaches_the_node(name: str) -> None:
    """A value in the table arrives in `LimitOptions`, and 0 switches any of them off."""
    value = changed(getattr(LimitOptions(), name))
    assert getattr(load_settings(limits={name: value}).node_options().limits, name) == value
    assert getattr(load_settings(limits={name: 0}).node_options().limits, name) == 0


@pytest.mark.parametrize("name", ChannelOptions.__struct_fields__)
def test_every_channel_option_reaches_its_channels(name: str) -> None:
    """A value in a table arrives in that namespace's `ChannelOptions` and in no other's."""
    needed: dict[str, object] = {
        "join_leave": True, "allowed_delta_types": ["fossil"], "force_recovery_mode": "cache",
        **{f"allow_{action}_for_client": True for action in ("subscribe", "publish")},
        **{f"allow_{action}_for_client": True for action in ("presence", "history")},
    }  # fmt: skip
    value = changed(getattr(ChannelOptions(), name))
    urls = {f"{kind}_url": "http://app" for kind in ("subscribe", "publish", "sub_refresh")}
    settings = load_settings(namespaces={"chat": needed | {name: value}}, callbacks=urls)
    options = settings.node_options()
    found = getattr(options.namespaces["chat"], name)
    assert getattr(found, "pattern", found) == (
        frozenset({"fossil"}) if isinstance(value, list) else value
    )
    assert options.channel == ChannelOptions()


def test_rules_name_fields_that_there_are() -> None:
    """The tables of least values and of what can be reloaded hold no forgotten name."""
    known = {
        name
        for options in (
            NodeOptions,
            ChannelOptions,
            LimitOptions,
            TokenOptions,
            CallbackOptions,
        )
        for name in options.__struct_fields__
    }
    assert not {*_LEAST, *_LIVE} - known


def test_variables_of_the_command_line_are_known() -> None:
    """No variable that an option of the command line reads is refused as an unknown setting."""
    for variable in variables_of(main):
        *table, name = variable.removeprefix("REPEATER_").lower().split("__")
        found = table_in(Settings, tuple(table))
        assert variable in OTHER_VARIABLES or (found and name in found.model_fields), variable


def variables_of(command: click.Command) -> set[str]:
    """The variables of a command's options and its subcommands'."""
    found = {one.envvar for one in command.params if isinstance(one.envvar, str)}
    if isinstance(command, click.Group):
        found.update(*(variables_of(one) for one in command.commands.values()))
    return found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[channel]\nhistroy_size = 1", "channel.histroy_size: unknown setting; did you mean "
         "history_size?"),
        ("history_size = 1", "history_size: unknown setting; did you mean channel.history_size?"),
        ("[chanel]\nx = 1", "chanel: unknown setting; did you mean channel?"),
        ("[namespaces.chat]\npresense = true", "namespaces.chat.presense: unknown setting; did "
         "you mean presence?"),
        ("[namespaces.chat]\nport = 1", "namespaces.chat.port: unknown setting; did you mean "
         "port?"),
        ("[subscription_token]\nhmac_secret = 'x'", "subscription_token.hmac_secret: unknown "
         "setting; did you mean hmac_secret_key?"),
        ("qqq = 1", "qqq: unknown setting"),
        ("_env_file = 'x'", "_env_file: unknown setting; did you mean engine_ca_file?"),
        ("channel = 5", "channel: is a table"),
        ("namespaces = 5", "namespaces: is a table"),
        ("port = true", "port: must be a number, not true or false"),
        ("[namespaces.c]", "namespaces.c: a namespace's name is two or more of a-z A-Z 0-9 - _ ."),
    ],
)  # fmt: skip
def test_mistake_in_the_file_names_file_and_setting(text: str, line: str) -> None:
    """A mistake in the file is one line, with the nearest setting for one that is unknown."""
    written(text)
    assert mistakes() == (f"repeater.toml: {line}",)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REPEATER_PROT", "unknown setting; did you mean REPEATER_PORT?"),
        ("REPEATER_HISTORY_SIZE", "unknown setting; did you mean "
         "REPEATER_CHANNEL__HISTORY_SIZE?"),
        ("REPEATER_CHANEL__PRESENCE", "unknown setting; did you mean "
         "REPEATER_CHANNEL__PRESENCE?"),
        ("REPEATER_TOKEN__HMAC_SECRET", "unknown setting; did you mean "
         "REPEATER_TOKEN__HMAC_SECRET_KEY?"),
        ("REPEATER_NAMESPACES__CHAT__PRESENSE", "unknown setting; did you mean "
         "REPEATER_NAMESPACES__CHAT__PRESENCE?"),
        ("REPEATER_PORT__X", "unknown setting; did you mean REPEATER_PORT?"),
        ("REPEATER_TOKEN", "is a table; its settings are REPEATER_TOKEN__<NAME>"),
        ("REPEATER_NAMESPACES", "is a table; its settings are REPEATER_NAMESPACES__<NAME>"),
    ],
)  # fmt: skip
def test_unknown_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """An unknown variable with our prefix is refused, and the error names the nearest one."""
    monkeypatch.setenv(variable, "hunter2")
    assert mistakes() == (f"{variable}: {text}",)


def test_every_mistake_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes in file, environment and command line are reported together."""
    written("colour = 1\n[channel]\nhistory_size = 'many'")
    monkeypatch.setenv("REPEATER_PROT", "1")
    monkeypatch.setenv("REPEATER_BACKLOG", "x")
    lines = mistakes(port=-1)
    assert [line.partition(": ")[0] for line in sorted(lines)] == [
        "REPEATER_BACKLOG",
        "REPEATER_PROT",
        "port",
        "repeater.toml",
        "repeater.toml",
    ]


def test_combinations_are_told_beside_wrong_values() -> None:
    """Also while a value is wrong: all but those that the wrong value may be the reason of."""
    written("""
        dev = "maybe"
        port = "x"
        tls_cert = "a.pem"
        api_previous_key = "x"
        [channel]
        history_ttl = "5 minutes"
        history_meta_ttl = 5
        delta_publish = true
        [callbacks]
        event_url = "http://a/events"
        connect_url = "a"
    """)
    assert sorted(line.removeprefix("repeater.toml: ") for line in mistakes()) == [
        "api_previous_key: needs api_key (variable REPEATER_API_KEY)",
        "callbacks.connect_url: must be an http or https URL",
        "callbacks.event_url: needs secret (variable REPEATER_CALLBACKS__SECRET)",
        'channel.delta_publish: needs allowed_delta_types = ["fossil"]',
        "channel.history_ttl: must be seconds, or a number with ms, s, m, h or d, such as 10m",
        "dev: must be true or false",
        "port: must be a whole number",
        "tls_cert: needs tls_key (variable REPEATER_TLS_KEY)",
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("batch_limit = 2_000_000", "batch_limit"),
        ("private_prefix = ':'", "private_prefix"),
        ("user_personal_channel = true\npersonal_channel_namespace = 'me'",
         "personal_channel_namespace"),
        ("default_channel = 'news:all'", "default_channel"),
        ("user_personal_channel = true\ndefault_channel = '#ann'", "default_channel"),
        ("user_personal_channel = true\npublic_channels = ['a', '#ann']", "public_channels"),
        ("api_previous_key = 'x'", "api_previous_key"),
        ("[channel]\nhistory_size = 0\nallow_recovery = true", "channel.allow_recovery"),
        ("[namespaces.chat]\nhistory_size = 0\nforce_positioning = true",
         "namespaces.chat.force_positioning"),
        ("[channel]\nhistory_ttl = 10\nhistory_meta_ttl = 5", "channel.history_meta_ttl"),
        ("[channel]\nforce_push_join_leave = true", "channel.force_push_join_leave"),
        ("[channel]\nauto_cache_recover = true", "channel.auto_cache_recover"),
        ("[channel]\ndelta_publish = true", "channel.delta_publish"),
        ("compression_min_size = 65_537", "compression_min_size"),
        ("[channel]\ncompression_min_size = 65_537", "channel.compression_min_size"),
        (
            "[channel]\ncompression = false\ncompression_min_size = 9",
            "channel.compression_min_size",
        ),
        ("[channel]\nallow_publish_for_anonymous = true", "channel.allow_publish_for_anonymous"),
        ("[token]\naudience = 'a'\naudience_regex = 'a'", "token.audience"),
        ("[token]\nhmac_previous_secret_key = 'x'", "token.hmac_previous_secret_key"),
        ("[subscription_token]\njwks_url = 'ftp://x'", "subscription_token.jwks_url"),
        ("[callbacks]\nrpc_url = 'ftp://x'", "callbacks.rpc_url"),
        ("[callbacks]\nevent_url = 'http://x'", "callbacks.event_url"),
        ("[callbacks]\nforward_headers = ['Host']", "callbacks.forward_headers"),
        ("[callbacks]\nforward_emulated_headers = ['a b']", "callbacks.forward_emulated_headers"),
        ("[callbacks]\nstatus_codes = ['404']", "callbacks.status_codes"),
        ("[callbacks]\nstatus_codes = ['404=2000']", "callbacks.status_codes"),
        ("[callbacks]\nstatus_codes = ['404=104', '404=103']", "callbacks.status_codes"),
        ("[callbacks]\nstatus_codes = ['200=104']", "callbacks.status_codes"),
        ("[callbacks]\nrpc_url = 'http://x'\nproxy = 'socks5://x'", "callbacks.proxy"),
        ("[callbacks]\nproxy = 'http://x'", "callbacks.proxy"),
        ("[callbacks]\nrpc_url = 'https://x'\nca_file = 'missing.pem'", "callbacks.ca_file"),
        ("[token]\njwks_url = 'https://x'\njwks_ca_file = 'missing.pem'", "token.jwks_ca_file"),
        ("[token]\njwks_url = 'https://x'\njwks_proxy = 'x:1'", "token.jwks_proxy"),
        ("[token]\njwks_ca_file = 'missing.pem'", "token.jwks_ca_file"),
        ("[token]\nrsa_public_key = 'nonsense'", "token"),
        ("[channel]\npublish_proxy_enabled = true", "channel.publish_proxy_enabled"),
        (
            "[namespaces.chat]\nsubscribe_proxy_enabled = true",
            "namespaces.chat.subscribe_proxy_enabled",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(text: str, name: str) -> None:
    """Settings that make no sense together are one line that names the one to mend."""
    written(text)
    (line,) = mistakes()
    assert line.startswith(f"repeater.toml: {name}: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("2.5", 2.5),
        ("10s", 10),
        ("10 m", 600),
        ("24h", 86_400),
        ("30d", 2_592_000),
    ],
)
def test_times_have_units(text: str, seconds: float) -> None:
    """A time is seconds or has a unit."""
    assert (
        load_settings(channel={"history_ttl": text}).node_options().channel.history_ttl == seconds
    )


@pytest.mark.parametrize("text", ["https://a,https://b", '["https://a", "https://b"]'])
def test_lists_are_commas_or_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A list in a variable is written either way."""
    monkeypatch.setenv("REPEATER_ALLOWED_ORIGINS", text)
    assert load_settings().allowed_origins == ("https://a", "https://b")


def test_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable does not open the API to those who send an empty key."""
    monkeypatch.setenv("REPEATER_API_KEY", "")
    assert load_settings().api_keys == ()


def test_both_api_keys_hold_while_one_is_changed() -> None:
    """The new and the previous key open the API."""
    assert load_settings(api_key="new", api_previous_key="old").api_keys == (b"new", b"old")


def test_anonymous_subscribers_may_publish() -> None:
    """The permission of anonymous clients goes with that of subscribers, too."""
    permitted = {"allow_publish_for_subscriber": True, "allow_publish_for_anonymous": True}
    channel = load_settings(channel=permitted).node_options().channel
    assert channel.allow_publish_for_anonymous


def test_open_feed_may_be_closed_by_its_table() -> None:
    """`allow_anonymous` opens the channels to subscribers only where the table says nothing."""
    settings = load_settings(
        allow_anonymous=True,
        channel={"allow_subscribe_for_client": True},
        namespaces={"chat": {}},
    )
    options = settings.node_options()
    assert not options.channel.allow_subscribe_for_anonymous
    assert not options.namespaces["chat"].allow_subscribe_for_client


def test_token_secrets_are_in_the_clear_for_the_verifier_only() -> None:
    """`token_options` has the secret; what prints has not."""
    settings = load_settings(token={"hmac_secret_key": "hunter2", "jwks_ttl": "5m"})
    options = settings.token_options()
    assert (options.hmac_secret_key, options.jwks_ttl) == ("hunter2", 300.0)
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_callbacks_arrive_as_options() -> None:
    """The table becomes `CallbackOptions`: lists from variables too, the secret in no print."""
    assert Settings().callback_options() == CallbackOptions()
    settings = load_settings(
        callbacks={
            "rpc_url": "http://app/rpc", "secret": "hunter2", "timeout": "2s",
            "forward_headers": "Cookie, X-Trace", "status_codes": "404=104,403=4500",
        }
    )  # fmt: skip
    options = settings.callback_options()
    assert options.secret == "hunter2"
    assert "hunter2" not in f"{settings!r} {options!r}"
    assert options.kinds == {"rpc"}
    assert options.timeout == 2
    assert options.forward_headers == {"cookie", "x-trace"}
    assert options.meanings == {404: 104, 403: 4_500}


def test_subscription_tokens_are_proven_as_others_unless_they_have_a_table() -> None:
    """`[subscription_token]` takes the place of `[token]` as a whole."""
    both = {"hmac_secret_key": "a", "audience": "here"}
    assert load_settings(token=both).subscription_token_options().audience == "here"
    alone = load_settings(token=both, subscription_token={"hmac_secret_key": "b"})
    assert alone.subscription_token_options() == TokenOptions(hmac_secret_key="b")
    assert alone.token_options() == TokenOptions(hmac_secret_key="a", audience="here")


def test_secret_that_is_no_text_is_not_shown() -> None:
    """A key of the wrong kind is one line without it."""
    written("[token]\nhmac_secret_key = 123456789")
    assert mistakes() == ("repeater.toml: token.hmac_secret_key: must be a text",)


def test_secrets_stay_out_of_repr() -> None:
    """Neither `repr` nor rich's traceback shows an option that is a secret."""
    for options in (TokenOptions(hmac_secret_key="hush-hush"), CallbackOptions(secret="hush-hush")):
        assert "hush" not in repr(options)
        assert "hush" not in repr(options.__rich_repr__())
    assert "jwks_ttl=3600.0" in repr(TokenOptions())


def test_options_stay_what_they_are() -> None:
    """Options are frozen, equal by value and hashable; a changed copy is checked like a new one."""
    assert {TokenOptions(), TokenOptions()} == {TokenOptions()}
    with pytest.raises(AttributeError):
        TokenOptions().audience = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="exclude"):
        msgspec.structs.replace(TokenOptions(audience="x"), audience_regex=re.compile("y"))


def test_a_server_does_not_parse_its_own_source() -> None:
    """The descriptions of settings are read by the tools that print them, and by nobody else."""
    loaded = "import sys, repeater.config; sys.exit('repeater.config.descriptions' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True)


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("4", 4), ("auto", "auto"), (" auto ", "auto")]
)
def test_a_number_of_workers(text: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, or as many as there are CPUs."""
    monkeypatch.setenv("REPEATER_WORKERS", text)
    assert load_settings().workers == expected


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "all", True, 2.0, None])
def test_what_is_no_number_of_workers(value: object) -> None:
    """One line says what it may be; a value that is not given is the default."""
    if value is None:
        assert load_settings(workers=value).workers == 1
        return
    with pytest.raises(ConfigError, match=r'^workers: must be a whole number from 1, or "auto"$'):
        load_settings(workers=value)
