"""The bugs that the soak is tried on can still be planted."""

import pytest

from local.template import PROJECT
from tests.soak.planted import BUGS, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_what_is_replaced_stands_there_once(bug: Bug):
    for file, old, new in bug.changes:
        assert (PROJECT / file).read_text().count(old) == 1, (file, old)
        assert new != old
