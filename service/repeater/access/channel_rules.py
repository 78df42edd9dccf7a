"""The rules of channels by name: their options, and who may do what (protocol, section 11).

Pure decisions on names, users and options; knows no connection. `$` begins a private channel, `:`
ends a namespace, `#` begins the list of the users that may subscribe. A personal channel belongs to
one user, whatever the options say.
"""

from __future__ import annotations

from typing import Final, Literal

from repeater.causes import Cause, Why
from repeater.errors import ErrorCode, ReplyError
from repeater.options import ChannelOptions, NodeOptions

Action = Literal["publish", "presence", "history"]
Kept = Literal["presence", "history"]

_NAMESPACE_END: Final = ":"
_USERS_BEGIN: Final = "#"
_ACTIONS: Final = {
    "publish": "publish into",
    "presence": "ask who is in",
    "history": "read the history of",
}
OF_ANOTHER_USER: Final = Why(
    Cause.PERMISSION,
    "the channel is another user's personal channel",
    "a user's own one is named by user_personal_channel and personal_channel_namespace",
)
_NOT_ASCII: Final = Why(
    Cause.CHANNEL,
    "the channel's name has characters other than printable ASCII",
    "use printable ASCII, or allow more by channel_regex",
)
_CACHE_LIMIT: Final = 10_000  # names whose options are remembered; emptied when full


