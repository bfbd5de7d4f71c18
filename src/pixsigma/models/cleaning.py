"""Captions as PixArt-α was trained on them: lower case, without links, markup and file names.

The rules are those of DeepFloyd IF, which PixArt-α took whole, oddities included: a model trained
on cleaned text wants its prompts cleaned by the very same rules. Σ was trained on raw text.
"""

import html
import re
from functools import cache
from urllib.parse import unquote_plus

from pixsigma.errors import MissingExtraError

_TLDS = r"(?:com|co|ru|net|org|edu|gov|it)"
_PATH = r"[\w/-]*\b/?(?!@)"


def clean_caption(text: str) -> str:
    """One pass of the rules over a caption; training applied two, and so does the caller.

    Raises MissingExtraError where ftfy or beautifulsoup4 is not installed.
    """
    ftfy, soup = _extras()
    text = unquote_plus(str(text)).strip().lower()
    text = _apply(_LINKS, text.replace("<person>", "person"))
    text = _apply(_CHARACTERS, soup(text, features="html.parser").text)
    if len(re.findall(r"-|_", text)) > 3:
        text = re.sub(r"-|_", " ", text)
    text = html.unescape(html.unescape(ftfy(text))).strip()
    return _apply(_WEB_SCRAPS, text).strip()
