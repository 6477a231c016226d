"""Who pays: the service whose key a request carries.

A key is looked for where SDKs put one. It is hashed before anything else is done with it, and only
digests are compared, in constant time. Forbidden here: keeping, logging or returning a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from budget_proxy.core.headers import BUDGET_KEY, CREDENTIALS, HeaderList
from budget_proxy.core.house import House, Service, Upstream
from budget_proxy.core.refusal import Reason, refuse
from budget_proxy.core.target import Target

QUERY_KEY = "key"
_PLACES = "Authorization: Bearer, x-api-key, api-key, x-goog-api-key, ?key= or X-Budget-Key"


def digest(key: bytes) -> bytes:
    """The form in which a key is known."""
    return hashlib.sha256(key).digest()


def identify(house: House, upstream: Upstream, headers: HeaderList, target: Target) -> Service:
    """The service a request belongs to. Raises RefusedError (401)."""
    presented = _presented(headers, target)
    keys = {key for _, key in presented}
    if upstream.credential is None:
        # The provider's own key goes through; beside an X-Budget-Key it is no identity.
        keys = {key for place, key in presented if place == BUDGET_KEY} or keys
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


def _presented(headers: HeaderList, target: Target) -> list[tuple[bytes, bytes]]:
    """Every key in a request with its place."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        place = name.lower()
        if place in CREDENTIALS:
            key = _key_in(value) if place == b"authorization" else value.strip()
            if key:
                found.append((place, key))
    found += [(b"?key", key.encode()) for key in target.all(QUERY_KEY) if key]
    return found


def _key_in(authorization: bytes) -> bytes:
    scheme, _, rest = authorization.strip().partition(b" ")
    if scheme.lower() == b"basic":
        try:
            user, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
        except binascii.Error:
            return rest.strip()
        return password or user  # some providers' keys stand where the user does
    return rest.strip() if rest else scheme
