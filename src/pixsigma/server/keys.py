"""API keys: shown once, kept as hashes, compared in constant time."""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pixsigma.errors import InputError
from pixsigma.weights.files import atomic_write

PREFIX = "ps-"
"""What a key of ours begins with."""


@dataclass(frozen=True)
class Keys:
    """Names of clients to the SHA-256 of their keys; a key has 256 random bits, so no salt."""

    hashes: Mapping[str, str] = field(default_factory=dict)

    def owner(self, key: str) -> str | None:
        """The name that the key belongs to; takes equally long for every wrong key."""
        given = hashed(key)
        found = None
        for name, stored in self.hashes.items():
            if hmac.compare_digest(given, stored):
                found = name
        return found


def hashed(key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> Keys:
    """A file of `name:sha256` lines; raises InputError that names the line, or for no key."""
    if not (found := _keys_in(path)):
        raise InputError(f"{path} holds no key; pixsigma serve --keys FILE --add-key NAME adds one")
    return Keys(found)


def _keys_in(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the keys in {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, digest = line.partition(":")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not name or name in found:
            raise InputError(
                f"line {number} of {path} must be a new name, a colon and the SHA-256 of a key; "
                "pixsigma serve --keys FILE --add-key NAME writes one"
            )
        found[name] = digest
    return found


def add_key(path: Path, name: str) -> str:
    """Make a key for `name`, add its hash to the file, return the key: it is nowhere else.

    Raises InputError for a name that is taken or odd, OutputError.
    """
    if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise InputError(f"a client's name has letters, digits, dots and dashes, got {name!r}")
    if path.exists() and name in _keys_in(path):
        raise InputError(
            f"{path} has a key for {name} already; remove its line, or take a new name"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    with atomic_write(path) as temp:
        temp.chmod(0o600)
        before = path.read_text("utf-8").splitlines() if path.exists() else []
        temp.write_text("\n".join([*before, f"{name}:{hashed(key)}", ""]), "utf-8")
    path.chmod(0o600)
    return key


def check_host(host: str, keys: Keys | None) -> None:
    """Raise InputError for an address that others can reach while there are no keys."""
    if keys is None and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached by others, so the server needs keys: make one with "
            "pixsigma serve --keys FILE --add-key NAME, then give --keys FILE"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
