"""Channels by name: their options, and who may subscribe."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.access.channel_rules import Action, ChannelRules
from repeater.errors import ErrorCode, ReplyError
from repeater.options import ChannelOptions, NodeOptions

CHAT = ChannelOptions(history_size=7)
DIALOGUE = ChannelOptions(allow_user_limited_channels=True)
OPEN = ChannelOptions(allow_subscribe_for_client=True)
ANYBODY = ChannelOptions(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True)
WORDS = ChannelOptions(channel_regex=re.compile(r"words:[\w\u00e4]+"))
OPTIONS = NodeOptions(
    namespaces={
        "chat": CHAT,
        "dialogue": DIALOGUE,
        "open": OPEN,
        "anybody": ANYBODY,
        "words": WORDS,
        "alone": ChannelOptions(allow_subscribe_for_anonymous=True),
        "both": ChannelOptions(allow_user_limited_channels=True, allow_subscribe_for_client=True),
    }
)
RULES = ChannelRules(OPTIONS)


def code_of(channel: str, rules: ChannelRules = RULES) -> int | None:
    try:
        rules.options(channel)
    except ReplyError as error:
        return int(error.code)
    return None


@pytest.mark.parametrize(
    ("channel", "options"),
    [
        ("room", OPTIONS.channel),
        ("chat", OPTIONS.channel),
        ("chat:room", CHAT),
        ("chat:room:1", CHAT),
        ("chat:", CHAT),
        ("$chat:room", CHAT),
        ("$room", OPTIONS.channel),
        ("room#ann", OPTIONS.channel),
    ],
)
def test_namespace(channel: str, options: ChannelOptions) -> None:
    """What stands before the first colon, `$` apart, says which options hold."""
    assert RULES.options(channel) is options
    assert RULES.options(channel) is options  # and when it is remembered


@pytest.mark.parametrize("channel", ["no:room", ":room", "$:room", "room#a:b", "$$chat:room"])
def test_unknown_namespace(channel: str) -> None:
    """A namespace that nobody configured is error 102."""
    assert code_of(channel) == 102
    assert code_of(channel) == 102


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("", 107),
        ("a" * 255, None),
        ("a" * 256, 107),
        ("\u00e9", 107),
        ("a\nb", 107),
        ("\x00", 107),
        ("\x7f", 107),
        ("a b", None),
        ("words:\u00e4", None),
        ("words:a-b", 107),
        ("words:", 107),
        ("words:" + "\u00e4" * 125, 107),
    ],
)
def test_names(channel: str, code: int | None) -> None:
    """Up to 255 bytes of printable ASCII, or what the namespace's pattern allows as a whole."""
    assert code_of(channel) == code


@pytest.mark.parametrize(
    ("channel", "users"),
    [
        ("room", set()),
        ("open:room", {"42", "43"}),
        ("anybody:room", {"", "42", "43"}),
        ("alone:room", set()),
        ("$open:room", set()),
        ("$room", set()),
        ("dialogue:a#42", {"42"}),
        ("dialogue:a#42,43", {"42", "43"}),
        ("dialogue:a#4", set()),
        ("dialogue:a#", set()),
        ("dialogue:a#42#43", {"43"}),
        ("dialogue:a", set()),
        ("$dialogue:a#42", set()),
        ("open:a#42", {"42", "43"}),
        ("both:a#42", {"42"}),
        ("both:a", {"42", "43"}),
        ("a#42", set()),
    ],
)
def test_who_may_subscribe(channel: str, users: set[str]) -> None:
    """Private channels nobody without a token; `#` its users only; else by the options."""
    assert {user for user in ("", "42", "43") if RULES.may_subscribe(channel, user)} == users
    for user in ("", "42", "43"):
        if user in users:
            RULES.check_subscribe(channel, user)
        else:
            with pytest.raises(ReplyError) as refused:
                RULES.check_subscribe(channel, user)
            assert refused.value.code is ErrorCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("channel", "may"), [("room", True), ("$room", False), ("dialogue:a#42", False)]
)
def test_insecure(channel: str, may: bool) -> None:
    """In insecure mode everything is open that is neither private nor other users'."""
    rules = ChannelRules(NodeOptions(insecure=True, namespaces=OPTIONS.namespaces))
    assert rules.may_subscribe(channel, "") is may


def test_no_private_prefix() -> None:
    """With an empty prefix no channel is private."""
    rules = ChannelRules(NodeOptions(insecure=True, private_prefix=""))
    assert not rules.is_private("$room")
    assert rules.may_subscribe("$room", "")


def test_personal_channel() -> None:
    """A user's own channel, in its namespace, for who has a user id and where it is on."""
    off = ChannelRules(NodeOptions())
    plain = ChannelRules(NodeOptions(user_personal_channel=True))
    named = ChannelRules(
        NodeOptions(user_personal_channel=True, personal_channel_namespace="personal")
    )
    assert off.personal_channel("42") is None
    assert plain.personal_channel("42") == "#42"
    assert named.personal_channel("42") == "personal:#42"
    assert plain.personal_channel("") is None


@pytest.mark.parametrize("action", ["publish", "presence", "history"])
def test_permissions_are_apart(action: Action) -> None:
    """A permission for one action does not permit another."""
    options = ChannelOptions(**{f"allow_{action}_for_client": True})  # type: ignore[arg-type]
    rules = ChannelRules(NodeOptions(channel=options))
    others: list[Action] = ["publish", "presence", "history"]
    allowed = [one for one in others if rules.may(one, options, "42", subscribed=False)]
    assert allowed == [action]
    assert rules.check(action, "room", "42", subscribed=False) is options
    with pytest.raises(ReplyError):
        rules.check(action, "room", "", subscribed=False)


@pytest.mark.parametrize("action", ["publish", "presence", "history"])
def test_subscribers_are_permitted_as_users_are(action: Action) -> None:
    """What subscribers may do, anonymous ones may only where anonymous clients may."""
    may = {f"allow_{action}_for_subscriber": True}
    options = ChannelOptions(**may)  # type: ignore[arg-type]
    both = ChannelOptions(**may, **{f"allow_{action}_for_anonymous": True})  # type: ignore[arg-type]
    rules = ChannelRules(NodeOptions())
    assert rules.may(action, options, "42", subscribed=True)
    assert not rules.may(action, options, "", subscribed=True)
    assert rules.may(action, both, "", subscribed=True)
    assert not rules.may(action, both, "", subscribed=False)


@given(st.text())
def test_any_text_has_options_or_an_error(channel: str) -> None:
    """Whatever a client calls a channel: options, 102 or 107."""
    assert code_of(channel) in (None, 102, 107)


def test_remembered_names_are_bounded() -> None:
    """However many names there are, few are remembered."""
    rules = ChannelRules(NodeOptions())
    for number in range(25_000):
        rules.options(f"room{number}")
    assert len(rules._known) <= 10_000
