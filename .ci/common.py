"""What all files of tests share, as a plugin: the fixtures, and how hypothesis works."""
from __future__ import annotations

import hypothesis
import hypothesis.configuration

from environment import cache_folder

# Never by import: each module would have a server of its own.
pytest_plugins = ["surroundings", "timescale", "restores", "image", "chart"]

hypothesis.settings.register_profile("suite", database=None, deadline=None)
hypothesis.settings.load_profile("suite")
hypothesis.configuration.set_hypothesis_home_dir(cache_folder() / "hypothesis")
