"""`channel_info`: what a user may do with a channel, and the rule or the setting that says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repeater.access.channel_rules import Action, ChannelRules
from repeater.access.permissions import permissions
from repeater.errors import ReplyError
from repeater.node import open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.testing import open_test_node
from tests.application import Application, open_asking_node
from tests.conversation import FakeVerifier
from tests.members import ask

OPEN = ChannelOptions(allow_subscribe_for_client=True, allow_publish_for_subscriber=True)


def found(options: NodeOptions, channel: str, user: str) -> dict[str, tuple[str, str]]:
    """By action: yes, no or asked, and why."""
    answers = permissions(ChannelRules(options), channel, user)
    return {action: (one.may, one.why) for action, one in answers.items()}


@pytest.mark.parametrize(
    ("channel", "user", "may", "why"),
    [
        ("news", "ann", "no", "clients may not subscribe to this channel by themselves"),
        ("chat:1", "ann", "yes", "allow_subscribe_for_client is true in [namespaces.chat]"),
        ("chat:1", "", "no", "anonymous clients may not subscribe to this channel"),
        ("$chat:1", "ann", "no", "the channel is private: its name begins with '$'"),
        ("#ann", "ann", "yes", "it is the user's personal channel"),
        ("#ann", "bob", "no", "the channel is another user's personal channel"),
        ("team:1#ann,bob", "bob", "yes", "the name lists the user"),
        ("team:1#ann,bob", "cid", "no", "only the users named behind '#' may subscribe to this"),
        ("asked:1", "ann", "asked", "the back end decides: subscribe_proxy_enabled is true in"),
        ("$asked:1", "ann", "no", "the channel is private"),
        (
            "all:1",
            "",
            "yes",
            "allow_subscribe_for_client and allow_subscribe_for_anonymous are true in",
        ),
    ],
)
def test_subscribing(channel: str, user: str, may: str, why: str) -> None:
    """The rule that decides, with the table of the configuration."""
    options = NodeOptions(
        user_personal_channel=True,
        namespaces={
            "chat": OPEN,
            "team": ChannelOptions(allow_user_limited_channels=True),
            "asked": ChannelOptions(subscribe_proxy_enabled=True),
            "all": ChannelOptions(
                allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True
            ),
        },
    )
    answer = found(options, channel, user)["subscribe"]
    assert answer[0] == may
    assert answer[1].startswith(why)


def test_what_a_subscriber_may_do() -> None:
    """As one that has subscribed, if it may; what the channel does not keep nobody gets."""
    chat = ChannelOptions(
        allow_subscribe_for_client=True,
        allow_publish_for_subscriber=True,
        allow_history_for_client=True,
        allow_presence_for_client=True,
    )
    options = NodeOptions(namespaces={"chat": chat})
    answers = found(options, "chat:1", "ann")
    assert answers["publish"] == (
        "yes",
        "allow_publish_for_subscriber is true in [namespaces.chat]",
    )
    assert answers["history"] == ("yes", "allow_history_for_client is true in [namespaces.chat]")
    assert answers["presence"] == ("no", "the channel keeps no presence")
    assert found(options, "$chat:1", "ann")["publish"][0] == "no"
    asked = NodeOptions(channel=ChannelOptions(publish_proxy_enabled=True))
    assert found(asked, "news", "")["publish"] == (
        "asked",
        "the back end decides: publish_proxy_enabled is true in [channel]",
    )


def test_development_mode() -> None:
    """It allows all that the name does not forbid."""
    options = NodeOptions(insecure=True, channel=ChannelOptions(presence=True))
    answers = found(options, "news", "")
    assert set(answers.values()) == {("yes", "development mode allows everything")}
    assert found(options, "$news", "")["subscribe"][0] == "no"


ACTIONS: tuple[Action, ...] = ("publish", "presence", "history")
SWITCHES = [
    *(f"allow_{action}_for_{who}" for action in ACTIONS for who in ("client", "anonymous")),
    *(f"allow_{action}_for_subscriber" for action in ACTIONS),
    "allow_subscribe_for_client",
    "allow_subscribe_for_anonymous",
    "allow_user_limited_channels",
    "presence",
]


@given(st.sets(st.sampled_from(SWITCHES)), st.booleans(), st.sampled_from(["", "ann", "bob"]))
def test_they_are_the_rules_own_answers(on: set[str], insecure: bool, user: str) -> None:
    """Whatever the options: yes exactly where a client gets it; each answer has a reason."""
    values: dict[str, Any] = dict.fromkeys(on, True)
    options = NodeOptions(
        insecure=insecure, user_personal_channel=True, channel=ChannelOptions(**values)
    )
    rules = ChannelRules(options)
    for channel in ("news", "$news", "#ann", "a#ann,cid"):
        answers = permissions(rules, channel, user)
        subscribed = rules.may_subscribe(channel, user)
        expected = {"subscribe": subscribed}
        for action in ACTIONS:
            try:
                if action != "publish":
                    rules.check_kept(action, channel)
                rules.check(action, channel, user, subscribed=subscribed)
            except ReplyError:
                expected[action] = False
            else:
                expected[action] = True
        assert {action: one.may == "yes" for action, one in answers.items()} == expected
        assert all(one.why and (one.mend or one.may == "yes") for one in answers.values())


async def test_the_answer_of_the_api() -> None:
    """The table, all options as JSON, and the permissions, that to connect among them."""
    options = NodeOptions(namespaces={"chat": OPEN})
    async with open_test_node(options, verifier=FakeVerifier({})) as node:
        answer = await ask(node, "channel_info", channel="chat:1", user="ann")
        assert answer["table"] == "[namespaces.chat]"
        assert set(answer["options"]) == set(ChannelOptions.__struct_fields__)
        assert json.dumps(answer["options"]["allowed_delta_types"]) == "[]"
        assert answer["permissions"]["connect"] == {
            "may": "yes",
            "why": "with a token of this user",
            "mend": "",
        }
        assert list(answer["permissions"]) == [
            "connect", "subscribe", "publish", "presence", "history"
        ]  # fmt: skip
        assert await ask(node, "channel_info", channel="nix:1") == 102
        assert await ask(node, "channel_info") == 107
        await ask(node, "block_user", user="ann")
        answer = await ask(node, "channel_info", channel="chat:1", user="ann")
        assert answer["permissions"]["connect"]["why"] == "the user is blocked"


@pytest.mark.parametrize(
    ("options", "user", "may", "why"),
    [
        (NodeOptions(), "ann", "no", "nothing proves who a client is: there is no key for tokens"),
        (NodeOptions(), "", "no", "anonymous clients may not connect"),
        (NodeOptions(allow_anonymous=True), "", "yes", "allow_anonymous is true"),
        (NodeOptions(insecure=True), "", "yes", "development mode is on"),
        (
            NodeOptions(allow_guest_tokens=True),
            "",
            "yes",
            "allow_guest_tokens is true, for",
        ),
    ],
)
async def test_connecting_without_keys(options: NodeOptions, user: str, may: str, why: str) -> None:
    """What lets a client in, or keeps it out."""
    async with open_node(options) as node:
        answer = await ask(node, "channel_info", channel="news", user=user)
        connect = answer["permissions"]["connect"]
        assert connect["may"] == may
        assert connect["why"].startswith(why)


async def test_connecting_where_the_back_end_is_asked() -> None:
    """It decides on anonymous clients, and says who the others are."""
    async with open_asking_node(Application()) as node:
        for user in ("", "ann"):
            answer = await ask(node, "channel_info", channel="news", user=user)
            asked = {name for name, one in answer["permissions"].items() if one["may"] == "asked"}
            assert asked == {"connect", "subscribe", "publish"}
