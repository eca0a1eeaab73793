"""Tokens: what is issued is accepted, and every known forgery is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mcp_bus import tokens
from mcp_bus.config import TOKEN_BYTES_MAX
from mcp_bus.errors import Refused, SettingsError
from mcp_bus.tokens import DOORS, Door, Keys
from tests.mcp_bus.forger import GIT, GOOD, NOW, SECRET, forgeries, made, signed

KEYS = Keys.of(SECRET, None)
ED25519 = Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PAIRS = {"EdDSA": ED25519, "RS256": RSA}
FORGERIES = forgeries(GOOD, elsewhere="nats")


def private(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    """A private key as PEM."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


def public(key: Any) -> bytes:
    """The public half of a private key as PEM."""
    half = key.public_key()
    return bytes(half.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def keys_of(folder: Path, pem: bytes) -> Keys:
    """The keys of a bus that is given this file."""
    path = folder / "key.pem"
    path.write_bytes(pem)
    return Keys.of(SECRET, path)


def signed_by(pair: str, claims: object, **header: Any) -> str:
    """A hand-made token under one of the key pairs."""
    sign = {
        "EdDSA": ED25519.sign,
        "RS256": lambda text: RSA.sign(text, padding.PKCS1v15(), hashes.SHA256()),
    }[pair]
    return made(claims, sign, **{"alg": pair, **header})


def refused(keys: Keys, token: str, door: Door = "rest") -> bool:
    """Whether the token is refused, in the words that every forgery hears."""
    try:
        tokens.verify(keys, token, door)
    except Refused as error:
        return (error.code, error.detail) == ("unauthenticated", "the token is not one of ours")
    return False


def test_a_token_says_who_and_in_which_roles() -> None:
    """What is issued is accepted with its subject and roles."""
    token = tokens.verify(KEYS, tokens.issue(KEYS, "ann", ["developer", "analyst"], 60), "rest")
    assert (token.principal.subject, token.principal.roles) == ("ann", ("developer", "analyst"))
    assert (token.agent, token.expires - token.issued) == (None, 60)
    assert NOW <= token.issued <= time.time()


def test_the_hand_made_token_is_right() -> None:
    """The forgeries below differ from a token that is accepted."""
    headers: tuple[dict[str, Any], ...] = (
        {},
        {"kid": "../../etc/passwd"},
        {"jku": "http://169.254.169.254/"},
    )
    for header in headers:
        assert tokens.verify(KEYS, signed(GOOD, **header), "rest").principal.subject == "ann"
    assert tokens.verify(KEYS, signed(GIT), "nats").agent == "git"


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_is_refused(name: str) -> None:
    """No forgery passes, and each is refused as unauthenticated."""
    assert refused(KEYS, FORGERIES[name])


def test_a_token_that_is_over_may_say_so() -> None:
    """Its owner learns what to do; nobody else can make one."""
    with pytest.raises(Refused, match="over") as raised:
        tokens.verify(KEYS, signed({**GOOD, "exp": NOW - 1}), "rest")
    assert raised.value.code == "unauthenticated"
    assert refused(KEYS, signed({**GOOD, "exp": NOW - 1}, b"another key of thirty-two bytes!!"))


def test_an_endless_token_is_not_even_decoded() -> None:
    """A token beyond the bound is refused before anything is computed."""
    assert refused(KEYS, signed({**GOOD, "x": "A" * TOKEN_BYTES_MAX}))


def test_another_bus_has_other_tokens() -> None:
    """A token of one bus is none of another."""
    token = tokens.issue(Keys.of(b"another secret of thirty-two bytes", None), "ann", ["admin"], 60)
    assert refused(KEYS, token)


@pytest.mark.parametrize(
    ("subject", "roles", "ttl_s"),
    [
        ("", ["admin"], 60),
        ("a\nb", ["admin"], 60),
        ("a", ["root"], 60),
        ("a", [], 60),
        ("a", ["admin"], 0),
        ("\U0001f41d" * 256, ["admin"], 60),
    ],
)
def test_a_senseless_token_is_not_issued(subject: str, roles: list[str], ttl_s: int) -> None:
    """A token needs a subject, known roles, some time to live, and to be short enough."""
    with pytest.raises(Refused):
        tokens.issue(KEYS, subject, roles, ttl_s)


@pytest.mark.parametrize(("doors", "opened"), [(("rest",), "rest"), (("nats",), "nats")])
def test_a_token_opens_its_door_and_no_other(doors: tuple[Door, ...], opened: Door) -> None:
    """Each way: what is for one door is refused at the other; a token for both opens both."""
    agent = "git" if opened == "nats" else None
    token = tokens.issue(KEYS, "git", ["agent"], 60, doors=doors, agent=agent)
    both = tokens.issue(KEYS, "git", ["agent"], 60, doors=DOORS, agent="git")
    for door in DOORS:
        assert tokens.verify(KEYS, both, door).agent == "git"
        assert refused(KEYS, token, door) == (door != opened)


@pytest.mark.parametrize(
    "agent",
    ["", "*", ">", "a.b", "a b", "registry", "gateway", "_clock", "git\n", 7, None],
)
def test_a_forged_agent_is_refused(agent: object) -> None:
    """The log's subjects are made of the agent: it is an id that agents may carry, or nothing."""
    assert refused(KEYS, signed({**GIT, "agent": agent}), "nats")
    nobody = {key: value for key, value in GIT.items() if key != "agent"}
    assert refused(KEYS, signed(nobody), "nats")


@pytest.mark.parametrize(
    ("agent", "doors", "code"),
    [
        ("*", DOORS, "bad_id"),
        (">", ("nats",), "bad_id"),
        ("registry", DOORS, "reserved_id"),
        ("_clock", DOORS, "reserved_id"),
        (None, ("nats",), "bad_value"),
        ("git", ("rest",), "bad_value"),
        (None, (), "bad_value"),
    ],
)
def test_an_agent_that_nobody_may_be_gets_no_token(
    agent: str | None, doors: tuple[Door, ...], code: str
) -> None:
    """A token for the log names an agent that may be, and a token for no door is none."""
    with pytest.raises(Refused) as raised:
        tokens.issue(KEYS, "git", ["agent"], 60, doors=doors, agent=agent)
    assert raised.value.code == code


@pytest.mark.parametrize("pair", PAIRS)
def test_a_public_key_verifies_what_its_private_key_issued(pair: str, tmp_path: Path) -> None:
    """The private key does both; the public one only verifies, and says so."""
    issuing = keys_of(tmp_path, private(PAIRS[pair]))
    token = tokens.issue(issuing, "git", ["agent"], 60, doors=DOORS, agent="git")
    verifying = keys_of(tmp_path, public(PAIRS[pair]))
    for keys in (issuing, verifying):
        assert keys.algorithm == pair
        assert tokens.verify(keys, token, "nats").principal.subject == "git"
        assert tokens.verify(keys, signed_by(pair, GOOD), "rest").principal.subject == "ann"
        assert repr(keys) == f"Keys(algorithm={pair!r})"
    with pytest.raises(Refused, match="public key") as raised:
        tokens.issue(verifying, "git", ["agent"], 60)
    assert raised.value.code == "forbidden"


@pytest.mark.parametrize("pair", PAIRS)
def test_keys_are_not_confused(pair: str, tmp_path: Path) -> None:
    """With a key file no other algorithm counts, whatever it is signed with."""
    keys = keys_of(tmp_path, private(PAIRS[pair]))
    pem, other = public(PAIRS[pair]), next(name for name in PAIRS if name != pair)
    forged = {
        "HS256 by the public key": signed(GOOD, pem),
        "HS256 by the public key, stripped": signed(GOOD, pem.strip()),
        "HS256, said to be ours": signed(GOOD, pem, alg=pair),
        "HS256 by the bus secret": signed(GOOD),
        "the other pair": signed_by(other, GOOD),
        "the other pair, said to be ours": signed_by(other, GOOD, alg=pair),
        "ours, said to be the other": signed_by(pair, GOOD, alg=other),
        "unsigned": signed(GOOD, None, alg="none"),
        "unsigned, said to be ours": signed(GOOD, None, alg=pair),
    }
    for known in (keys, keys_of(tmp_path, pem)):
        assert [name for name, token in forged.items() if not refused(known, token)] == []
    assert refused(KEYS, signed_by(pair, GOOD))


def small_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)  # noqa: S505, that is the point


UNFIT: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "words": lambda: b"open sesame",
    "broken": lambda: private(ED25519).replace(b"M", b"!"),
    "encrypted": lambda: private(ED25519, BestAvailableEncryption(b"password")),
    "a small RSA key": lambda: private(small_rsa()),
    "a small public RSA key": lambda: public(small_rsa()),
    "an elliptic curve": lambda: private(ec.generate_private_key(ec.SECP256R1())),
    "Ed448": lambda: public(ed448.Ed448PrivateKey.generate()),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_key_file_is_named(name: str, tmp_path: Path) -> None:
    """Setting and file are named for what is no key, no key of ours, or too small a key."""
    with pytest.raises(SettingsError) as raised:
        keys_of(tmp_path, UNFIT[name]())
    assert "MCP_BUS_TOKEN_KEY" in raised.value.detail
    assert str(tmp_path / "key.pem") in raised.value.detail


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A path to nowhere, and one to a folder."""
    for path in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(SettingsError, match="MCP_BUS_TOKEN_KEY: cannot read") as raised:
            Keys.of(SECRET, path)
        assert str(path) in raised.value.detail
