"""Which pages may connect: every spelling of an origin, globs, and what the settings refuse."""

from __future__ import annotations

import pytest

from repeater.access.origins import (
    LOOPBACK_ORIGINS,
    Page,
    host_allowed,
    judge_page,
    origin_allowed,
    parse_host_glob,
)
from repeater.config import ConfigError, load_settings


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://example.com", "example.com"),
        ("https://example.com", "example.com:443"),
        ("https://example.com:443", "example.com"),
        ("http://example.com", "example.com:80"),
        ("http://example.com:80", "example.com"),
        ("https://EXAMPLE.com", "example.COM"),
        ("HTTPS://example.com", "Example.com:443"),
        ("http://[::1]", "[::1]:80"),
        ("http://[::1]:80", "[0:0::1]"),
        ("http://[2001:DB8::1]:8000", "[2001:db8:0::1]:8000"),
        ("https://xn--mnchen-3ya.de", "m\u00fcnchen.de"),
        ("https://m\u00fcnchen.de", "xn--mnchen-3ya.de:443"),
        ("https://M\u00dcNCHEN.de", "m\u00fcnchen.de"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://example.com:", "example.com:"),
    ],
)
def test_the_own_origin_in_every_spelling(origin: str, host: str) -> None:
    """Case, default ports, brackets and IDNA do not count."""
    assert judge_page(origin, host, None, ()) is Page.TRUSTED


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://example.com", "example.com:80"),
        ("http://example.com", "example.com:443"),
        ("https://example.com:8443", "example.com"),
        ("https://evil.test", "example.com"),
        ("https://example.com.evil.test", "example.com"),
        ("https://example.com@evil.test", "example.com"),
        ("https://example.com/", "example.com"),
        ("null", "null"),
        ("null", "example.com"),
        ("", ""),
        ("", "example.com"),
        ("://example.com", "example.com"),
        ("example.com", "example.com"),
        ("https://", ""),
        ("https://example.com", None),
        ("https://[::1", "[::1"),
        ("https://[::1]x", "[::1]x"),
        ("https://[fe80::1%25eth0]", "[fe80::1%25eth0]"),
        ("https://example.com:99999", "example.com:99999"),
        ("https://example.com:\u0664\u0664\u0663", "example.com"),
        ("https://" + "a" * 70_000, "a" * 70_000),
        ("https://" + "\u00fc" * 300 + ".de", "\u00fc" * 300 + ".de"),
        ("ftp://example.com", "example.com"),
        ("https://a b", "a b"),
    ],
)
def test_another_s_origin(origin: str, host: str | None) -> None:
    """Another port, another host, and what is not an origin at all."""
    assert judge_page(origin, host, None, ()) is Page.FOREIGN


