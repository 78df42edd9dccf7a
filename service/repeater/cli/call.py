"""Calls of a running server's API, for the commands that need them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from repeater.access.tokens.options import is_http
from repeater.cli.terminal import visible

F = TypeVar("F", bound=Callable[..., Any])

_TIMEOUT: Final = 10.0  # seconds
_INTERNAL: Final = 100  # the code, also of what a broker that is down cannot do
_TEMPORARY: Final = " (/health/ready and the server's log say what is down)"

url_option = click.option(
    "--url", default="http://127.0.0.1:8000", envvar="REPEATER_URL", show_default=True,
    show_envvar=True, help="The URL of the server.",
)  # fmt: skip
_key_option = click.option(
    "--api-key", envvar="REPEATER_API_KEY", show_envvar=True, help="The server's key."
)


def server_options(command: F) -> F:
    """Give a command `--url` and `--api-key`."""
    return _key_option(url_option(command))


def call(url: str, method: str, body: bytes, api_key: str | None) -> Any:
    """Make one call, and return its result.

    Raises:
        click.ClickException: the call failed; the text is one line with the cause.
    """
    if not is_http(url):
        raise click.ClickException(f"not a server's URL: {url}")
    url = f"{url.rstrip('/')}/api/{method}"
    answer = _post(url, body, api_key)
    if "error" in answer:
        error = answer["error"]
        hint = _TEMPORARY if error["code"] == _INTERNAL else ""
        raise click.ClickException(visible(f"{error['code']} {error['message']}{hint}"))
    if "result" not in answer:
        raise click.ClickException(f"{url} did not answer as Repeater does")
    return answer["result"]


def _post(url: str, body: bytes, api_key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if api_key:
        # `http.client` writes Latin-1; the bytes of a variable that are not UTF-8 stay as they are.
        headers["X-API-Key"] = api_key.encode(errors="surrogateescape").decode("latin-1")
    try:
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            hint = " (is the API key right?)" if error.code == 401 else ""
        raise click.ClickException(f"{url} answered {error.code}{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise click.ClickException(visible(f"cannot reach {url}: {reason}")) from None
    return answer if isinstance(answer, dict) else {}
