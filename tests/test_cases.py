"""Decorator that turns a rule for many cases into one test."""

import pytest
from cases import for_each


def test_every_failing_case_is_named():
    @for_each([1, 2, 3, 4])
    def check(number: int, divisor: int) -> None:
        assert number % divisor, f'{number} is even'

    with pytest.raises(AssertionError) as caught:
        check(divisor=2)
    assert str(caught.value).splitlines()[0] == '2 of 4 cases fail'
    assert '2: AssertionError: 2 is even' in str(caught.value)
    assert '4: AssertionError: 4 is even' in str(caught.value)
    check(divisor=5)


def test_no_case_is_a_failure():
    @for_each(lambda: [])
    def check(case: str) -> None:
        raise AssertionError(case)

    with pytest.raises(AssertionError, match='there is no case'):
        check()
