"""What must be set before any test module is imported, and the order of the files."""

import os
from collections import Counter

import pytest

# Plots are drawn without a screen; set in the environment so that subprocesses inherit it.
os.environ["MPLBACKEND"] = "Agg"
# As the command line does: threads that spin while they wait crawl on a machine that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes of tests are given a width, which a console that is made once would keep.
os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: of two processes that share the files none is left with a long one."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[item.path])
