"""What must be set before any test module is imported."""

import os

# Plots are drawn without a screen; set in the environment so that subprocesses inherit it.
os.environ["MPLBACKEND"] = "Agg"
# As the command line does: threads that spin while they wait crawl on a machine that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes of tests are given a width, which a console that is made once would keep.
os.environ.pop("COLUMNS", None)
