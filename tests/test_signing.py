"""C2PA manifests: signed by us, judged by c2pa's own reader."""

import io
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image
from tests.certificates import certificate, key_pem, new_key, pem, write_identity
from tests.test_cli import FakePipeline, pipe, run  # noqa: F401

from pixsigma import InputError, MissingExtraError, images, provenance
from pixsigma.cli.info import picture_facts
from pixsigma.signing import MIME, PASSWORD, Signer

SETTINGS: dict[str, Any] = {"prompt": "ein Käfer 🐞", "seed": 7}


def signed(folder: Path, suffix: str = ".png", **options: Any) -> tuple[Path, str]:
    """A signed picture and the root in PEM."""
    chain, key, root = write_identity(folder)
    picture = Image.effect_noise((32, 16), 50).convert("RGB")
    signer = Signer.from_files(chain, key)
    settings = options.pop("settings", SETTINGS)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    write = images.write_picture
    return write(picture, out, "a", settings, suffix=suffix, signer=signer, **options), root


def judged(path: Path, root: str | None = None) -> tuple[str | None, dict[str, Any]]:
    """What c2pa's reader thinks, and the active manifest."""
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False}}
    if root is not None:
        settings["trust"] = {"user_anchors": root}
    kind = MIME[provenance.KINDS[path.suffix]]
    context = c2pa.Context.from_dict(settings)
    with c2pa.Reader(kind, io.BytesIO(path.read_bytes()), context=context) as reader:
        store = json.loads(reader.json())
        return reader.get_validation_state(), store["manifests"][store["active_manifest"]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_independent_reader_trusts_it_and_settings_come_back(
    tmp_path: Path, suffix: str
) -> None:
    path, root = signed(tmp_path, suffix)
    assert judged(path)[0] == "Valid"  # intact; whom to trust is the reader's to say
    state, manifest = judged(path, root)
    assert state == "Trusted"
    action = manifest["assertions"][0]["data"]["actions"][0]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == provenance.SOURCE_TYPES + "trainedAlgorithmicMedia"
    assert manifest["claim_generator_info"][0]["name"] == "pixsigma"
    assert manifest["title"] == path.name
    assert manifest["signature_info"]["common_name"] == "A. Painter"
    assert images.read_provenance(path) == (SETTINGS, "trainedAlgorithmicMedia")
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_change_shows(tmp_path: Path, suffix: str) -> None:
    path, root = signed(tmp_path, suffix)
    content = path.read_bytes()
    changed = content.replace(b'"seed": 7', b'"seed": 8')
    assert changed != content
    if suffix == ".png":  # whose readers look at checksums
        at = changed.index(b"iTXtpixsigma")
        end = at + 4 + int.from_bytes(changed[at - 4 : at])
        checksum = zlib.crc32(changed[at:end]).to_bytes(4)
        changed = changed[:end] + checksum + changed[end + 4 :]
    path.write_bytes(changed)
    assert images.read_settings(path)["seed"] == 8
    assert judged(path, root)[0] == "Invalid"
    facts = picture_facts(path)
    assert facts["c2pa_state"] == "Invalid" and facts["c2pa_problems"]


def test_a_composite_says_so_and_settings_may_stay_out(tmp_path: Path) -> None:
    path, root = signed(tmp_path, settings=None, source_type=provenance.COMPOSITE)
    state, manifest = judged(path, root)
    action = manifest["assertions"][0]["data"]["actions"][0]
    assert state == "Trusted" and action["digitalSourceType"].endswith("/" + provenance.COMPOSITE)
    assert b"Steps" not in path.read_bytes()
    assert "thumbnail" not in manifest


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_other_kinds_of_keys(tmp_path: Path, kind: str) -> None:
    chain, key, root = write_identity(tmp_path, kind)
    path = tmp_path / "b.png"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(Signer.from_files(chain, key).signed(path.read_bytes(), "PNG"))
    assert judged(path, root)[0] == "Trusted"


def test_an_encrypted_key_opens_with_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key, _ = write_identity(tmp_path, password="open")
    with pytest.raises(InputError, match=PASSWORD):
        Signer.from_files(chain, key)
    monkeypatch.setenv(PASSWORD, "open")
    assert b"ENCRYPTED" not in Signer.from_files(chain, key).key


def test_what_cannot_sign_is_told_before_any_drawing(tmp_path: Path) -> None:
    chain, key, _ = write_identity(tmp_path)
    other = tmp_path / "other.key"
    other.write_bytes(key_pem(new_key("ed25519")))
    with pytest.raises(InputError, match="is not that of the first certificate"):
        Signer.from_files(chain, other)
    with pytest.raises(InputError, match="no certificate in PEM"):
        Signer.from_files(key, key)
    with pytest.raises(InputError, match="no private key in PEM"):
        Signer.from_files(chain, chain)
    with pytest.raises(InputError, match="cannot read"):
        Signer.from_files(tmp_path / "none.pem", key)
    curve = write_identity(tmp_path, "p224")
    with pytest.raises(InputError, match="P-256, P-384 or P-521"):
        Signer.from_files(*curve[:2])
    own = new_key("p256")
    alone, alone_key = tmp_path / "alone.pem", tmp_path / "alone.key"
    alone.write_bytes(pem(certificate("me", own, "me", own, ca=True)))
    alone_key.write_bytes(key_pem(own))
    with pytest.raises(InputError, match="no authority itself"):
        Signer.from_files(alone, alone_key)


def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = signed(tmp_path)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(MissingExtraError, match=r"pixsigma\[sign\]"):
        Signer.from_files("a", "b")
    assert "pixsigma[sign]" in picture_facts(path)["c2pa_state"]
    assert picture_facts(path)["seed"] == 7


def test_the_flags_sign_and_again_reads_it(
    pipe: FakePipeline,  # noqa: F811
    tmp_path: Path,
) -> None:
    chain, key, root = write_identity(tmp_path)
    flags = ("--sign", chain, "--sign-key", key, "--quiet")
    first = run("generate", "x", "--seed", 5, "--out", tmp_path / "x.webp", *flags)
    assert first.exit_code == 0, first.stderr
    assert judged(tmp_path / "x.webp", root)[0] == "Trusted"
    told = run("info", tmp_path / "x.webp", "--json")
    assert json.loads(told.stdout)["c2pa_state"] == "Valid"
    assert json.loads(told.stdout)["c2pa_signed_by"] == "A. Painter, Tests"
    again = run("generate", "--again", tmp_path / "x.webp", "--out", tmp_path / "y.png", *flags)
    assert again.exit_code == 0, again.stderr
    assert pipe.requests[0] == pipe.requests[1]
    assert judged(tmp_path / "y.png", root)[0] == "Trusted"
    half = run("generate", "x", "--sign", chain, "--out", tmp_path)
    assert half.exit_code == 2 and "--sign-key" in half.stderr
