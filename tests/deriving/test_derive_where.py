"""The language of `derive --where`: what it means, and that it is nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.deriving.where import STATISTICS, parse
from softlabels.errors import InputError

NUMBERS = st.sampled_from([*STATISTICS, "0", "1", "2.5", ".5", "1e-3"])
SUMS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("-{}".format, inner)
    ),
    max_leaves=4,
)
COMPARED = st.builds(
    "{} {} {}".format, SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), SUMS
)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: (
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=4,
)


@given(
    CONDITIONS.filter(lambda text: len(text) < 400),
    st.lists(st.floats(-3, 3, width=16), min_size=7, max_size=7),
)
def test_it_means_what_it_means_in_python(text: str, values: list[float]) -> None:
    row = dict(zip(STATISTICS, map(np.float64, values), strict=True))
    with np.errstate(all="ignore"):
        try:
            expected = bool(eval(text, {}, row))
        except ZeroDivisionError:
            return
        uncertain = "/" in text  # 0 / 0 is no number, of which no comparison holds here
    condition = parse(text)
    found = condition({name: np.asarray([value]) for name, value in row.items()})
    assert found.shape == (1,)
    assert uncertain or found.tolist() == [expected]
    assert parse(condition.text) == condition
    assert pickle.loads(pickle.dumps(condition)) == condition
    assert condition.names <= STATISTICS.keys()


def test_spaces_and_parentheses_do_not_make_another_condition() -> None:
    forms = [
        "entropy<2 and mass>.9",
        " (entropy < 2)and(mass > 0.90) ",
        "entropy < 2.0 and mass>.9",
    ]
    texts = {parse(form).text for form in forms}
    assert texts == {"entropy < 2 and mass > 0.9", "entropy < 2.0 and mass > 0.9"}


def test_of_a_number_that_is_not_known_no_comparison_holds() -> None:
    unknown = {"hard_log_prob": np.asarray([np.nan, -1.0])}
    for sign, held in [("<", True), (">", False), ("==", False), ("!=", True), ("<=", True)]:
        assert parse(f"hard_log_prob {sign} 0")(unknown).tolist() == [False, held]


WRONG = {
    "__import__('os').system('true')": "not allowed",
    "entropy.real < 1": "not allowed",
    "().__class__ == 1": "not allowed",
    "entropy[0] < 1": "not allowed",
    "abs(entropy) < 1": "not allowed",
    "[entropy] < 1": "not allowed",
    "(lambda: entropy) < 1": "not allowed",
    "(entropy := 1) < 2": "not allowed",
    "entropy < 'a'": "not allowed",
    "entropy < 1j": "not allowed",
    "entropy ** 2 < 1": "not allowed",
    "entropy // 2 < 1": "not allowed",
    "entropy is 2": "not allowed",
    "entropy in (1, 2)": "not allowed",
    "~entropy < 1": "not allowed",
    "True": "not allowed",
    "entropy < None": "not allowed",
    "f'{entropy}' < 1": "not allowed",
    "entropy if mass < 1 else tail": "not allowed",
    f"entropy < {'9' * 400}": "not allowed",
    "entropy": "a number, not a condition",
    "entropy + 1": "a number, not a condition",
    "not entropy": "stands where a comparison is needed",
    "entropy and mass < 1": "stands where a comparison is needed",
    "(entropy < 1) + 1 < 2": "stands where a number is needed",
    "(entropy < 1) < 2": "stands where a number is needed",
    "surprise < 1": 'there is no statistic "surprise"',
    "eval < 1": 'there is no statistic "eval"',
    "": "cannot be read",
    "entropy <": "cannot be read",
    "entropy < 1; mass < 1": "cannot be read",
    "entropy && mass": "cannot be read",
    "\0": "cannot be read",
    "\x1b[2J < 1": "cannot be read",
    "entropy < 2is 1": "not allowed",
    "(" * 240 + "1" + ")" * 240 + " < 2": "",
    "-" * 480 + "1 < 2": "",
    "entropy < 1 or " * 100 + "entropy < 1": "at most",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_no_condition_is_refused_in_one_line(text: str) -> None:
    try:
        condition = parse(text)
    except InputError as error:
        assert WRONG[text] in str(error)
        assert "\x1b" not in str(error)
        assert str(error).startswith("where ")
    else:
        # How deep Python's own parser goes depends on its version.
        assert WRONG[text] == ""
        assert condition({"positions": np.ones(2)}).tolist() == [True, True]
