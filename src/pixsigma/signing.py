"""Signed C2PA manifests ("content credentials"): who made a picture, and that a model did.

The certificate and the key are the person's own; c2pa-python writes and reads the manifests.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixsigma._version import __version__
from pixsigma.errors import InputError, MissingExtraError
from pixsigma.given import expanded
from pixsigma.provenance import MADE, SOURCE_TYPES

PASSWORD = "PIXSIGMA_SIGN_PASSWORD"
"""The environment variable that opens an encrypted key; a flag would be seen by others."""

MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True)
class Signer:
    """Signs pictures with a certificate chain and its key."""

    chain: bytes
    """PEM: the signer's certificate, then those between it and the root."""
    key: bytes = field(repr=False)
    """PEM, not encrypted; it stays in memory."""
    algorithm: str
    """As C2PA names it, such as es256."""
    timestamps: str | None = None
    """URL of an RFC 3161 authority, which is asked once a picture."""

    @classmethod
    def from_files(
        cls, chain: str | Path, key: str | Path, timestamps: str | None = None
    ) -> "Signer":
        """Read both PEM files and sign an empty picture, so that what will fail fails now.

        Raises MissingExtraError without c2pa-python; InputError for files that cannot be read, do
        not belong together, or that C2PA does not allow (an authority's own certificate, for one).
        """
        _c2pa()
        certificates, private = _read(chain), _read(key)
        plain, algorithm = _opened(private, certificates, Path(chain), Path(key))
        signer = cls(certificates, plain, algorithm, timestamps)
        signer.signed(_smallest(), "PNG")
        return signer

    def signed(
        self, content: bytes, kind: str, source_type: str = MADE, title: str = "picture"
    ) -> bytes:
        """The file (PNG, JPEG or WEBP, whole) with a manifest inside that binds all of it.

        `source_type` is IPTC's term. Raises InputError with the reason that c2pa gives.
        """
        c2pa = _c2pa()
        info = c2pa.C2paSignerInfo(self.algorithm, self.chain, self.key, self.timestamps)
        result = io.BytesIO()
        try:
            context = c2pa.Context.from_dict(_OFFLINE)
            told = manifest(title, source_type)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(told, context) as builder:
                builder.sign(signer, MIME[kind], io.BytesIO(content), result)
        except c2pa.C2paError as error:
            raise InputError(
                f"this certificate cannot sign a picture ({error}): C2PA wants one for digital "
                "signatures, that is no authority itself"
            ) from error
        return result.getvalue()


def manifest(title: str, source_type: str) -> dict[str, Any]:
    """What is signed: that pixsigma created the picture, and IPTC's digital source type."""
    software = {"name": "pixsigma", "version": __version__}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPES + source_type,
        "softwareAgent": software,
    }
    return {
        "claim_generator_info": [software],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def credentials(content: bytes, kind: str, anchors: str | None = None) -> dict[str, Any] | None:
    """Who signed a picture's file and whether that holds; None where it has no manifest.

    `state` is Trusted (by `anchors`, roots in PEM), Valid (intact, the signer unknown) or Invalid;
    `problems` are C2PA's codes. Nothing is fetched. Raises MissingExtraError, InputError.
    """
    if b"c2pa" not in content:
        return None
    c2pa = _c2pa()
    trust = {"trust": {"user_anchors": anchors}} if anchors else {}
    context = c2pa.Context.from_dict(_OFFLINE | trust)
    try:
        reader = c2pa.Reader(MIME[kind], io.BytesIO(content), context=context)
    except c2pa.C2paError as error:
        if "ManifestNotFound" in str(error):
            return None
        raise InputError(f"the manifest inside cannot be read: {error}") from error
    with reader:
        store, state = json.loads(reader.json()), reader.get_validation_state()
    return _summary(store, state)


def _summary(store: Mapping[str, Any], state: str | None) -> dict[str, Any]:
    active = store.get("manifests", {}).get(store.get("active_manifest"), {})
    by = active.get("signature_info", {})
    results = store.get("validation_results", {}).get("activeManifest", {})
    return {
        "state": state,
        "signed_by": ", ".join(by[k] for k in ("common_name", "issuer") if by.get(k)),
        "time": by.get("time"),
        "problems": [each["code"] for each in results.get("failure", [])],
    }


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise MissingExtraError(
            "signed manifests need c2pa-python: pip install 'pixsigma[sign]'"
        ) from error
    return c2pa


def _read(path: str | Path) -> bytes:
    try:
        return expanded(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _opened(private: bytes, chain: bytes, chain_at: Path, key_at: Path) -> tuple[bytes, str]:
    """The key as plain PEM and C2PA's name of its algorithm."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise InputError(f"{chain_at} holds no certificate in PEM: {error}") from error
    password = os.environ.get(PASSWORD, "")
    try:
        key = serialization.load_pem_private_key(private, password.encode() or None)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{key_at} holds no private key in PEM that opens ({error}); {PASSWORD} in the "
            "environment is the password of an encrypted one"
        ) from error
    if key.public_key() != certificate.public_key():
        raise InputError(f"the key in {key_at} is not that of the first certificate in {chain_at}")
    plain = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return plain, _algorithm(key, key_at)


def _algorithm(key: Any, key_at: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise InputError(
        f"C2PA signs with ECDSA on P-256, P-384 or P-521, Ed25519 or RSA; {key_at} is none of these"
    )


def _smallest() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    return file.getvalue()
