"""Certificates made on the spot, as C2PA asks for them: a root, and one that it issued."""

import datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]


@cache
def new_key(kind: str) -> Any:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key({"p256": ec.SECP256R1(), "p224": ec.SECP224R1()}[kind])


def certificate(name: str, key: Any, issuer: str, issuer_key: Any, ca: bool) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        pairs = {NameOID.ORGANIZATION_NAME: "Tests", NameOID.COMMON_NAME: text}
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs.items()])

    usages = {"key_cert_sign", "crl_sign"} if ca else {"digital_signature"}
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{u: u in usages for u in USAGES}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
    )
    if not ca:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(found: x509.Certificate) -> bytes:
    return found.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Any, password: str = "") -> bytes:
    how: Any = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def write_identity(folder: Path, kind: str = "p256", password: str = "") -> tuple[Path, Path, str]:
    """Chain and key in files, and the root in PEM."""
    root_key, key = new_key("p256"), ec.generate_private_key(ec.SECP256R1())
    key = key if kind == "p256" else new_key(kind)
    root = certificate("root", root_key, "root", root_key, ca=True)
    leaf = certificate("A. Painter", key, "root", root_key, ca=False)
    chain_at, key_at = folder / f"{kind}.pem", folder / f"{kind}.key"
    chain_at.write_bytes(pem(leaf))
    key_at.write_bytes(key_pem(key, password))
    return chain_at, key_at, pem(root).decode()
