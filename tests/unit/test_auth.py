"""Credentials to identities: keys, tokens, roles."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from aiohttp.test_utils import make_mocked_request

from analytics_core.api.auth import ANYBODY, LOCAL, Authenticator, Identity, credential
from analytics_core.config import ApiKey, Auth
from analytics_core.errors import ConfigError, ForbiddenError, UnauthenticatedError

SECRET = "a secret of the tests, long enough for HS256"
KEYS = (ApiKey("k-default"), ApiKey("k-acme", "acme", "reader"), ApiKey("k-op", "acme", "operator"))
GATE = Authenticator(Auth(enabled=True, keys=KEYS, jwt_secret=SECRET))
CLAIMS = {"sub": "u1", "tenant": "acme", "role": "writer"}


def token(secret: str = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    claims = {name: value for name, value in {**CLAIMS, **changed}.items() if value is not None}
    return jwt.encode(claims, secret, algorithm=algorithm)


def test_everybody_is_the_local_operator_when_disabled() -> None:
    assert Authenticator(Auth()).identify(None) == LOCAL
    assert (LOCAL.tenant, LOCAL.role) == ("default", "operator")


@pytest.mark.parametrize(
    ("key", "tenant", "role"),
    [("k-default", "default", "writer"), ("k-acme", "acme", "reader"), ("k-op", "acme", "operator")],
)
def test_a_key_is_a_tenant_and_a_role(key: str, tenant: str, role: str) -> None:
    identity = GATE.identify(key)
    assert (identity.tenant, identity.role) == (tenant, role)
    assert key not in identity.subject


def test_a_token_is_its_claims() -> None:
    expires = int(time.time()) + 60
    assert GATE.identify(token(exp=expires)) == Identity("u1", "acme", "writer", float(expires))
    assert GATE.identify(token(role=None)).role == "reader"


REFUSED = {
    "nothing": (None, "no credential"),
    "empty": ("", "no credential"),
    "unknown key": ("k-nobody", "not known"),
    "part of a key": ("k-acm", "not known"),
    "lone surrogate": ("k-\udcff", "not known"),
    "expired": (token(exp=1), "expired"),
    "not yet": (token(nbf=time.time() + 3600), "not yet valid"),
    "forged": (token("another secret of the tests, also long"), "Signature verification failed"),
    "unsigned": (token("", "none"), "alg value"),
    "another algorithm": (token(SECRET * 2, "HS512"), "alg value"),
    "no subject": (token(sub=None), "sub"),
    "no tenant": (token(tenant=None), "tenant"),
    "bad tenant": (token(tenant="../acme"), "must be a string that matches"),
    "tenant no text": (token(tenant=5), "must be a string that matches"),
    "bad role": (token(role="root"), "reader, writer, operator"),
    "role no text": (token(role=["reader"]), "reader, writer, operator"),
    "garbage": ("a.b.c", "not valid"),
}


@pytest.mark.parametrize(("given", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(given: str | None, why: str) -> None:
    with pytest.raises(UnauthenticatedError, match=why):
        GATE.identify(given)


def test_a_token_is_no_credential_without_a_secret() -> None:
    with pytest.raises(UnauthenticatedError, match="not known"):
        Authenticator(Auth(enabled=True, keys=KEYS)).identify(token())


@pytest.mark.parametrize(("role", "allowed"), [("reader", 1), ("writer", 2), ("operator", 3)])
def test_roles_are_ordered(role: Any, allowed: int) -> None:
    identity = Identity("u", "acme", role)
    for rank, needed in enumerate(("reader", "writer", "operator"), 1):
        if rank <= allowed:
            identity.need(needed)  # type: ignore[arg-type]
        else:
            with pytest.raises(ForbiddenError, match=f"has the role '{role}'; this needs '{needed}'"):
                identity.need(needed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ((ApiKey("k", "Not A Tenant"),), "does not match"),
        ((ApiKey("k", "a"), ApiKey("k", "b")), "given once"),
        ((ApiKey("", "a"),), "must not be empty"),
    ],
)
def test_keys_that_cannot_be_used_stop_the_start(keys: tuple[ApiKey, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Authenticator(Auth(enabled=True, keys=keys))


@pytest.mark.parametrize(
    ("headers", "in_query", "found"),
    [
        ({"Authorization": "Bearer abc"}, False, "abc"),
        ({"Authorization": "bearer  abc "}, False, "abc"),
        ({"X-API-Key": "abc"}, False, "abc"),
        ({}, False, None),
        ({}, True, "from-query"),
        ({"X-API-Key": "abc"}, True, "abc"),
    ],
)
def test_where_a_credential_is_looked_for(headers: dict[str, str], in_query: bool, found: str | None) -> None:
    request = make_mocked_request("GET", "/?api_key=from-query", headers=headers)
    assert credential(request, in_query=in_query) == found


def test_another_scheme_is_refused() -> None:
    with pytest.raises(UnauthenticatedError, match="'Basic' is not supported"):
        credential(make_mocked_request("GET", "/", headers={"Authorization": "Basic abc"}))


def test_another_scheme_is_left_alone_where_it_does_not_matter() -> None:
    basic = make_mocked_request("GET", "/", headers={"Authorization": "Basic abc"})
    assert Authenticator(Auth()).caller(basic) == LOCAL
    assert GATE.caller(basic, optional=True) == ANYBODY
    with pytest.raises(UnauthenticatedError, match="'Basic' is not supported"):
        GATE.caller(basic)
    both = make_mocked_request("GET", "/", headers={"Authorization": "Basic abc", "X-API-Key": "k-acme"})
    assert GATE.caller(both).tenant == GATE.caller(both, optional=True).tenant == "acme"
    wrong = make_mocked_request("GET", "/", headers={"X-API-Key": "nobody"})
    with pytest.raises(UnauthenticatedError, match="not known"):
        GATE.caller(wrong, optional=True)
