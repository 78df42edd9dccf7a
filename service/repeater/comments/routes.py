"""The routes of the application: forms, lists and the counter.

Forms work without a script: the answer is a redirect to the next page, or back to the form with the
name of the message to show. A client that asks for JSON gets errors as `{"error": ...}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
import trio
from quart import Blueprint, Response, request
from quart.typing import ResponseReturnValue

from repeater.clients.addresses import address_key
from repeater.comments.comments import Comments
from repeater.comments.identity import check_own_page
from repeater.comments.problems import BAD_QUERY, BUSY, TOO_LARGE, Problem, ProblemError
from repeater.comments.store import StoreError
from repeater.log import get_logger

_log = get_logger("comments")

# The page of each form, by the address that the form is sent to.
_FORMS: Final = {
    "/api/signup": "/index.html",
    "/api/signin": "/login.html",
    "/api/new_comment": "/comments.html",
}

_HEADER_LIMIT: Final = 512  # characters of `Accept` or `Content-Type`; browsers send some 130
_PAUSE: Final = 1.0  # seconds between two lines of log about the database


def create_comments(comments: Callable[[], Comments]) -> Blueprint:
    """The application's routes; its pages are in `pages.py`."""
    routes = Blueprint("comments", __name__)
    told = -math.inf

    @routes.before_app_request
    async def count() -> None:
        comments().count_request()

    @routes.before_request
    async def check() -> None:
        if request.method == "POST":
            check_own_page()
            long = len(request.headers.get("Content-Type", "")) > _HEADER_LIMIT
            if long or (request.content_length or 0) > comments().options.form_limit:
                raise ProblemError(TOO_LARGE)

    @routes.errorhandler(ProblemError)
    async def explain(error: ProblemError) -> Response:
        return _refuse(error.problem, error.retry_after)

    @routes.errorhandler(StoreError)
    async def try_later(error: StoreError) -> Response:
        nonlocal told
        if (now := trio.current_time()) >= told + _PAUSE:
            told = now
            _log.error("the database failed", reason=str(error))
        return _refuse(BUSY, 1.0)

    @routes.post("/api/signup")
    async def sign_up() -> ResponseReturnValue:
        form = await request.form
        email, password, name = (form.get(key, "") for key in ("email", "password", "name"))
        await comments().sign_up(_peer(), email, password, name)
        return _redirect("/login.html")

    @routes.post("/api/signin")
    async def sign_in() -> ResponseReturnValue:
        form = await request.form
        email, password = form.get("email", ""), form.get("password", "")
        browser = comments().identity.browser()
        session, account = await comments().sign_in(_peer(), email, password, browser)
        response = _redirect("/comments.html")
        comments().identity.remember(response, session, account)
        return response

    @routes.post("/api/signout")
    async def sign_out() -> ResponseReturnValue:
        await comments().sign_out(comments().identity.session())
        response = _redirect("/login.html")
        comments().identity.forget(response)
        return response

    @routes.get("/api/me")
    async def me() -> ResponseReturnValue:
        user = await comments().user(comments().identity.session())
        return _json({"user": user})

    @routes.post("/api/new_comment")
    async def new_comment() -> ResponseReturnValue:
        form = await request.form
        await comments().post(_peer(), comments().identity.session(), form.get("text", ""))
        return _redirect("/comments.html")

    @routes.get("/api/comments")
    async def list_comments() -> ResponseReturnValue:
        limit = _positive("limit") or comments().options.page_default
        return _json_bytes(await comments().list_json(limit, _positive("before")))

    @routes.get("/stats/counter")
    async def counter() -> ResponseReturnValue:
        return Response(f"{await comments().requests_served()}\n", content_type="text/plain")

    return routes


def _peer() -> str:
    return address_key(request.remote_addr)


def _redirect(path: str) -> Response:
    return Response(b"", 302, {"Location": f"{request.root_path}{path}"})


def _positive(name: str) -> int | None:
    """A query parameter that is a positive integer; None without the parameter."""
    text = request.args.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise ProblemError(BAD_QUERY)
    return int(text)


def _wants_json() -> bool:
    """Whether the client prefers JSON to a page. A long list of types is not read: 26 ms."""
    if len(request.headers.get("Accept", "")) > _HEADER_LIMIT:
        return False
    best = request.accept_mimetypes.best_match(("text/html", "application/json"))
    return best == "application/json"


def _refuse(problem: Problem, retry_after: float) -> Response:
    """A redirect to the form with the message; without a form, or for a program, the error."""
    if _wants_json() or request.method == "GET":
        response = _json({"error": problem.text}, problem.status)
    elif problem.status in (400, 401, 409) and request.path in _FORMS:
        form = "/login.html" if problem.name == "sign-in" else _FORMS[request.path]
        return _redirect(f"{form}#{problem.name}")
    else:
        response = Response(f"{problem.text}\n", problem.status, content_type="text/plain")
    if retry_after:
        response.headers["Retry-After"] = str(math.ceil(retry_after))
    return response


def _json(value: object, status: int = 200) -> Response:
    return _json_bytes(msgspec.json.encode(value), status)


def _json_bytes(body: bytes, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, headers, content_type="application/json")
