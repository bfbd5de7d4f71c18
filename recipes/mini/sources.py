"""Where mini's pictures come from: pinned npm packages, opened and turned into RGBA art."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

SIDE = 256
# Vector art is drawn larger than needed, so that every scale is a reduction.
VECTOR_SIDE = 512

# npm name, version, sha256 of the tarball.
PACKAGES = {
    "3D": (
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "flat": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "names": (
        "unicode-emoji-json",
        "0.9.0",
        "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    ),
    "keywords": (
        "emojilib",
        "4.0.3",
        "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
    ),
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing of things.txt: its Unicode name, the phrase that captions use, what it is."""

    name: str
    emoji: str
    kind: str
    phrase: str
    extras: tuple[str, ...]
    keywords: tuple[str, ...]
    mirrors: bool

    @property
    def bare(self) -> str:
        """The phrase without its article."""
        return re.sub(r"^(a|an|the) ", "", self.phrase)


def fetch(folder: Path) -> None:
    """Download the packages into `folder` by `npm pack`, where absent, and check their hashes.

    Raises SystemExit where there is no npm, it fails, or a download is not what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, version, sha256 in PACKAGES.values():
        tarball = _tarball(folder, name, version)
        if not tarball.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise SystemExit(f"{tarball} is not there, and no npm to download it with")
            command = [npm, "pack", "--silent", f"{name}@{version}"]
            if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
                raise SystemExit(f"npm cannot download {name}@{version} into {folder}")
        given = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if given != sha256:
            raise SystemExit(f"{tarball} must have sha256 {sha256}, has {given}: delete it")


def _tarball(folder: Path, name: str, version: str) -> Path:
    return folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def _member(folder: Path, package: str, path: str) -> bytes:
    name, version, _ = PACKAGES[package]
    with tarfile.open(_tarball(folder, name, version)) as tar:
        file = tar.extractfile(f"package/{path}")
        assert file is not None
        return file.read()


def code(emoji: str) -> str:
    """Code points in hexadecimal, without the variation selector: the name of an art file."""
    return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


def slug(name: str) -> str:
    """A Unicode name as Iconify and our file names write it: 'T-Rex' -> 't-rex'."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def read_things(folder: Path, listing: Path, unsaid: Collection[str] = ()) -> list[Thing]:
    """The things of `listing`, in its order; no keyword of theirs has an `unsaid` word."""
    names = json.loads(_member(folder, "names", "data-by-emoji.json"))
    emoji_of = {entry["name"]: emoji for emoji, entry in names.items()}
    keywords = json.loads(_member(folder, "keywords", "dist/emoji-en-US.json"))
    things, kind = [], ""
    for line in listing.read_text().splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
        elif line and not line.startswith("#"):
            things.append(_thing(line, kind, emoji_of, keywords, unsaid))
    return things


def _thing(
    line: str,
    kind: str,
    emoji_of: dict[str, str],
    keywords: dict[str, list[str]],
    unsaid: Collection[str],
) -> Thing:
    name, phrase, extras = (part.strip() for part in line.lstrip("!").split("|"))
    emoji = emoji_of[name]
    words = [word.replace("_", " ") for word in keywords.get(emoji, [])]
    words = [word for word in words if not set(word.split()).intersection(unsaid)]
    return Thing(
        name=name,
        emoji=emoji,
        kind=kind,
        phrase=phrase or with_article(name),
        extras=tuple(extra.strip() for extra in extras.split(",") if extra.strip()),
        keywords=tuple(w for w in words if re.fullmatch("[a-z][a-z ]+", w) and w != name.lower()),
        mirrors=not line.startswith("!"),
    )


def with_article(words: str) -> str:
    """The words behind the right indefinite article: 'apple' -> 'an apple'."""
    sounds_like_consonant = re.match(r"(uni|eu|use|ufo|one)", words.lower())
    vowel = words[0].lower() in "aeiou" and not sounds_like_consonant
    return f"{'an' if vowel else 'a'} {words}"


def read_art(folder: Path, things: list[Thing]) -> dict[tuple[str, str], Image.Image]:
    """RGBA art by (style, name), styles '3D' (256 px), 'flat' and 'noto' (512 px)."""
    art = dict(_raster_art(folder, things))
    for style in ("flat", "noto"):
        icons = json.loads(_member(folder, style, "icons.json"))
        for thing in things:
            art[style, thing.name] = _draw_icon(icons, slug(thing.name))
    return art


def _raster_art(folder: Path, things: list[Thing]) -> Iterator[tuple[tuple[str, str], Image.Image]]:
    name, version, _ = PACKAGES["3D"]
    wanted = {code(thing.emoji): thing for thing in things}
    with tarfile.open(_tarball(folder, name, version)) as tar:
        for member in tar:
            # The files pad code points to four digits ("00a9"), Unicode's lists here do not.
            parts = [part.lstrip("0") for part in Path(member.name).stem.split("-")]
            thing = wanted.get("-".join(part for part in parts if part != "fe0f"))
            file = tar.extractfile(member)
            if thing is not None and file is not None:
                yield ("3D", thing.name), Image.open(io.BytesIO(file.read())).convert("RGBA")


def _draw_icon(icons: dict[str, Any], key: str) -> Image.Image:
    icon = icons["icons"][key]
    size = [icon.get(side, icons.get(side, 16)) for side in ("width", "height")]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {size[0]} {size[1]}" width="{VECTOR_SIDE}" height="{VECTOR_SIDE}">'
        f"{icon['body']}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=VECTOR_SIDE, height=VECTOR_SIDE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")
