"""What `pip install` gives: the programs run, the pages are there, the types are seen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urljoin

import httpx

import repeater
from tests.deadlines import LOOP_ANSWERS
from tests.processes import starts_processes
from tests.wheel.environment import Environment

# An environment is made and a server started within one test's time.
pytestmark = starts_processes


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=LOOP_ANSWERS)


def check_page(url: str) -> str:
    """The page is there with everything that it loads; its text."""
    page = get(url)
    assert page.status_code == 200, url
    assert page.headers["content-type"].startswith("text/html"), url
    loaded = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="([^"]+)"', page.text)
    for one in loaded:
        if not one.startswith("data:"):
            assert get(urljoin(url, one)).status_code == 200, one
    return page.text


def test_only_the_installed_package_is_imported(bare: Environment) -> None:
    """`repeater` comes from the environment, which has no site of the machine's; no `service`."""
    assert Path(bare.printed("import repeater; print(repeater.__file__)")).is_relative_to(
        bare.folder
    )
    sites = bare.printed(
        "import sys, json; print(json.dumps([p for p in sys.path if 'site-' in p]))"
    )
    assert [Path(one).is_relative_to(bare.folder) for one in json.loads(sites)] == [True]
    failed = bare.run("python", "-c", "import service")
    assert failed.returncode == 1
    assert "ModuleNotFoundError: No module named 'service'" in failed.stderr


def test_the_compiled_schema_is_installed(bare: Environment) -> None:
    """Protobuf is spoken from the installed files: the runtime came along, and client.binpb."""
    code = "from repeater.protocol.centrifugo.protobuf_format import PROTOBUF; "
    assert bare.printed(code + "print(*PROTOBUF.commands(bytes(1)))").startswith("Command(id=0,")


def test_both_ways_to_run_it_say_the_same_version(bare: Environment) -> None:
    """`repeater` and `python -m repeater`; and the metadata agrees."""
    said = bare.run("repeater", "--version")
    assert (said.returncode, said.stdout.strip()) == (
        0,
        f"repeater, version {repeater.__version__}",
    )
    assert bare.run("python", "-m", "repeater", "--version").stdout == said.stdout
    code = "import importlib.metadata as m; print(m.version('repeater-server'))"
    assert bare.printed(code) == repeater.__version__


def test_server_serves_its_pages_and_delivers(bare: Environment) -> None:
    """The pages with all they load, health, the API, and an event by way of the command line."""
    with bare.serving() as url:
        for path in ("/", "/console", "/docs"):
            check_page(url + path)
        for path in ("/health", "/health/live", "/health/ready", "/openapi.json"):
            assert get(url + path).status_code == 200
        body = {"channel": "news", "data": {"n": 1}}
        answer = httpx.post(f"{url}/api/publish", json=body, trust_env=False)
        assert "result" in answer.json()
        check_delivery(bare, url)


def check_delivery(environment: Environment, url: str) -> None:
    """`repeater subscribe` prints what `repeater publish` sends."""
    with environment.started("repeater", "subscribe", "--url", url, "sport") as subscriber:
        assert subscriber.stdout is not None
        assert subscriber.stdout.readline().startswith("subscribed to sport")
        done = environment.run("repeater", "publish", "--url", url, "sport", '{"goals": 3}')
        assert done.returncode == 0, done.stderr
        assert '{"goals": 3}' in subscriber.stdout.readline()


def test_types_are_seen(from_wheel: Environment, tmp_path: Path) -> None:
    """A type checker reads the installed package's annotations: py.typed is in the wheel."""
    program = tmp_path / "program.py"
    program.write_text("from repeater import Publication\n\nn: int = Publication('news', b'{}')\n")
    python = str(from_wheel.bin / "python")
    options = (
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        "--python-executable",
        python,
    )
    done = subprocess.run(
        (sys.executable, "-m", "mypy", *options, str(program)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'expression has type "Publication", variable has type "int"' in done.stdout, done.stdout
    assert "Found 1 error in 1 file" in done.stdout


def test_application_runs_with_its_extra(with_comments: Environment) -> None:
    """`/` is the comments application; who signs up and in can write a comment."""
    account = {"email": "ann@example.org", "password": "correct horse", "name": "Ann"}
    with with_comments.serving() as url:
        check_page(f"{url}/comments.html")
        with httpx.Client(base_url=url, trust_env=False, timeout=LOOP_ANSWERS) as browser:
            assert browser.get("/", follow_redirects=True).status_code == 200
            for path, form in (
                ("/api/signup", account),
                ("/api/signin", account),
                ("/api/new_comment", {"text": "from a wheel"}),
            ):
                assert browser.post(path, data=form).status_code == 302, path
            assert "from a wheel" in browser.get("/api/comments").text


def test_without_its_extra_a_page_of_links_stands_in_for_the_application(
    bare: Environment,
) -> None:
    """The server starts all the same, says what to install, and `/` leads to the other pages."""
    with bare.started("repeater", "serve", "--dev", "--port", "0") as process:
        assert process.stdout is not None
        # Ends by the test's timeout if the line never comes.
        assert any("pip install 'repeater-server[comments]'" in line for line in process.stdout)
    with bare.serving() as url:
        page = check_page(url)
        assert '"console"' in page
        assert '"docs"' in page


def test_asking_for_the_application_without_its_extra_is_an_error_of_one_line(
    bare: Environment,
) -> None:
    """It names what installs the extra, and nothing is served."""
    refused = bare.run("repeater", "serve", "--dev", "--comments", "--port", "0")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    (line,) = refused.stderr.strip().splitlines()
    assert "pip install 'repeater-server[comments]'" in line


def test_client_stands_alone(client: Environment) -> None:
    """Its functions are there without the server, and work on Django's connections."""
    assert client.printed("import repeater_client; print(repeater_client.__version__)") == (
        repeater.__version__
    )
    assert client.run("python", "-c", "import repeater").returncode == 1
    code = """
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}})
from django.db import NotSupportedError
from repeater_client.django import publish
from repeater_client.testing import published
for call in (published, lambda: publish("c", 1)):
    try:
        call()
    except NotSupportedError as error:
        print(str(error).partition(":")[0])
"""
    assert client.printed(code).splitlines() == ["the database 'default' is sqlite"] * 2
