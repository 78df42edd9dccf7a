"""Nchan, the nginx module: publish and subscribe in C, inside a web server.

The configuration follows its README (nchan.io): a publisher location that takes POST, with the
message buffer of its own example; a subscriber location for WebSocket and Server-Sent Events;
several channels on one connection by a delimiter, at most 255. The rest follows nginx's manual for
many connections on one core.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.generator.protocol import HTTP_REFUSALS, STREAMING, Entry, Greeting
from benchmarks.generator.secure import tls_arguments
from benchmarks.generator.wire import handshake
from benchmarks.peers.installed import INSTALL, find_program, printed, program, version_in
from benchmarks.peers.peer import Peer

_MODULE: Final = "ngx_nchan_module.so"
_FOLDERS: Final = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"))
_MULTIPLEXED: Final = 255  # channels in one request, according to the README
_CONFIGURATION: Final = """\
load_module MODULE;
daemon off;
pid nginx.pid;
error_log stderr;
user USER;
worker_processes 1;  # the server has one core
worker_rlimit_nofile 20000;
events {
    worker_connections 20000;
}
http {
    access_log off;
    tcp_nodelay on;  # which Nchan does not set on its WebSockets
    keepalive_timeout 10m;  # publishers keep their connection
    keepalive_requests 100000000;
    client_body_buffer_size 64k;  # no message goes through a file
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT backlog=4096;
        location = /health/live {
            return 200;
        }
        location = /sub {
            nchan_subscriber websocket eventsource;
            nchan_channel_id $arg_id;
            nchan_subscriber_first_message newest;
        }
        location = /multisub {
            nchan_subscriber websocket eventsource;
            nchan_channel_id $arg_id;
            nchan_channel_id_split_delimiter ",";
            # The names of all channels of a request together; 1,024 by default.
            nchan_max_channel_id_length 8192;
            nchan_subscriber_first_message newest;
        }
        location = /pub {
            nchan_publisher http;
            nchan_channel_id $arg_id;
            nchan_message_buffer_length 50;
            nchan_message_timeout 5m;
        }
        location = /multipub {
            nchan_publisher http;
            nchan_channel_id $arg_id;
            nchan_channel_id_split_delimiter ",";
            # The names of all channels of a request together; 1,024 by default.
            nchan_max_channel_id_length 8192;
            nchan_message_buffer_length 50;
            nchan_message_timeout 5m;
        }
    }
}
"""


def _module() -> Path | None:
    return next((folder / _MODULE for folder in _FOLDERS if (folder / _MODULE).exists()), None)


def _missing() -> str | None:
    if find_program("nginx") is None or _module() is None:
        return f"no nginx with {_MODULE}; {INSTALL}"
    return None


def _version() -> str:
    nginx = version_in(printed(program("nginx"), "-v"))
    package = printed("dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan")
    return f"{version_in(package)} in nginx {nginx}"


def _configuration() -> str:
    """The workers run as the benchmark's user; nginx ignores `user` unless that is root."""
    user = f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"
    return _CONFIGURATION.replace("MODULE", str(_module())).replace("USER", user)


def _secure_configuration() -> str:
    """The same with TLS and HTTP/2, whose files are not in the documentation."""
    listen = " backlog=4096"
    return _configuration().replace(
        f"{listen};",
        f"{listen} ssl http2;\n        ssl_certificate CERTIFICATE;\n"
        "        ssl_certificate_key KEY;",
    )


def _command(folder: Path) -> Sequence[str]:
    return _started(folder, _configuration())


def _secure_command(folder: Path) -> Sequence[str]:
    _, certificate, _, key = tls_arguments()
    text = _secure_configuration()
    return _started(folder, text.replace("CERTIFICATE", certificate).replace("KEY", key))


def _started(folder: Path, text: str) -> Sequence[str]:
    file = folder / "nginx.conf"
    file.write_text(text)
    return program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(file)


def _target(end: str, channels: Sequence[str]) -> str:
    if len(channels) > _MULTIPLEXED:
        raise ValueError(f"{len(channels)} channels; Nchan takes {_MULTIPLEXED} in one request")
    several = "multi" if len(channels) > 1 else ""
    return f"/{several}{end}?id={','.join(channels)}"


def _websocket(channels: Sequence[str]) -> Greeting:
    """A WebSocket; each of its messages is an event."""
    return Greeting(request=handshake(_target("sub", channels)), heartbeats={})


def _events(channels: Sequence[str]) -> Greeting:
    """Server-Sent Events; the stream begins with a comment."""
    head = (
        f"GET {_target('sub', channels)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Accept: text/event-stream\r\n\r\n"
    )
    return Greeting(request=head.encode(), accepted=STREAMING, ready=b": hi\n\n", stream=True)


def _post(channels: Sequence[str]) -> Entry:
    """`POST /pub` on one connection; a flood pipelines the requests."""
    target = _target("pub", channels).encode()

    def call(data: bytes) -> bytes:
        return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (
            target,
            len(data),
            data,
        )

    return Entry(
        greeting=Greeting(request=b"", heartbeats={}),
        encode=lambda data, _before: b"".join(map(call, data)),
        # 201 with subscribers, 202 without.
        answer=b"HTTP/1.1 20",
        refusals=HTTP_REFUSALS,
    )


NCHAN: Final = Peer(
    name="nchan",
    title="Nchan (nginx, C)",
    version=_version,
    missing=_missing,
    command=_command,
    configuration=_configuration,
    subscribe=_websocket,
    entry=_post,
    capabilities=frozenset({"channels", "calls"}),
    health="/health/live",
)

NCHAN_SSE: Final = msgspec.structs.replace(
    NCHAN,
    name="nchan-sse",
    title="Nchan, Server-Sent Events",
    subscribe=_events,
    ordinary=False,
    core=False,
    variant_of="nchan",
)

NCHAN_TLS: Final = msgspec.structs.replace(
    NCHAN,
    name="nchan-tls",
    title="Nchan, behind TLS with HTTP/2",
    command=_secure_command,
    configuration=_secure_configuration,
    secure=True,
    ordinary=False,
    core=False,
    variant_of="nchan",
)
