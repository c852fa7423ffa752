import pytest

from variform.core.dims import Dim, Quotient
from variform.inspect.fit import Basis, monomials
from variform.inspect.polynomial import Expression, Least, monomial_value

HALF = Quotient(Dim.symbol("L"), 2)


def test_text_is_python_and_gives_the_value() -> None:
    cost = Expression({("B", "L", "L"): 3, ("B", "L"): -1, ("B", HALF): 2, (Least("L", 9),): 5, (): 7})
    assert str(cost) == "3*B*L**2 - B*L + 2*B*(L//2) + 5*min(L, 9) + 7"
    for sizes in ({"B": 2, "L": 5}, {"B": 3, "L": 12}):
        assert cost.value(sizes) == eval(str(cost), {"min": min, **sizes})


def test_fractions_stand_over_one_denominator() -> None:
    from fractions import Fraction

    cost = Expression({("L", "L"): Fraction(1, 2), ("L",): Fraction(1, 2)})
    assert str(cost) == "(L**2 + L)//2"
    assert cost.value({"L": 7}) == 28 == eval(str(cost), {"L": 7})


def test_expressions_add_up_and_compare() -> None:
    a, b = Expression({("B",): 2, (): 1}), Expression({("B",): -2, ("L",): 4})
    assert a + b == Expression({("L",): 4, (): 1})
    assert a - a == Expression({})
    assert not a - a
    assert a * 3 == Expression({("B",): 6, (): 3})
    assert hash(a) == hash(Expression({(): 1, ("B",): 2}))
    assert str(Expression({})) == "0"
    assert str(Expression({("B",): -1})) == "-B"


def test_a_size_that_was_not_given() -> None:
    with pytest.raises(KeyError, match="L"):
        Expression({("L",): 1}).value({"B": 1})


def filled(basis: Basis, lengths: range) -> Basis:
    for length in lengths:
        for batch in (2, 3):
            point = {"B": batch, "L": length}
            if basis.tells_more(point):
                basis.add(point)
    return basis


def test_a_polynomial_is_found_from_its_values() -> None:
    wanted = [
        Expression({("B", "L", "L"): 7, ("B",): -3, ("L", "L"): 2}),
        Expression({("B", "L"): 5}),
        Expression({("B", HALF): 5, (HALF, "L"): 1}),
    ]
    basis = filled(Basis(monomials(["B"], ["L", HALF])), range(5, 30))
    assert len(basis.points) == 10  # (L - 2*(L//2))**2 is L - 2*(L//2), so that two of the twelve say nothing new
    values = [[cost.value(point) for cost in wanted] for point in basis.points]
    for cost, found in zip(wanted, basis.solve(values), strict=True):
        assert all(cost.value(point) == found.value(point) for point in ({"B": 5, "L": n} for n in (6, 7, 100, 101)))
    assert basis.solve(values)[:2] == wanted[:2]


def test_what_the_sizes_cannot_tell_apart_stays_unused() -> None:
    basis = filled(Basis(monomials(["B"], ["L", HALF])), range(5, 31, 2))  # of odd L, L//2 is (L - 1)/2
    assert not basis.is_full
    assert len(basis.points) == 6
    (found,) = basis.solve([[point["B"] * (point["L"] // 2)] for point in basis.points])
    assert all(found.value({"B": 5, "L": n}) == 5 * (n // 2) for n in (7, 101))
    assert not any(HALF in monomial for monomial, _ in found.terms)


def test_monomials_are_linear_in_the_batch() -> None:
    found = monomials(["B"], ["L", "M"])
    assert len(found) == 12
    assert {monomial_value(m, {"B": 2, "L": 3, "M": 5}) for m in found} == {
        *(1, 3, 5, 9, 15, 25),
        *(2, 6, 10, 18, 30, 50),
    }
