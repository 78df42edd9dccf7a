"""One set of options for both servers, written down for each in its own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

API_KEY: Final = "differential"
SECRET: Final = "sixty-four bytes of a secret that HS512 finds long enough for it"

_OPEN: Final = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_publish_for_client": True,
    "allow_publish_for_anonymous": True,
}
_HISTORY: Final = {"history_size": 10, "history_ttl": "300s"}
_READ: Final = {
    "allow_history_for_client": True,
    "allow_history_for_anonymous": True,
    "allow_presence_for_subscriber": True,
    "allow_presence_for_anonymous": True,
}

NAMESPACES: Final[Mapping[str, Mapping[str, Any]]] = {
    "hist": {**_OPEN, **_HISTORY, **_READ, "allow_recovery": True, "allow_positioning": True},
    "forced": {**_OPEN, **_HISTORY, **_READ, "force_recovery": True, "force_positioning": True},
    "few": {**_OPEN, **_READ, "history_size": 2, "history_ttl": "300s", "force_recovery": True},
    "pres": {**_OPEN, **_READ, "presence": True, "allow_presence_for_client": True},
    "talk": {
        **(_OPEN | _HISTORY | _READ),
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "force_recovery": True,
    },
    "delta": {
        **(_OPEN | _HISTORY | _READ),
        "allow_recovery": True,
        "allowed_delta_types": ["fossil"],
        "delta_publish": True,
    },
    "cache": {
        **(_OPEN | _HISTORY | _READ),
        "force_recovery": True,
        "force_recovery_mode": "cache",
    },
    "auto": {
        **(_OPEN | _HISTORY | _READ),
        "force_recovery": True,
        "force_recovery_mode": "cache",
        "auto_cache_recover": True,
    },
    "tags": {**_OPEN, **_HISTORY, **_READ, "allow_tags_filter": True, "force_recovery": True},
    "shut": {},
    "guests": {"allow_subscribe_for_client": True, "allow_publish_for_subscriber": True},
    "dialog": {"allow_user_limited_channels": True, "allow_publish_for_subscriber": True},
    "object": {**_OPEN, "publication_data_format": "json_object"},
    "asked": {"subscribe_proxy_enabled": True, "publish_proxy_enabled": True},
}
"""The options that both servers know under the same names."""

HERE_ONLY: Final[Mapping[str, Any]] = {"history_size": 0}
"""What Repeater has to be told to be without, because its default is another."""

_BY_DEFAULT: Final[Mapping[str, Mapping[str, Any]]] = {
    "regex": {**_OPEN, "channel_regex": "^[a-z]+$"},
    "unset": _OPEN,
    "bytes": {
        **_OPEN,
        **_HISTORY,
        **_READ,
        "allow_recovery": True,
        "publication_data_format": "binary",
    },
}
"""Namespaces for examples alone: the same words mean different things to the servers."""


def centrifugo(port: int, keys: str, back_end: str, rsa: str, ecdsa: str) -> Mapping[str, Any]:
    """Centrifugo's configuration file; `keys` and `back_end` are addresses, the others PEM."""
    return {
        "http_server": {"address": "127.0.0.1", "port": port},
        "log": {"level": "error"},
        "usage_stats": {"disabled": True},
        "shutdown": {"timeout": "1s"},
        "http_api": {"key": API_KEY},
        "client": {
            "allow_anonymous_connect_without_token": True,
            "channel_limit": 8,
            "expired_close_delay": "1s",
            "expired_sub_close_delay": "1s",
            "token": {
                "hmac_secret_key": SECRET,
                "rsa_public_key": rsa,
                "ecdsa_public_key": ecdsa,
            },
            "subscription_token": {
                "enabled": True,
                "jwks_public_endpoint": keys,
                "insecure_skip_jwks_endpoint_safety_check": True,
            },
            "subscribe_to_user_personal_channel": {
                "enabled": True,
                "personal_channel_namespace": "few",
            },
        },
        "channel": {
            "without_namespace": _OPEN,
            "namespaces": [
                *({"name": name, **options} for name, options in NAMESPACES.items()),
                *({"name": name, **options} for name, options in _BY_DEFAULT.items()),
            ],
            "proxy": {
                "subscribe": {"endpoint": f"{back_end}/subscribe", "timeout": "5s"},
                "publish": {"endpoint": f"{back_end}/publish", "timeout": "5s"},
            },
        },
        "rpc": {
            "proxy": {"endpoint": f"{back_end}/rpc", "timeout": "5s"},
            "without_namespace": {"proxy_enabled": True},
        },
        "sse": {"enabled": True},
        "http_stream": {"enabled": True},
        "uni_sse": {"enabled": True},
        "uni_http_stream": {"enabled": True},
        "uni_websocket": {"enabled": True},
    }


def repeater(keys: str, back_end: str, rsa: str, ecdsa: str) -> Mapping[str, Any]:
    """Repeater's settings, as tables; the port is given to the command."""
    return {
        "engine": "memory",
        "api_key": API_KEY,
        "allow_anonymous": True,
        "log_level": "warning",
        "channel_limit": 8,
        "expired_close_delay": "1s",
        "user_personal_channel": True,
        "personal_channel_namespace": "few",
        "limits": {"commands_per_second": 0},
        "token": {"hmac_secret_key": SECRET, "rsa_public_key": rsa, "ecdsa_public_key": ecdsa},
        "subscription_token": {"jwks_url": keys},
        "callbacks": {
            "subscribe_url": f"{back_end}/subscribe",
            "publish_url": f"{back_end}/publish",
            "rpc_url": f"{back_end}/rpc",
            "timeout": "5s",
        },
        "channel": {**HERE_ONLY, **_OPEN},
        "namespaces": {
            **{name: {**HERE_ONLY, **options} for name, options in NAMESPACES.items()},
            **_BY_DEFAULT,
        },
    }


def write(folder: Path, name: str, tables: Mapping[str, Any]) -> Path:
    """Write a configuration file: JSON, or TOML where the name says so."""
    path = folder / name
    path.write_text(json.dumps(tables) if path.suffix == ".json" else _toml(tables))
    return path


def _toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """Texts, numbers and lists are written in TOML as they are in JSON."""
    values = {key: one for key, one in tables.items() if not isinstance(one, Mapping)}
    text = "".join(f"{key} = {json.dumps(one)}\n" for key, one in values.items())
    for key, one in tables.items():
        if isinstance(one, Mapping):
            text += f"\n[{prefix}{key}]\n{_toml(one, f'{prefix}{key}.')}"
    return text