class ChannelRules:
    """The rules of one node. Lives inside it; replaced as a whole when options are reloaded."""

    def __init__(self, options: NodeOptions) -> None:
        self._options = options
        self._known: dict[str, ChannelOptions] = {}
        self._personal = ""
        """How every user's personal channel begins; empty if users have none."""
        if options.user_personal_channel:
            namespace = options.personal_channel_namespace
            self._personal = f"{namespace}{_NAMESPACE_END if namespace else ''}{_USERS_BEGIN}"

    def options(self, channel: str) -> ChannelOptions:
        """The options of this channel.

        Raises:
            ReplyError: 107 for an invalid channel name, 102 for an unknown namespace.
        """
        known = self._known.get(channel)
        if known is None:
            known = self._look_up(channel)
            if len(self._known) >= _CACHE_LIMIT:
                self._known.clear()
            self._known[channel] = known
        return known

    def check_kept(self, what: Kept, channel: str) -> ChannelOptions:
        """Check that a channel keeps presence, or history; returns the channel's options.

        Raises:
            ReplyError: 108 if it does not, 107 or 102 for the channel's name.
        """
        options = self.options(channel)
        if not (options.presence if what == "presence" else options.history_size):
            raise ReplyError(ErrorCode.NOT_AVAILABLE, why=self._not_kept(what, channel))
        return options

    def _not_kept(self, what: Kept, channel: str) -> Why:
        setting = "presence = true" if what == "presence" else "history_size and history_ttl"
        where = self.table(channel)
        return Why(Cause.NOT_OFFERED, f"the channel keeps no {what}", f"set {setting} in {where}")

    def table(self, channel: str) -> str:
        """The table of the configuration that has this channel's options: `[namespaces.chat]`."""
        name, end, _ = self._public(channel).partition(_NAMESPACE_END)
        return f"[namespaces.{name}]" if end else "[channel]"

    def _look_up(self, channel: str) -> ChannelOptions:
        most = self._options.channel_name_limit
        if not channel or len(channel.encode(errors="replace")) > most:
            text = "the channel's name is too long" if channel else "the channel has no name"
            mend = f"a name has 1 to {most} bytes (channel_name_limit)"
            raise ReplyError(ErrorCode.BAD_REQUEST, why=Why(Cause.CHANNEL, text, mend))
        options = self._namespace(channel)
        if options.channel_regex is not None:
            if options.channel_regex.fullmatch(channel) is None:
                raise ReplyError(ErrorCode.BAD_REQUEST, why=self._no_match(channel))
        elif not (channel.isascii() and channel.isprintable()):
            raise ReplyError(ErrorCode.BAD_REQUEST, why=_NOT_ASCII)
        return options

    def _no_match(self, channel: str) -> Why:
        where = self.table(channel)
        return Why(
            Cause.CHANNEL,
            "the channel's name does not match channel_regex",
            f"the whole name, namespace included, must match; see {where}",
        )

    def _namespace(self, channel: str) -> ChannelOptions:
        name, end, _ = self._public(channel).partition(_NAMESPACE_END)
        if not end:
            return self._options.channel
        options = self._options.namespaces.get(name)
        if options is None:
            why = Why(
                Cause.NAMESPACE,
                f"there is no namespace {name!r}",
                f"add [namespaces.{name}] to the configuration, or use a name without ':'",
            )
            raise ReplyError(ErrorCode.UNKNOWN_CHANNEL, why=why)
        return options

    def _public(self, channel: str) -> str:
        """The name without the private prefix, which does not belong to the namespace."""
        return channel.removeprefix(self._options.private_prefix)

    def is_private(self, channel: str) -> bool:
        """Whether a subscription to this channel needs a token."""
        prefix = self._options.private_prefix
        return bool(prefix) and channel.startswith(prefix)

    def personal_channel(self, user: str) -> str | None:
        """The channel that this user's connections hear without asking; None without one.

        An id that a channel's name cannot hold makes a name that `grantable` refuses.
        """
        return f"{self._personal}{user}" if user and self._personal else None

    def is_of_another(self, channel: str, user: str) -> bool:
        """Whether this is the personal channel of another user than this one.

        The whole id is compared: the channel of `smith,john` is not that of `john`.
        """
        if not self._personal or not channel.startswith(self._personal):
            return False
        return channel != self.personal_channel(user)

    def grantable(self, channel: str, user: str) -> bool:
        """Whether a token or the back end can subscribe a user to this channel at `connect`."""
        try:
            self.options(channel)
        except ReplyError:
            return False
        return not self.is_of_another(channel, user)

    def check_subscribe(self, channel: str, user: str) -> ChannelOptions:
        """Check that a user may subscribe without a token; returns the channel's options.

        Raises:
            ReplyError: 107 or 102 for the channel's name, 103 if the user may not.
        """
        options = self.options(channel)
        why = self._why_not_subscribe(channel, user, options)
        if why is not None:
            raise ReplyError(ErrorCode.PERMISSION_DENIED, why=why)
        return options

    def may_subscribe(self, channel: str, user: str) -> bool:
        """Whether a user may subscribe without a token. Applies the rules in Centrifugo's order.

        Raises:
            ReplyError: 107 or 102 for the channel's name.
        """
        return self._why_not_subscribe(channel, user, self.options(channel)) is None

    def _why_not_subscribe(self, channel: str, user: str, options: ChannelOptions) -> Why | None:
        """Why a user may not subscribe without a token; None if the user may."""
        by_name = self._decided_by_name(channel, user, options)
        if by_name is not None:
            return None if by_name else self._refused_by_name(channel)
        if options.subscribe_proxy_enabled:
            # The back end decides this, and our caller has not asked it.
            return Why(
                Cause.PERMISSION,
                "the back end decides on subscriptions to this channel, and is not asked here",
                f"give the channel in the token, or see subscribe_proxy_enabled in "
                f"{self.table(channel)}",
            )
        if self._options.insecure:
            return None
        if not options.allow_subscribe_for_client:
            return Why(
                Cause.PERMISSION,
                "clients may not subscribe to this channel by themselves",
                f"set allow_subscribe_for_client = true in {self.table(channel)}, "
                "or subscribe with a token",
            )
        if user or options.allow_subscribe_for_anonymous:
            return None
        return Why(
            Cause.PERMISSION,
            "anonymous clients may not subscribe to this channel",
            f"connect with a token, or set allow_subscribe_for_anonymous = true in "
            f"{self.table(channel)}",
        )

    def _refused_by_name(self, channel: str) -> Why:
        """Why the name alone keeps a user out."""
        if self.is_private(channel):
            return Why(
                Cause.PERMISSION,
                f"the channel is private: its name begins with {self._options.private_prefix!r}",
                "subscribe with a subscription token, or change private_prefix",
            )
        if self._personal and channel.startswith(self._personal):
            return OF_ANOTHER_USER
        return Why(
            Cause.PERMISSION,
            f"only the users named behind {_USERS_BEGIN!r} may subscribe to this channel",
            "connect as one of them; the server takes the name apart where "
            "allow_user_limited_channels is on",
        )

    def decided_by_name(self, channel: str, user: str) -> bool | None:
        """Whether the name alone lets a user subscribe without a token; None if it does not decide.

        Raises:
            ReplyError: 107 or 102 for the channel's name.
        """
        return self._decided_by_name(channel, user, self.options(channel))

    def _decided_by_name(self, channel: str, user: str, options: ChannelOptions) -> bool | None:
        if self.is_private(channel):
            return False
        if self._personal and channel.startswith(self._personal):
            return channel == self.personal_channel(user)
        if options.allow_user_limited_channels and _USERS_BEGIN in channel:
            users = channel.rpartition(_USERS_BEGIN)[2].split(",")
            return bool(user) and user in users
        return None

    def check(self, action: Action, channel: str, user: str, *, subscribed: bool) -> ChannelOptions:
        """Check that a client may publish, or ask for presence or history; returns the options.

        Raises:
            ReplyError: 107 or 102 for the channel's name, 103 if the client may not.
        """
        options = self.options(channel)
        if not self.may(action, options, user, subscribed=subscribed):
            why = self._why_not(action, channel, user, options)
            raise ReplyError(ErrorCode.PERMISSION_DENIED, why=why)
        # Who may not hear a personal channel may not read what was said there either, unless
        # the server API subscribed the client.
        if action != "publish" and not subscribed and self.is_of_another(channel, user):
            raise ReplyError(ErrorCode.PERMISSION_DENIED, why=OF_ANOTHER_USER)
        return options

    def may(self, action: Action, options: ChannelOptions, user: str, *, subscribed: bool) -> bool:
        """Whether a client may do this action. Applies the rules in Centrifugo's order."""
        client: bool = getattr(options, f"allow_{action}_for_client")
        anonymous: bool = getattr(options, f"allow_{action}_for_anonymous")
        subscriber: bool = getattr(options, f"allow_{action}_for_subscriber")
        known = bool(user) or anonymous  # also of a subscriber
        return (known and (client or (subscriber and subscribed))) or self._options.insecure

    def _why_not(self, action: Action, channel: str, user: str, options: ChannelOptions) -> Why:
        """Why `may` is false."""
        what = _ACTIONS[action]
        client: bool = getattr(options, f"allow_{action}_for_client")
        subscriber: bool = getattr(options, f"allow_{action}_for_subscriber")
        if not (client or subscriber):
            text = f"clients may not {what} this channel"
            setting = f"allow_{action}_for_client or allow_{action}_for_subscriber"
        elif not user and not getattr(options, f"allow_{action}_for_anonymous"):
            text = f"anonymous clients may not {what} this channel"
            setting = f"allow_{action}_for_anonymous"
        else:
            text = f"only subscribers may {what} this channel, and this client is none"
            setting = f"allow_{action}_for_client"
        return Why(Cause.PERMISSION, text, f"set {setting} = true in {self.table(channel)}")
