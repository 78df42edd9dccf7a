"""The application of docs/deployment.md, "Where pages live": a page, a sign-in, tokens, a callback.

    TOKEN_SECRET=... python app.py --script one-domain.js --realtime /realtime --sdk centrifuge.js

It has what the recipes need and no more. An application of yours asks for a password, for a start.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from collections.abc import Mapping
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt

HERE = Path(__file__).parent
SECRET = os.environ["TOKEN_SECRET"]
PAGE = """\
<!doctype html>
<html lang="en" data-realtime="{realtime}">
<meta charset="utf-8">
<title>The application</title>
<link rel="icon" href="data:,">
<form method="post" action="/sign-in"><button>Sign in as Ann</button></form>
<ol id="heard"></ol>
<script src="/centrifuge.js"></script>
<script src="/common.js"></script>
<script type="module" src="/{script}"></script>
</html>
"""

chosen = argparse.Namespace()
users: dict[str, str] = {}
"""By session."""


def token_of(user: str) -> str:
    """A connection token for some minutes. The secret is `hmac_secret_key` of Repeater."""
    claims = {"sub": user, "exp": int(time.time()) + chosen.lifetime}
    return jwt.encode(claims, SECRET, algorithm="HS256")


class Application(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, its scripts, and tokens."""
        if self.path == "/":
            page = PAGE.format(realtime=chosen.realtime, script=chosen.script.name)
            self.answer(200, page.encode(), "text/html; charset=utf-8")
        elif self.path in ("/common.js", f"/{chosen.script.name}"):
            self.answer(200, (HERE / self.path[1:]).read_bytes(), "text/javascript; charset=utf-8")
        elif self.path == "/centrifuge.js":
            self.answer(200, chosen.sdk.read_bytes(), "text/javascript; charset=utf-8")
        elif self.path == "/token":
            self.give_token()
        else:
            self.answer(404)

    def do_POST(self) -> None:
        """The sign-in, and Repeater's question who connects."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/sign-in":
            users[session := secrets.token_urlsafe()] = "ann"
            cookie = self.cookie("session", session)
            self.answer(303, headers={"Location": "/", "Set-Cookie": cookie})
        elif self.path == "/internal/connect":
            refused = {"disconnect": {"code": 4501, "reason": "not signed in"}}
            user = self.user()
            self.answer_json({"result": {"user": user}} if user else refused)
        else:
            self.answer(404)

    def give_token(self) -> None:
        """A token for pages of this domain; others can't read it. Also as a cookie."""
        user = self.user()
        if not user:
            self.answer(401)
            return
        token = token_of(user)
        also = f"; Max-Age={chosen.lifetime}"
        if chosen.cookie_domain:
            also += f"; Domain={chosen.cookie_domain}"
        self.answer_json({"token": token}, self.cookie("repeater_token", token, also))

    def cookie(self, name: str, value: str, also: str = "") -> str:
        """A cookie that no script reads, and that no other site's page makes a browser send."""
        secure = "; Secure" if self.headers.get("X-Forwarded-Proto") == "https" else ""
        return f"{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{also}"

    def user(self) -> str:
        """Who sends the request, or whose browser Repeater asks about; empty for nobody."""
        session = SimpleCookie(self.headers.get("Cookie", "")).get("session")
        return users.get(session.value, "") if session else ""

    def answer_json(self, value: object, cookie: str = "") -> None:
        """Answer with JSON."""
        headers = {"Set-Cookie": cookie} if cookie else {}
        self.answer(200, json.dumps(value).encode(), "application/json", headers)

    def answer(
        self, status: int, body: bytes = b"", kind: str = "", headers: Mapping[str, str] = {}
    ) -> None:
        """Answer, for no cache to keep."""
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--script", type=Path, default=Path("one-domain.js"))
    parser.add_argument("--realtime", default="/realtime", help="where Repeater is")
    parser.add_argument("--sdk", type=Path, required=True, help="its dist/centrifuge.js")
    parser.add_argument("--lifetime", type=int, default=300, help="of tokens, in seconds")
    parser.add_argument("--cookie-domain", default="", help="of both names, as in example.com")
    parser.parse_args(namespace=chosen)
    ThreadingHTTPServer(("127.0.0.1", chosen.port), Application).serve_forever()


if __name__ == "__main__":
    main()
