"""Captions as PixArt-α was trained on them: lower case, without links, markup and file names.

The rules are those of DeepFloyd IF (https://github.com/deep-floyd/IF), which PixArt-α took whole,
oddities included: a model trained on cleaned text wants prompts cleaned by the very same rules, in
the very same order. Σ was trained on raw text.
"""

import html
import re
import warnings
from urllib.parse import unquote_plus

from pixsigma.errors import MissingExtraError

Rules = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns and what replaces them, applied in order."""


def clean_caption(text: str) -> str:
    """One pass of the rules over a caption; training applied two, and so must the caller.

    Raises MissingExtraError where ftfy or beautifulsoup4 is not installed.
    """
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    text = _apply(_LINKS, text)
    text = _apply(_CHARACTERS, _without_markup(text))
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(_mended(text))).strip()
    return _apply(_SCRAPS, text).strip()


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    try:
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, ParserRejectedMarkup
    except ImportError as error:
        raise _missing("beautifulsoup4") from error
    with warnings.catch_warnings():
        # A caption that is nothing but a file name is a caption all the same.
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        try:
            return BeautifulSoup(text, features="html.parser").text
        except (ParserRejectedMarkup, AssertionError):
            return text  # what no parser takes is no markup


def _mended(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise _missing("ftfy") from error
    mended: str = ftfy.fix_text(text)
    return mended


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(
        f"cleaning captions needs {package}, which is not installed: "
        "run pip install 'pixsigma[clean]', or turn cleaning off"
    )


_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_SUFFIXES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_LINKS = _rules(
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
)

_CHARACTERS = _rules(
    (r"@\w+\b", ""),
    # Strokes, enclosed letters, ideographs and all between: no Chinese passes.
    ("[\u31c0-\u9fff]+", ""),
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
        "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_SUFFIXES})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

_SCRAPS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_SUFFIXES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # Nothing strips the spaces here, so a quote or comma behind one stays for the second pass.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
