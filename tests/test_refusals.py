"""Each refusal is one line of the log with its reason, and counts by its cause."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from repeater.access.channel_rules import ChannelRules
from repeater.causes import Cause, Why
from repeater.errors import BAD_REQUEST, ReplyError
from repeater.node import open_node
from repeater.options import ChannelOptions, NodeOptions
from repeater.testing import open_test_node
from tests.conversation import talking
from tests.refusing import RefusedLines

OPEN = NodeOptions(allow_anonymous=True)


async def test_one_line_and_one_count(autojump_clock: MockClock, refused: RefusedLines) -> None:
    """The line says what was asked, the cause, the reason, what to change, and who asked."""
    async with open_node(OPEN) as node, talking(node) as alice:
        error = await alice.subscribe("chat:1")
        assert node.refusals.counts == {"namespace": 1}
    assert error == {"code": 102, "message": "unknown channel"}
    line = refused.one()
    assert line.startswith("refused")
    for part in (
        "what=subscribe",
        "cause=namespace",
        "there is no namespace 'chat'",
        "add [namespaces.chat] to the configuration",
        "code=102",
        "channel=chat:1",
        f"client={alice.client.id}",
        "transport=memory",
    ):
        assert part in line


async def test_development_mode_tells_the_client(
    autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """There the answer goes on with the line's reason."""
    async with open_test_node() as node, talking(node) as alice:
        error = await alice.subscribe("chat:1")
    assert error["code"] == 102
    assert error["message"].startswith("unknown channel: there is no namespace 'chat': add [")
    assert "cause=namespace" in refused.one()


async def test_an_end(autojump_clock: MockClock) -> None:
    """Who ended itself by a command is told why in as much as a close frame takes; once."""
    async with open_test_node() as node, talking(node) as alice:
        await alice.session.receive('{"id": 1, "connect": {}}')
        end = alice.client.end
        assert end is not None
        assert end.code == 3501
        node.refusals.end(alice.client, end, Why(Cause.REQUEST, "x"), "connect")
    async with open_test_node() as other, talking(other) as bob:
        other.refusals.end(bob.client, BAD_REQUEST, Why(Cause.REQUEST, "é" * 200), "connect")
        assert bob.client.end is not None
        assert len(bob.client.end.reason.encode()) in (119, 120)
    assert node.refusals.counts == {"request": 1}, "who has ended is not refused again"


async def test_a_storm_of_one_cause(autojump_clock: MockClock, refused: RefusedLines) -> None:
    """Above the limit of lines a second only their number is told; other causes have their own."""
    options = NodeOptions(allow_anonymous=True, connection_log_limit=2)
    async with open_node(options) as node, talking(node) as alice:
        for _ in range(5):
            await alice.subscribe("chat:1")
        await alice.subscribe("news")
        await trio.sleep(1.5)
    lines = refused.all()
    assert [line.partition(" cause=")[2].partition(" ")[0] for line in lines[:3]] == [
        *("namespace", "namespace"),
        "permission",
    ]
    assert lines[3] == "and more refused causes={'namespace': 3}"


RULES = ChannelRules(
    NodeOptions(
        user_personal_channel=True,
        personal_channel_namespace="me",
        namespaces={
            "closed": ChannelOptions(),
            "members": ChannelOptions(allow_subscribe_for_client=True),
            "few": ChannelOptions(allow_user_limited_channels=True),
            "asked": ChannelOptions(subscribe_proxy_enabled=True),
            "me": ChannelOptions(),
            "talk": ChannelOptions(
                allow_publish_for_subscriber=True, presence=True, history_size=0
            ),
        },
    )
)


@pytest.mark.parametrize(
    ("channel", "user", "cause", "text", "mend"),
    [
        ("closed:a", "42", "permission", "may not subscribe", "[namespaces.closed]"),
        ("a", "42", "permission", "may not subscribe", "[channel]"),
        ("members:a", "", "permission", "anonymous", "allow_subscribe_for_anonymous"),
        ("$members:a", "42", "permission", "private", "subscription token"),
        ("few:a#41", "42", "permission", "named behind '#'", "one of them"),
        ("me:#41", "42", "permission", "another user's personal", "user_personal_channel"),
        ("asked:a", "42", "permission", "the back end decides", "subscribe_proxy_enabled"),
        ("none:a", "42", "namespace", "no namespace 'none'", "[namespaces.none]"),
        ("é", "42", "channel", "printable ASCII", "channel_regex"),
        ("x" * 256, "42", "channel", "too long", "channel_name_limit"),
    ],
)
def test_why_not_subscribe(channel: str, user: str, cause: str, text: str, mend: str) -> None:
    """The rule that keeps a user out, and the setting that lets the user in."""
    with pytest.raises(ReplyError) as error:
        RULES.check_subscribe(channel, user)
    why = error.value.why
    assert why.cause == cause
    assert text in why.text
    assert mend in why.mend


@pytest.mark.parametrize(
    ("user", "subscribed", "text", "mend"),
    [
        ("", True, "anonymous clients may not publish", "allow_publish_for_anonymous"),
        ("42", False, "only subscribers may publish", "allow_publish_for_client"),
    ],
)
def test_why_not_publish(user: str, subscribed: bool, text: str, mend: str) -> None:
    """The same for what a client asks of a channel."""
    with pytest.raises(ReplyError) as error:
        RULES.check("publish", "talk:a", user, subscribed=subscribed)
    assert text in error.value.why.text
    assert mend in error.value.why.mend


def test_why_not_kept() -> None:
    """A channel without history names the settings that keep one."""
    with pytest.raises(ReplyError) as error:
        RULES.check_kept("history", "talk:a")
    assert error.value.why.cause == "not_offered"
    assert "history_size" in error.value.why.mend


async def test_a_stranger_does_not_fill_the_disk(
    autojump_clock: MockClock, refused: RefusedLines
) -> None:
    """What a client sends is cut in the line, whatever its length: a channel's name of 60 KB."""
    async with open_node(OPEN) as node, talking(node) as alice:
        error = await alice.subscribe("x" * 60_000)
        assert error["code"] == 107
    line = refused.one()
    assert "channel's name is too long" in line
    assert f"channel={'x' * 1_000}..." in line
    assert len(line) < 2_000
