r"""Text to a tree.

    prompt  = clause (" AND " clause | " AND:WEIGHT " clause)*
    clause  = (words | weighted | scheduled | alternating)*
    weighted    = "(" clause ":WEIGHT)"
    scheduled   = "[" clause ":" clause ":SHARE]"
    alternating = "[" clause ("|" clause)+ "]"

A backslash before ( ) [ ] | : \ or AND makes it a plain word. Outside of brackets `:` and `|` are
plain anyway.
"""

import re
from typing import NoReturn

from pixsigma.errors import InputError
from pixsigma.prompts.tree import (
    Alternating,
    Clause,
    Part,
    Parts,
    Prompt,
    Scheduled,
    Text,
    Weighted,
)

MOST_NESTED = 20
"""How deep brackets may stand in one another."""

LARGEST_WEIGHT = 10.0

_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_AND = re.compile(rf"(?:\s+|(?<!\S))AND(?::(?P<weight>[+-]?(?:{_NUMBER})))?(?:\s+|$)", re.ASCII)
_WEIGHT_END = re.compile(rf":\s*(?P<number>{_NUMBER})\s*\)", re.ASCII)
_SHARE_END = re.compile(rf":\s*(?P<number>{_NUMBER})\s*\]", re.ASCII)
_RUN = re.compile(r"\s+|[|:]|[^\s()\[\]|:\\]+")  # a run at once: AND is looked for at each
_ESCAPED = re.compile(r"\\(AND(?![^\s:|()\[\]\\])|[\\()\[\]|:])")


def parse(text: str) -> Prompt:
    """The tree of a prompt; raises InputError that shows the place with a caret."""
    return _Parser(text).prompt()


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def prompt(self) -> Prompt:
        clauses: list[Clause] = []
        weight = 1.0
        while True:
            parts = self.parts(stops="")
            found = self.separator()
            if not parts and (found or clauses):
                self.refuse("AND stands between two texts, and here is none", self.at)
            clauses.append(Clause(parts, weight))
            if found is None:
                return tuple(clauses)
            weight = float(found["weight"] or 1)
            if abs(weight) > LARGEST_WEIGHT:
                most = f"a weight of AND is at most {LARGEST_WEIGHT:g} either way"
                self.refuse(most, found.start("weight"))
            self.at = found.end()

    def separator(self) -> re.Match[str] | None:
        """The AND that begins here with the spaces before it, on the outermost level only."""
        return _AND.match(self.text, self.at) if self.depth == 0 else None

    def parts(self, stops: str) -> Parts:
        """Everything up to one of the characters `stops`, an AND or the end."""
        found: list[Part] = []
        words = ""
        while self.at < len(self.text):
            here = self.text[self.at]
            if here in stops or self.separator():
                break
            if here in "([":
                found += [Text(words)] if words else []
                words = ""
                found.append(self.weighted() if here == "(" else self.bracketed())
            else:
                words += self.word(here)
        return (*found, Text(words)) if words else tuple(found)

    def word(self, here: str) -> str:
        """A run of plain characters or of spaces, or one escaped sign."""
        if here in ")]":
            self.refuse(f"nothing opens this {here}; write \\{here} for a plain one", self.at)
        if plain := _RUN.match(self.text, self.at):
            self.at = plain.end()
            return plain[0]
        escaped = _ESCAPED.match(self.text, self.at)
        if escaped is None:
            self.refuse("a backslash stands before ( ) [ ] | : \\ or AND", self.at)
        self.at = escaped.end()
        return escaped[1]

    def weighted(self) -> Weighted:
        begin = self.enter()
        parts = self.parts(stops=":)]")
        end = _WEIGHT_END.match(self.text, self.at)
        if end is None:
            self.refuse_end(begin, "(words:1.3)", ")")
        weight = float(end["number"])
        if weight > LARGEST_WEIGHT:
            self.refuse(f"a weight is between 0 and {LARGEST_WEIGHT:g}", self.at + 1)
        self.leave(end.end())
        return Weighted(parts, weight)

    def bracketed(self) -> Scheduled | Alternating:
        begin = self.enter()
        options = [self.parts(stops="|:)]")]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            options.append(self.parts(stops="|:)]"))
        if len(options) > 1:
            if self.text[self.at : self.at + 1] != "]":
                self.refuse_end(begin, "[a|b]", "]")
            self.leave(self.at + 1)
            return Alternating(tuple(options))
        if self.text[self.at : self.at + 1] != ":":
            self.refuse_end(begin, "[a:b:0.4] or [a|b]", "]")
        self.at += 1
        after = self.parts(stops="|:)]")
        end = _SHARE_END.match(self.text, self.at)
        if end is None:
            self.refuse_end(begin, "[a:b:0.4]", "]")
        share = float(end["number"])
        if share > 1:
            self.refuse("the change is at a share of the steps, between 0 and 1", self.at + 1)
        self.leave(end.end())
        return Scheduled(options[0], after, share)

    def enter(self) -> int:
        """Step over an opening bracket; its place."""
        begin = self.at
        if self.depth == MOST_NESTED:
            self.refuse(f"brackets nest at most {MOST_NESTED} deep", begin)
        self.depth += 1
        self.at += 1
        return begin

    def leave(self, at: int) -> None:
        self.depth -= 1
        self.at = at

    def refuse_end(self, begin: int, form: str, close: str) -> NoReturn:
        opened = self.text[begin]
        if self.at >= len(self.text):
            self.refuse(f"this {opened} is never closed; write \\{opened} for a plain one", begin)
        hint = f"write \\{self.text[self.at]} for a plain {self.text[self.at]}"
        if self.text[self.at] == close:
            hint = f"write \\{opened} and \\{close} for plain brackets"
        self.refuse(f"{opened} begins {form} and this does not fit; {hint}", self.at)

    def refuse(self, rule: str, at: int) -> NoReturn:
        """Raise InputError with the rule and the place."""
        before, behind = self.text[max(0, at - 24) : at], self.text[at : at + 12]
        more = "…" if at + 12 < len(self.text) else ""
        shown = " ".join(f"{'…' if at > 24 else ''}{before}^{behind}{more}".split())
        raise InputError(f"{rule}, at character {at + 1} of the prompt (^): {shown}")