@pytest.mark.parametrize(
    ("glob", "origin"),
    [
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:443", "https://example.com"),
        ("https://Example.COM", "https://example.com"),
        ("https://m\u00fcnchen.de", "https://xn--mnchen-3ya.de"),
        ("https://*.m\u00fcnchen.de", "https://www.xn--mnchen-3ya.de"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://[0:0:0:0:0:0:0:1]:*", "http://[::1]:3000"),
        ("https://*.example.com", "https://a.b.example.com"),
        ("https://*.example.com:*", "https://a.example.com:8443"),
        ("http://localhost:*", "http://localhost"),
        ("http://localhost:*", "http://localhost:5173"),
        ("*://example.com", "http://example.com"),
        ("https://*", "https://any.where:8443"),
        ("null", "null"),
        ("file://", "file://"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://*", "chrome-extension://abcdef"),
        ("https://app?.example.com", "https://app1.example.com"),
    ],
)
def test_a_glob_matches(glob: str, origin: str) -> None:
    """By scheme, host and port, in every spelling of both; and a start accepts the glob."""
    assert origin_allowed(origin, None, [glob])
    assert load_settings(allowed_origins=[glob]).origins == (glob,)


@pytest.mark.parametrize(
    ("glob", "origin"),
    [
        ("https://*.good.example", "https://evil.example/.good.example"),
        ("https://*.good.example", "https://evil.example#.good.example"),
        ("https://*.good.example", "https://evil.example:1.good.example"),
        ("https://*.good.example", "https://u@evil.example\\.good.example"),
        ("https://*.good.example", "http://www.good.example"),
        ("https://*.good.example", "https://www.good.example:8443"),
        ("https://*.good.example", "https://good.example"),
        ("https://good.example*", "https://good.example:8443"),
        ("https://*", "http://a.b"),
        ("http://localhost:*", "http://localhost.evil.example:80"),
        ("http://localhost:*", "https://localhost"),
        ("https://a.example", "null"),
        ("null", "https://null"),
    ],
)
def test_a_glob_does_not_match(glob: str, origin: str) -> None:
    """No text of an origin crosses from one part to another."""
    assert not origin_allowed(origin, None, [glob])


@pytest.mark.parametrize(
    ("glob", "why"),
    [
        ("https://example.com/", "write https://example.com$"),
        ("https://example.com/app", "write https://example.com$"),
        ("example.com", "write https://example.com$"),
        ("wss://example.com", "write https://example.com$"),
        ("ws://example.com:8000", "write http://example.com:8000$"),
        ("https://", "no host"),
        ("https://user@example.com", "a host is letters"),
        ("https://[ab].example.com", "for an IPv6 address"),
        ("https://a[bc].example.com", "a host is letters"),
        ("http://::1:3000", "a host is letters"),
        ("https://example.com:https", "invalid port"),
        ("https://example.com:99999", "invalid port"),
        ("https://stra\u00dfe.de", "xn--"),
        ("https://\u00fc" + "\u00fc" * 99, "not the name of a host"),
        ("https://exa mple.com", "a host is letters"),
        ("", "no scheme"),
    ],
)
def test_a_glob_that_can_never_match(glob: str, why: str) -> None:
    """The start refuses it, with the setting's name and what would be right."""
    with pytest.raises(ConfigError, match=rf"allowed_origins.*{why}"):
        load_settings(allowed_origins=[glob])


@pytest.mark.parametrize(
    ("site", "allowed", "page"),
    [
        (None, (), Page.TRUSTED),
        ("none", (), Page.TRUSTED),
        ("same-origin", (), Page.TRUSTED),
        ("same-site", (), Page.FOREIGN),
        ("cross-site", (), Page.FOREIGN),
        ("cross-site", ("https://a.b",), Page.FOREIGN),
        ("cross-site", ("*",), Page.ANYBODY),
        ("news", (), Page.FOREIGN),
    ],
)
def test_a_request_without_an_origin(site: str, allowed: tuple[str, ...], page: Page) -> None:
    """Not from a page, unless the browser says in `Sec-Fetch-Site` that it is another's."""
    assert judge_page(None, "example.com", site, allowed) is page


def test_the_star() -> None:
    """It lets every page in, as anybody; a page that another glob names stays trusted."""
    allowed = ("*", "https://friend.test")
    assert judge_page("https://evil.test", "a", None, allowed) is Page.ANYBODY
    assert judge_page("https://friend.test", "a", None, allowed) is Page.TRUSTED
    assert judge_page("https://a", "a", None, allowed) is Page.TRUSTED
    assert judge_page("null", "a", None, allowed) is Page.ANYBODY
    assert judge_page("nonsense", "a", None, allowed) is Page.ANYBODY


@pytest.mark.parametrize("port", ["", ":1", ":8000"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback(scheme: str, host: str, port: str) -> None:
    """Development mode's origins: three names, both schemes, any port."""
    assert origin_allowed(f"{scheme}://{host}{port}", None, LOOPBACK_ORIGINS)
    assert not origin_allowed(f"{scheme}://{host}.evil.test{port}", None, LOOPBACK_ORIGINS)


@pytest.mark.parametrize(
    ("glob", "host"),
    [
        ("example.com", "example.com"),
        ("example.com", "EXAMPLE.com:8443"),
        ("*.example.com", "a.example.com"),
        ("::1", "[::1]:8000"),
        ("[::1]", "[0:0::1]"),
        ("m\u00fcnchen.de", "xn--mnchen-3ya.de"),
        ("*", "anything"),
    ],
)
def test_an_allowed_host(glob: str, host: str) -> None:
    """Any port, any case, IPv6 with or without brackets."""
    settings = load_settings(allowed_hosts=[glob])
    assert settings.hosts == (parse_host_glob(glob),)
    assert host_allowed(host, settings.hosts)


@pytest.mark.parametrize(
    "host", [None, "", "evil.test", "example.com.evil.test", "a b", "example.com/", "x" * 70_000]
)
def test_another_host(host: str | None) -> None:
    """None is another's as well."""
    assert not host_allowed(host, ("example.com",))


@pytest.mark.parametrize("glob", ["https://a.b", "a.b:80", "[::1]:80", "", "a/b", "[a]", "1::2::3"])
def test_a_host_that_can_never_match(glob: str) -> None:
    """The start refuses it, with the setting's name."""
    with pytest.raises(ConfigError, match="allowed_hosts"):
        load_settings(allowed_hosts=[glob])
