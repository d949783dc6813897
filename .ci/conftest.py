"""Has the tests here share their fixtures. The front and the chart's tests ask for those, too."""
from __future__ import annotations

import pytest

# What is asserted in them is shown as in a test.
pytest.register_assert_rewrite("servers", "colonies", "proxies", "surroundings", "restores",
                               "readme", "timescale", "machine", "faults", "bench", "image",
                               "chart", "debian", "pod")


def pytest_configure(config: pytest.Config) -> None:
    """Load them, also where pytest comes to this folder late."""
    config.pluginmanager.import_plugin("common")
