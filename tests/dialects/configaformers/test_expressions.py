import random
import warnings

import pytest

import variform as vf
from variform.dialects.configaformers.expressions import condition, evaluate, integer, names_in, substitute

NAMES = {"d": 768, "h": 12, "i": 3, "n": 8, "p": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4*d", 3072),
        ("d // h", 64),
        ("8 + 8*(i % 2)", 16),
        ("-(d - 2)", -766),
        ("2**i + 1", 9),
        ("min(d, 4*h, 50)", 48),
        ("max(i, n)", 8),
        ("0.1*i/n", 0.1 * 3 / 8),
        ("i % 2 == 1 and not i > 5 or d < 3", True),
        ("0 <= i < n - 4", True),
        ("8*(i >= 4)", 0),
        (" d ", 768),
        ("True", True),
        ("16**-p", 0.25),
        ("i > 0 and 6 // i == 2", True),
    ],
)
def test_values(text: str, value: float) -> None:
    found = evaluate(text, NAMES)
    assert found == value
    assert type(found) is type(value)


def test_it_is_what_python_makes_of_it() -> None:
    draw = random.Random(3)

    def expression(depth: int) -> str:
        if depth == 0:
            return draw.choice(["d", "h", "i", "n", "1", "2", "7"])
        a, b = expression(depth - 1), expression(depth - 1)
        return draw.choice([f"({a} + {b})", f"({a} - {b})", f"{a}*{b}", f"({a}) // ({b})", f"min({a}, {b})", f"-({a})"])

    tried = 0
    for _ in range(300):
        text = expression(draw.randint(1, 3))
        try:
            expected = eval(text, {"min": min}, NAMES)
        except ZeroDivisionError:
            with pytest.raises(vf.ConfigError, match="divides by zero"):
                evaluate(text, NAMES)
            continue
        tried += 1
        assert evaluate(text, NAMES) == expected
    assert tried > 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4*dd", "'dd' is not known in '4*dd'; did you mean 'd'?"),
        ("d/0", "divides by zero"),
        ("d % (h - 12)", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("4*", "is not an expression"),
        ("d h", "is not an expression"),
        ("", "is not an expression"),
        ("1if d else 2", "which is not evaluated"),
        ("1 if d else 2", "which is not evaluated"),
        ("__import__('os')", "which is not evaluated"),
        ("d.bit_length()", "which is not evaluated"),
        ("[d][0]", "which is not evaluated"),
        ("max(d)", "which is not evaluated"),
        ("max(*d, 1)", "which is not evaluated"),
        ("lambda: 1", "which is not evaluated"),
        ("'d'", "which is not evaluated"),
        ("d is d", "which is not evaluated"),
        ("d and h", "neither true nor false"),
        ("d**d", "exponent of 768"),
        ("(-2)**0.5", "takes a root of -2"),
        ("2**63", "grows beyond"),
        ("(2**62)*(2**62)", "grows beyond"),
        ("(10.0**60)**60", "grows beyond"),
        ("1e999", "grows beyond"),
        ("+".join(["d"] * 200), "at most 200 characters"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(vf.ConfigError) as caught:
            evaluate(text, NAMES)
    assert words in str(caught.value), str(caught.value)


def test_an_integer_is_an_integer() -> None:
    assert integer("d//2", NAMES) == 384
    with pytest.raises(vf.ConfigError, match=r"'d/2' is 384, a number with a point.*'//' divides to an integer"):
        integer("d/2", NAMES)
    with pytest.raises(vf.ConfigError, match=r"'p' is 0\.5"):
        integer("p", NAMES)
    with pytest.raises(vf.ConfigError, match=r"'i > 2' is True, and an integer is due"):
        integer("i > 2", NAMES)


def test_a_condition_is_true_or_false() -> None:
    assert condition("i == 3", NAMES) is True
    with pytest.raises(vf.ConfigError, match=r"'i % 2' is 1, and a condition is true or false; compare it"):
        condition("i % 2", NAMES)


def test_names_and_substitution() -> None:
    assert names_in("4*d + min(i, 2)") == {"d", "i"}
    assert substitute("2*d", NAMES) == 1536
    assert substitute("L_in - 2", NAMES) == "L_in - 2"
    assert substitute("L_in - d//2", NAMES) == "L_in - 768 // 2"
    assert substitute("min(d, 4*h)", NAMES) == 48
