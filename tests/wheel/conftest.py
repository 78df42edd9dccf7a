"""The environments: wheel and sdist, each with the comments application and without it."""

from __future__ import annotations

import pytest

from tests.wheel.environment import Environment, built


def made(tmp_path_factory: pytest.TempPathFactory, pattern: str, extras: str) -> Environment:
    """A fresh environment with the one distribution that has such a name."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(f"{built(pattern)}{extras}")
    return environment


PATTERNS = {"wheel": "repeater_server-*.whl", "sdist": "repeater_server-*.tar.gz"}


@pytest.fixture(scope="session", params=PATTERNS)
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Without any extra."""
    return made(tmp_path_factory, PATTERNS[request.param], "")


@pytest.fixture(scope="session", params=PATTERNS)
def with_comments(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    """With the extra `comments`."""
    return made(tmp_path_factory, PATTERNS[request.param], "[comments]")


@pytest.fixture(scope="session")
def from_wheel(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """From the wheel alone, where it makes no difference."""
    return made(tmp_path_factory, PATTERNS["wheel"], "")


@pytest.fixture(scope="session", params=["repeater_client-*.whl", "repeater_client-*.tar.gz"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """With repeater-client, which has an environment of its own, and Django."""
    environment = made(tmp_path_factory, request.param, "")
    environment.install("django")
    return environment
