"""What a user may do with a channel, and which rule says so: for people who ask, not for clients.

Every no comes from the rules themselves (`ChannelRules`), so an explanation cannot differ from what
a client gets. A yes is explained here.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from repeater.access.channel_rules import Action, ChannelRules
from repeater.errors import ReplyError

_READ: Final[tuple[Literal["presence", "history"], ...]] = ("presence", "history")
_DEVELOPMENT: Final = "development mode allows everything"


class Permission(msgspec.Struct, frozen=True):
    """Whether a user may do something: `yes`, `no`, or `asked`, if the back end is asked each time.

    `why` is the rule or the setting that decides. `mend` is what to change, empty for a `yes`.
    """

    may: Literal["yes", "no", "asked"]
    why: str
    mend: str = ""


def permissions(rules: ChannelRules, channel: str, user: str) -> dict[str, Permission]:
    """What a user, empty for the anonymous one, may do with a channel: by the name of the action.

    `publish`, `presence` and `history` are those of a client that has subscribed, if it may.

    Raises:
        ReplyError: 107 or 102 for the channel's name.
    """
    subscribe = _subscribe(rules, channel, user)
    subscribed = subscribe.may != "no"
    publish = _act(rules, "publish", channel, user, subscribed=subscribed)
    if rules.options(channel).publish_proxy_enabled:
        publish = _asked("publish_proxy_enabled", rules.table(channel))
    found = {"subscribe": subscribe, "publish": publish}
    for what in _READ:
        try:
            rules.check_kept(what, channel)
        except ReplyError as error:
            found[what] = _no(error)
        else:
            found[what] = _act(rules, what, channel, user, subscribed=subscribed)
    return found


def _subscribe(rules: ChannelRules, channel: str, user: str) -> Permission:
    by_name = rules.decided_by_name(channel, user)
    table = rules.table(channel)
    if by_name is None and rules.options(channel).subscribe_proxy_enabled:
        return _asked("subscribe_proxy_enabled", table)
    try:
        allowed = rules.check_subscribe(channel, user)
    except ReplyError as error:
        return _no(error)
    if by_name:
        personal = channel == rules.personal_channel(user)
        why = "it is the user's personal channel" if personal else "the name lists the user"
        return Permission("yes", why)
    settings = ["allow_subscribe_for_client"]
    settings += ["allow_subscribe_for_anonymous"] if not user else []
    if not all(getattr(allowed, name) for name in settings):
        return Permission("yes", _DEVELOPMENT)
    return _by(settings, table)


def _act(
    rules: ChannelRules, action: Action, channel: str, user: str, *, subscribed: bool
) -> Permission:
    try:
        allowed = rules.check(action, channel, user, subscribed=subscribed)
    except ReplyError as error:
        return _no(error)
    client, subscriber = f"allow_{action}_for_client", f"allow_{action}_for_subscriber"
    anonymous = f"allow_{action}_for_anonymous"
    who = client if getattr(allowed, client) else subscriber
    settings = [who] if user else [who, anonymous]
    if not all(getattr(allowed, name) for name in settings):
        return Permission("yes", _DEVELOPMENT)
    return _by(settings, rules.table(channel))


def _by(settings: list[str], table: str) -> Permission:
    verb = "is" if len(settings) == 1 else "are"
    return Permission("yes", f"{' and '.join(settings)} {verb} true in {table}")


def _asked(setting: str, table: str) -> Permission:
    return Permission("asked", f"the back end decides: {setting} is true in {table}")


def _no(error: ReplyError) -> Permission:
    return Permission("no", error.why.text, error.why.mend)
