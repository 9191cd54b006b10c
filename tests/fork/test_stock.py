"""The tests of the patches on the stock release: each regression test fails there, and all others pass."""

from composer import record, tree
from composer.adopt import outcomes


def test_regression_rows_fail_on_the_stock_release_and_only_they(stock):
    fork = record.load()
    changing = [patch for patch in fork.patches if tree.replaces(record.lock(), patch)]  # the others only add files
    rows, others = outcomes(fork.base.version, stock, *(patch.tests for patch in changing))
    fixed = sorted(name for name, outcome in rows.items() if outcome != {"failure"})
    assert rows and not fixed, f"upstream gets these right now; see whether the fork's definition can go: {fixed}"
    broken = sorted(name for name, outcome in others.items() if outcome)
    assert others and not broken, f"these fail on the stock release, so mark them as regression tests: {broken}"
