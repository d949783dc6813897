"""What all files of tests share: the fixtures, and how hypothesis and assertions work.

Fixtures are shared as plugins, never by import: each module would have a server of its own.
"""
from __future__ import annotations

import hypothesis
import hypothesis.configuration
import pytest

from environment import cache_folder

# What is asserted in them is shown as in a test.
pytest.register_assert_rewrite("servers", "colonies", "proxies", "surroundings", "restores",
                               "readme", "timescale", "machine", "faults", "bench", "image",
                               "chart")
pytest_plugins = ["surroundings", "timescale", "restores", "image", "chart"]

hypothesis.settings.register_profile("suite", database=None, deadline=None)
hypothesis.settings.load_profile("suite")
hypothesis.configuration.set_hypothesis_home_dir(cache_folder() / "hypothesis")
