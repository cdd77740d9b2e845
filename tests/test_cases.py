"""A test of many cases runs them all, and names each one that failed."""

from __future__ import annotations

import pytest

from tests.cases import every_case


def test_all_cases_run_and_each_that_failed_is_named() -> None:
    ran = []
    with pytest.raises(AssertionError) as caught:
        with every_case() as case:
            for number in range(5):
                with case(f"number {number}"):
                    ran.append(number)
                    assert number != 1
                    if number == 2:
                        raise KeyError(number)
                    if number == 3:
                        with pytest.raises(ValueError):
                            pass
    assert ran == [0, 1, 2, 3, 4]
    title, *lines = str(caught.value).splitlines()
    assert title == "3 of 5 cases failed:"
    assert [line.split(":")[:2] for line in lines] == [
        ["  number 1", " AssertionError"],
        ["  number 2", " KeyError"],
        ["  number 3", " Failed"],
    ]
    assert isinstance(caught.value.__cause__, AssertionError)


def test_cases_that_are_all_right_pass() -> None:
    with every_case() as case:
        with case("right"):
            assert True


def test_no_case_at_all_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="there was no case"):
        with every_case():
            pass


def test_the_deadline_of_the_test_ends_it_and_says_in_which_case() -> None:
    ran = []
    with pytest.raises(pytest.fail.Exception) as caught:
        with every_case() as case:
            for number in range(2):
                with case(f"number {number}"):
                    ran.append(number)
                    pytest.fail("Timeout (>1.0s) from pytest-timeout.")
    assert ran == [0]
    assert caught.value.__notes__ == ["in the case number 0"]
