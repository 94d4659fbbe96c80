"""Effects: what a bug does to the tests of its project, and with that whether it makes a task."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PASSING = frozenset({"PASSED", "XFAIL"})
MOST_FAILURES = 20
MOST_FAILING_SHARE = 0.25

Statuses = Mapping[str, str]


@dataclass(frozen=True)
class Effect:
    """The tests that a bug breaks, and those that it does not."""

    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]


def baseline(first: Statuses | None, second: Statuses | None) -> tuple[str, ...]:
    """Tests that pass in both runs of the sound project, without ids that swebench's parsers would cut at a blank."""
    stable = (first or {}).items() & (second or {}).items()
    return tuple(sorted(test for test, status in stable if status in PASSING and not re.search(r"\s", test)))


def effect(sound: Sequence[str], buggy: Statuses | None) -> Effect | str:
    """What a bug does to tests that passed, or in a word why it makes no task."""
    if buggy is None:
        return "not run"
    if any(test not in buggy for test in sound):
        return "collection broken"
    broken = tuple(test for test in sound if buggy[test] not in PASSING)
    if not broken:
        return "survived"
    if len(broken) > max(MOST_FAILURES, MOST_FAILING_SHARE * len(sound)):
        return "too many failures"
    return Effect(fail_to_pass=broken, pass_to_pass=tuple(test for test in sound if buggy[test] in PASSING))
