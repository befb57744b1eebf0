"""Who is calling: API keys and JWT (HS256) to an `Identity`, and the roles reader < writer < operator."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Final, Literal

import jwt
from aiohttp import web
from msgspec import Struct

from analytics_core.config import ApiKey, Auth, Role
from analytics_core.errors import ConfigError, ForbiddenError, UnauthenticatedError
from analytics_core.events import TENANT_PATTERN

TENANT: Final = re.compile(TENANT_PATTERN)
_RANK: Final[dict[str, int]] = {"none": 0, "reader": 1, "writer": 2, "operator": 3}
_ROLES: Final = ("reader", "writer", "operator")


class Identity(Struct, frozen=True):
    """One caller: every record it reads or writes is of ``tenant``. ``expires`` is a Unix time or None."""

    subject: str
    tenant: str
    role: Role | Literal["none"]
    expires: float | None = None

    @property
    def operator(self) -> bool:
        """Whether this caller runs the host, and may see what concerns all tenants: reasons, positions and volumes."""
        return self.role == "operator"

    def need(self, role: Role | Literal["none"]) -> None:
        """:raises ForbiddenError: when this caller's role is below ``role``."""
        if _RANK[self.role] < _RANK[role]:
            raise ForbiddenError(self.subject, self.role, role)


ANYBODY: Final = Identity("anybody", "", "none")
LOCAL: Final = Identity("local", "default", "operator")
"""The one caller when authentication is disabled."""

_PREFIX: Final = 8  # bytes of the SHA-256 that find a key; the comparison of the whole takes the same time for all
_NO_KEY: Final = (bytes(32), ANYBODY)


class Authenticator:
    """Turns a credential into an `Identity`.

    :raises ConfigError: for an API key whose tenant id is not allowed, or for a key that is given twice.
    """

    def __init__(self, settings: Auth) -> None:
        self.enabled = settings.enabled
        self._secret = settings.jwt_secret
        self._keys: dict[bytes, tuple[bytes, Identity]] = {}
        for entry in settings.keys:
            self._add(entry)

    def caller(self, request: web.Request, *, in_query: bool = False, optional: bool = False) -> Identity:
        """Who sent the request. ``optional``: without a credential of ours it is `ANYBODY`.

        :raises UnauthenticatedError: as `identify`, and for an Authorization scheme that is not ours.
        """
        if not self.enabled:
            return LOCAL
        given = credential(request, in_query=in_query, optional=optional)
        return ANYBODY if given is None and optional else self.identify(given)

    def identify(self, credential: str | None) -> Identity:
        """The caller who sent ``credential``; when authentication is disabled everybody is `LOCAL`.

        :raises UnauthenticatedError: without a credential, or for one that is unknown, expired or forged.
        """
        if not self.enabled:
            return LOCAL
        if not credential:
            raise UnauthenticatedError(
                "no credential was sent; give an API key or a token as 'Authorization: Bearer ...' or 'X-API-Key'"
            )
        digest = sha256(credential.encode("utf-8", "surrogateescape")).digest()
        known, identity = self._keys.get(digest[:_PREFIX], _NO_KEY)
        if hmac.compare_digest(known, digest):
            return identity
        if self._secret and credential.count(".") == 2:
            return self._read_token(credential)
        raise UnauthenticatedError("the API key is not known")

    def _add(self, entry: ApiKey) -> None:
        digest = sha256(entry.key.encode()).digest()
        subject = f"key {digest.hex()[:8]}"
        if not TENANT.fullmatch(entry.tenant):
            raise ConfigError("API_KEYS", f"{subject}: tenant {entry.tenant!r} does not match {TENANT.pattern}")
        if not entry.key or digest[:_PREFIX] in self._keys:
            raise ConfigError("API_KEYS", f"{subject}: a key must not be empty and may be given once")
        self._keys[digest[:_PREFIX]] = digest, Identity(subject, entry.tenant, entry.role)

    def _read_token(self, token: str) -> Identity:
        try:
            claims = jwt.decode(token, self._secret, algorithms=["HS256"], options={"require": ["sub", "tenant"]})
        except jwt.PyJWTError as problem:
            raise UnauthenticatedError(f"the token is not valid: {problem}") from None
        tenant, role, expires = claims["tenant"], claims.get("role", "reader"), claims.get("exp")
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise UnauthenticatedError(f"the token's claim 'tenant' must be a string that matches {TENANT.pattern}")
        if role not in _ROLES:
            raise UnauthenticatedError(f"the token's claim 'role' must be one of: {', '.join(_ROLES)}")
        return Identity(str(claims["sub"]), tenant, role, None if expires is None else float(expires))


def credential(request: web.Request, *, in_query: bool = False, optional: bool = False) -> str | None:
    """What the request brings to identify its caller, or None.

    ``in_query`` also reads ``?api_key=``: only for live streams, where browsers can send no headers of their own.

    :raises UnauthenticatedError: for another Authorization scheme when nothing else is there and it is not
        ``optional``: a proxy's own ``Basic`` hurts nobody who needs no credential.
    """
    headers = request.headers
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    key = headers.get("X-API-Key")
    if key is None and in_query:
        key = request.query.get("api_key")
    if key is None and scheme and not optional:
        raise UnauthenticatedError(f"the Authorization scheme {scheme[:20]!r} is not supported; use 'Bearer'")
    return key
