"""The URL of a PostgreSQL ledger, looked at as far as that can be done without the server.

No message quotes any of it: a password can be anywhere in a URL that is not written as it should.
"""

from __future__ import annotations

import re

PARAMETERS = frozenset(
    (
        *("application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname"),
        *("fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host"),
        *("hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
        *("krbsrvname", "load_balance_hosts", "max_protocol_version", "min_protocol_version"),
        *("options", "passfile", "password", "port", "require_auth", "requirepeer", "service"),
        *("ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcertmode"),
        *("sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslmode", "sslnegotiation"),
        *("sslpassword", "sslrootcert", "sslsni", "target_session_attrs", "tcp_user_timeout"),
        *("user",),
    )
)
"""What libpq knows in a URL's query."""
_EXAMPLE = "as in postgresql://budget@db/budget"
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/]*)(?::(?:[0-9]{1,5})?)?\Z")


def mistake_in(url: str) -> str | None:
    """What is wrong with a `postgresql://` URL; None: nothing that can be seen."""
    place, _, query = url.partition("://")[2].partition("?")
    server, _, name = place.partition("/")
    hosts = server.rpartition("@")[2].split(",")
    parameters = [part.partition("=") for part in query.split("&") if part]
    if not url.isascii() or not url.isprintable() or " " in url:
        return "must be printable ASCII without spaces; write other characters as %XX"
    if _BAD_ESCAPE.search(url):
        return "a % begins no %XX in it; write the character itself as %25"
    if "@" in server.rpartition("@")[0] or "/" in name or "@" in name:
        return "is not a URL (@ and / in a password are written as %40 and %2F)"
    if not all(map(_HOST.match, hosts)):
        return f"has something else than host:port in it; write it {_EXAMPLE}"
    if any(name not in PARAMETERS or not equals for name, equals, _ in parameters):
        return "has a parameter after its ? that PostgreSQL does not know (or one without a =)"
    if not name and not {"dbname", "service"} & {name for name, _, _ in parameters}:
        return f"must name a database, {_EXAMPLE}"
    return None


def has_password(url: str) -> bool:
    """Whether a password stands in it."""
    place, _, query = url.partition("://")[2].partition("?")
    login = place.rpartition("@")[0]
    return ":" in login or "password=" in query
