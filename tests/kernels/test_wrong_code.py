"""The programs in benchmarks/kernels/wrong_code are right by themselves: the interpreter's results are those of float64."""

import pytest

from tests.helpers.interpreter import interpreted


@pytest.mark.parametrize("case", ["equal_loop_values", "narrow_values"])
def test_a_program_that_the_compiler_spoils_is_right_under_the_interpreter(case):
    code = f"from benchmarks.kernels.wrong_code.{case} import error; print(error(device='cpu'))"
    assert float(interpreted(code)) < 1e-4
