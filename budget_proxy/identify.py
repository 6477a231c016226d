"""Who pays: the service whose key a request carries.

A key is looked for where SDKs put one. It is hashed before anything else is done with it, and only
digests are compared, in constant time. Forbidden here: keeping, logging or returning a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from budget_proxy.core.headers import BUDGET_KEY, CREDENTIALS, HeaderList
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.refusal import Reason, refuse

QUERY_KEY = "key"
_PLACES = "Authorization: Bearer, x-api-key, api-key, x-goog-api-key, ?key= or X-Budget-Key"


def digest(key: bytes) -> bytes:
    """The form in which a key is known."""
    return hashlib.sha256(key).digest()


def identify(
    house: House, upstream: Upstream, headers: HeaderList, query: Mapping[str, str]
) -> Service:
    """The service a request belongs to. Raises RefusedError (401)."""
    presented = _presented(headers, query)
    budget_key = presented.pop(BUDGET_KEY, None)
    if upstream.credential is None and budget_key is not None:
        # The provider's own key goes through beside it.
        keys = {budget_key}
    else:
        keys = set(presented.values()) | ({budget_key} if budget_key is not None else set())
    if not keys:
        raise refuse(Reason.UNAUTHORIZED, f"The request has no service key; send one as {_PLACES}.")
    if len(keys) > 1:
        raise refuse(
            Reason.UNAUTHORIZED, "The request carries two different keys; send the service's only."
        )
    found = digest(keys.pop())
    service = house.services_by_digest.get(found)
    if service is None or not any(hmac.compare_digest(found, known) for known in service.keys):
        raise refuse(
            Reason.UNAUTHORIZED,
            "The service key is not known to budget-proxy; it must be listed under services:.",
        )
    return service


def _presented(headers: HeaderList, query: Mapping[str, str]) -> dict[bytes, bytes]:
    """The keys in a request by their place; of a place named twice with two keys, both."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        place = name.lower()
        if place in CREDENTIALS:
            key = _key_in(value) if place == b"authorization" else value.strip()
            if key:
                while found.get(place, key) != key:
                    place += b"+"
                found[place] = key
    if query.get(QUERY_KEY):
        found[b"?key"] = query[QUERY_KEY].encode()
    return found


def _key_in(authorization: bytes) -> bytes:
    scheme, _, rest = authorization.strip().partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return rest.strip()
    return rest.strip() if rest else scheme
