"""Calls of a running server's API, for the commands that need them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from repeater.cli.terminal import visible

if TYPE_CHECKING:
    import httpx

    from repeater.cli.server import Server

_TIMEOUT: Final = 10.0  # seconds
_INTERNAL: Final = 100  # the code, also of what a broker that is down cannot do
_TEMPORARY: Final = " (/health/ready and the server's log say what is down)"
_NO_KEY: Final = " (give --api-key, REPEATER_API_KEY or --config)"


def ask(server: Server, method: str, **body: object) -> Any:
    """Make one call, and return its result; raises as `call`."""
    return call(server, method, json.dumps(body).encode())


def call(server: Server, method: str, body: bytes) -> Any:
    """Make one call, and return its result.

    Raises:
        click.ClickException: the call failed; the text is one line with the cause.
    """
    url = f"{server.address.url}/api/{method}"
    answer = _post(server, url, body)
    if "error" in answer:
        error = answer["error"]
        hint = _TEMPORARY if error["code"] == _INTERNAL else ""
        raise click.ClickException(visible(f"{error['code']} {error['message']}{hint}"))
    if "result" not in answer:
        raise click.ClickException(f"{url} did not answer as Repeater does")
    return answer["result"]


def _post(server: Server, url: str, body: bytes) -> dict[str, Any]:
    import httpx

    where = f"{url} by unix:{server.address.socket}" if server.address.socket else url
    try:
        with _client(server) as client:
            response = client.post(url, content=body)
        if response.status_code == 200:
            answer = response.json()
            return answer if isinstance(answer, dict) else {}
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(visible(f"cannot reach {where}: {error}")) from None
    said = _message(response)
    unauthorized = response.status_code == 401 and not server.api_key
    hint = _NO_KEY if unauthorized else ""
    raise click.ClickException(visible(f"{where} answered {response.status_code}{said}{hint}"))


def _message(response: httpx.Response) -> str:
    """What the server says of its refusal; empty if that is not an error of the API."""
    try:
        return f": {response.json()['error']['message']}"
    except (ValueError, TypeError, KeyError):  # a proxy's page
        return ""


def _client(server: Server) -> httpx.Client:
    """A client for one call; to the configuration's own address no proxy gets the key."""
    import httpx

    headers = {b"Content-Type": b"application/json"}
    if server.api_key:
        # The bytes of a variable that are not UTF-8 stay as they are.
        headers[b"X-API-Key"] = server.api_key.encode(errors="surrogateescape")
    if server.address.host:
        headers[b"Host"] = server.address.host.encode()
    if not server.at_home:
        return httpx.Client(headers=headers, timeout=_TIMEOUT)
    transport = httpx.HTTPTransport(
        verify=server.certificates() or True, uds=server.address.socket or None
    )
    return httpx.Client(transport=transport, headers=headers, timeout=_TIMEOUT)
