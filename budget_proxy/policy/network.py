"""Addresses, URLs, hosts and mounts of the policy: text only, nothing is looked up.

URLs are never quoted in a message: people put user names and passwords into them.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from budget_proxy.policy.mistakes import quoted
from budget_proxy.policy.sheet import Spot

_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_MOUNT = re.compile(r"/|(?:/[A-Za-z0-9._~-]+)+\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_PRINTABLE = re.compile(r"[!-~]+\Z")
_NOWHERE = ("127.0.0.1", 0)


def is_host(name: str) -> bool:
    """Whether this is a host name or an address."""
    return _HOST.match(name) is not None or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if _is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def address(spot: Spot, text: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `[::1]:8080` or `name:8080` as (host, port); port 0 is any free one."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host:
        spot.wrong(f"{quoted(text)} is not host:port, as in 127.0.0.1:8080")
    elif not _PORT.match(port) or int(port) > 65535:
        spot.wrong(f"{quoted(text)} has no port from 0 to 65535")
    elif not is_host(bare) or (":" in bare and bare == host):
        spot.wrong(f"{quoted(text)} has no host before the port, as in 127.0.0.1 or [::1]")
    else:
        return bare, int(port)
    return _NOWHERE


def http_url(spot: Spot, text: str) -> str:
    """An upstream's URL, without its last slash."""
    parts = _split(text)
    if parts is None:
        spot.wrong("is not a URL, as in https://api.example.com")
    elif parts.scheme not in ("http", "https"):
        spot.wrong("the URL must start with https:// or http://")
    elif "@" in parts.netloc:
        spot.wrong("a URL must hold no user name or password; write them under `credential`")
    elif parts.query or parts.fragment or text.endswith(("?", "#")):
        spot.wrong("the URL must end before any ? or #")
    elif any(step in (".", "..") for step in parts.path.split("/")):
        spot.wrong("the URL's path must have no . or .. in it")
    else:
        return text.rstrip("/")
    return ""


def balance_url(spot: Spot, text: str, origin: str) -> str | None:
    """The URL of a balance, with its query: absolute, or a path under an origin."""
    path, question, query = text.partition("?")
    if text.startswith("/") and not text.startswith("//"):
        path = origin + path
    if "{" in text or "#" in text:
        spot.wrong("the URL must have no {, } or # in it; put your own part in their place")
        return None
    if question and not _PRINTABLE.match(query):
        spot.wrong("is not a URL, as in https://api.example.com/balance")
        return None
    found = http_url(spot, path)
    slash = "/" if path.endswith("/") else ""
    return f"{found}{slash}{question}{query}" if found else None


def webhook_url(spot: Spot, text: str) -> str:
    """A webhook's URL, as it is: whatever is in it is its secret."""
    parts = _split(text)
    if parts is None or parts.scheme not in ("http", "https"):
        spot.wrong("is not the URL of a webhook, as in https://hooks.example.com/...")
    elif "@" in parts.netloc:
        spot.wrong("a URL must hold no user name or password; write them under `headers`")
    elif parts.fragment:
        spot.wrong("the URL must end before any #")
    return text


def proxy_url(spot: Spot, text: str) -> str:
    """A forward proxy's URL; it may hold a user name and a password."""
    parts = _split(text)
    if parts is None or parts.scheme != "http" or parts.path not in ("", "/") or parts.query:
        spot.wrong("is not the URL of a forward proxy, as in http://proxy.example.com:3128")
    return text


def _split(text: str) -> SplitResult | None:
    # urlsplit takes out tabs and newlines without a word.
    if not _PRINTABLE.match(text):
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname or not is_host(parts.hostname) or port == 0:
        return None
    return parts


def host_name(spot: Spot, text: str) -> str:
    """A host name as requests carry it, without a port, in lower case."""
    if not is_host(text):
        spot.wrong(f"{quoted(text)} is not a host name (without a port)")
    return text.lower()


def mount_path(spot: Spot, text: str) -> str:
    """A path to serve an upstream under: `/openai`; `/` for all of a host."""
    path = text if text == "/" else text.rstrip("/")
    if not _MOUNT.fullmatch(path) or any(step in (".", "..") for step in path.split("/")):
        spot.wrong(f"{quoted(text)} is not a path to serve under, as in /openai")
    return path


def overlaps(mount: str, other: str) -> bool:
    """Whether one of two mounts is, or lies inside, the other.

    `/` beside others is plainly meant to take the rest: the longest mount that fits counts.
    """
    if "/" in (mount, other) and mount != other:
        return False
    first, second = sorted((mount.rstrip("/") + "/", other.rstrip("/") + "/"), key=len)
    return second.startswith(first)
