"""The prompt language: what it reads, what it refuses and where, and laws for any text."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixsigma.errors import InputError
from pixsigma.prompts.parse import MOST_NESTED, parse
from pixsigma.prompts.resolve import Line, lines_at
from pixsigma.prompts.tree import (
    Alternating,
    Clause,
    Parts,
    Scheduled,
    Text,
    Weighted,
    escape,
    unparse,
)


def words(text: str, num_steps: int = 1) -> list[list[tuple[tuple[tuple[str, float], ...], float]]]:
    return [
        [(line.spans, line.weight) for line in lines_at(parse(text), i, num_steps)]
        for i in range(num_steps)
    ]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.5) cat", [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]),
        ("((a:2) b:0.5)", [("a", 1.0), (" b", 0.5)]),
        ("(a:1.0)(b:1)", [("ab", 1.0)]),
        (r"a \(plain\) \[one\] c:d|e \\", [(r"a (plain) [one] c:d|e \ ".strip(), 1.0)]),
        ("( x : 2 )", [("x", 2.0)]),
        ("  spaces  ", [("spaces", 1.0)]),
        ("", [("", 1.0)]),
        ("sand AND", None),
        (r"salt \AND pepper", [("salt AND pepper", 1.0)]),
        ("BRAND ANDROID AND: x", [("BRAND ANDROID AND: x", 1.0)]),
        ("(a\\:b:.5)", [("a:b", 0.5)]),
    ],
)
def test_weights_and_escapes(text: str, spans: list[tuple[str, float]] | None) -> None:
    if spans is None:
        with pytest.raises(InputError, match="AND stands between two texts"):
            parse(text)
    else:
        assert words(text) == [[(tuple(spans), 1.0)]]


def test_schedules_change_at_their_share() -> None:
    found = ["".join(w for w, _ in step[0][0]) for step in words("a [cat:dog:0.4]!", 5)]
    assert found == ["a cat!"] * 2 + ["a dog!"] * 3
    assert words("[:x:0]", 1) == [[((("x", 1.0),), 1.0)]]
    assert words("[x::1]", 2) == [[((("x", 1.0),), 1.0)]] * 2
    nested = ["".join(w for w, _ in step[0][0]) for step in words("[a:[b:c:0.75]:.5]", 4)]
    assert nested == ["a", "a", "b", "c"]


def test_alternation_takes_turns() -> None:
    found = ["".join(w for w, _ in step[0][0]) for step in words("[cat|dog|(cow:2)]", 4)]
    assert found == ["cat", "dog", "cow", "cat"]
    assert words("[cat|(cow:2)]", 2)[1] == [((("cow", 2.0),), 1.0)]


def test_clauses_have_weights() -> None:
    assert words("a cat AND a (dog:2) AND:-0.5 fog")[0] == [
        ((("a cat", 1.0),), 1.0),
        ((("a ", 1.0), ("dog", 2.0)), 1.0),
        ((("fog", 1.0),), -0.5),
    ]
    assert len(parse("a\nAND\tb")) == 2


@pytest.mark.parametrize(
    ("text", "rule", "place"),
    [
        ("a (cat", r"this \( is never closed; write \\\( for", "a ^(cat"),
        ("a (cat) b", r"\( begins \(words:1.3\)", "a (cat^) b"),
        ("a (cat:dog) b", "this does not fit", "a (cat^:dog) b"),
        ("(a:11)", "a weight is between 0 and 10", "(a:^11)"),
        ("(a:-1)", "this does not fit", "(a^:-1)"),
        ("[a]", r"\[ begins \[a:b:0.4\] or \[a\|b\]", "[a^]"),
        ("[a:b]", r"\[ begins \[a:b:0.4\]", "[a:b^]"),
        ("[a:b:1.5]", "between 0 and 1", "[a:b:^1.5]"),
        ("[a:b:c]", "this does not fit", "[a:b^:c]"),
        ("[a|b:0.5]", "this does not fit", "[a|b^:0.5]"),
        ("[a:b|c:0.5]", "this does not fit", "[a:b^|c:0.5]"),
        ("a) b", r"nothing opens this \); write \\\) for", "a^) b"),
        ("a ] b", "nothing opens this ]", "a ^] b"),
        (r"c:\dir", "a backslash stands before", r"c:^\dir"),
        ("a AND AND b", "AND stands between", "a AND ^AND b"),
        ("AND b", "AND stands between", "^AND b"),
        ("a AND:11 b", "at most 10 either way", "a AND:^11 b"),
        ("(" * (MOST_NESTED + 1), "nest at most 20 deep", "^("),
    ],
)
def test_errors_show_the_place(text: str, rule: str, place: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        parse(text)
    assert place in str(caught.value) and "\n" not in str(caught.value)


def test_and_within_brackets_is_a_word() -> None:
    assert words("(a AND b:2)") == [[((("a AND b", 2.0),), 1.0)]]


def test_long_prompts_are_read_in_one_go() -> None:
    spaces = " " * 100_000
    assert parse(f"a{spaces}b") == (Clause((Text(f"a{spaces}b"),)),)


SIGNS = st.text(alphabet=st.sampled_from(list("ab :|()[]\\.0159 \nAND")), max_size=40)


@settings(deadline=None)
@given(st.one_of(st.text(), SIGNS, st.text().map(lambda s: f"a AND {s}")))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        prompt = parse(text)
    except InputError as error:
        assert "at character" in str(error)
        return
    for i in range(3):
        for line in lines_at(prompt, i, 3):
            assert isinstance(line, Line) and line.text == line.text.strip()
    assert parse(unparse(prompt)) == prompt


@settings(deadline=None)
@given(st.one_of(st.text(), SIGNS))
def test_escaped_text_is_that_text(text: str) -> None:
    assert parse(escape(text)) == (Clause((Text(text),) if text else ()),)


def trees() -> st.SearchStrategy[Parts]:
    weights = st.floats(0, 10, allow_nan=False).map(lambda w: round(w, 6) + 0.0)
    shares = st.floats(0, 1).map(lambda w: round(w, 6) + 0.0)
    text = st.builds(Text, st.one_of(st.text(min_size=1), SIGNS.filter(bool)))

    def apart(parts: list[object]) -> bool:
        pairs = pairwise(parts)
        return not any(isinstance(a, Text) and isinstance(b, Text) for a, b in pairs)

    def row(children: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
        return st.lists(children, max_size=3).filter(apart).map(tuple)

    def nest(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        rows = row(children)
        return st.one_of(
            text,
            st.builds(Weighted, rows, weights),
            st.builds(Scheduled, rows, rows, shares),
            st.builds(Alternating, st.lists(rows, min_size=2, max_size=3).map(tuple)),
        )

    return row(st.recursive(text, nest, max_leaves=6))  # type: ignore[return-value]


@settings(deadline=None)
@given(trees())
def test_trees_come_back_from_their_text(parts: Parts) -> None:
    assert parse(unparse((Clause(parts),))) == (Clause(parts),)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a b", "(c:2.0)"]), st.floats(-10, 10)), min_size=1))
def test_clauses_come_back_from_their_text(rows: list[tuple[str, float]]) -> None:
    clauses = [Clause(parse(text)[0].parts, weight) for text, weight in rows]
    prompt = (Clause(clauses[0].parts), *clauses[1:])
    assert parse(unparse(prompt)) == prompt
