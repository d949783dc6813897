"""What all files of tests share, as a plugin: the fixtures, and how hypothesis works."""
from __future__ import annotations

import gc
import os

import hypothesis
import hypothesis.configuration
import pytest

from environment import MUTATIONS, cache_folder

# Never by import: each module would have a server of its own.
pytest_plugins = ["surroundings", "timescale", "restores", "image", "chart", "debian", "pod"]

PHASES = list(hypothesis.Phase)
if MUTATIONS in os.environ:  # that a test fails is enough: no simpler example is looked for
    PHASES = PHASES[:PHASES.index(hypothesis.Phase.shrink)]
# The same examples each time, however long a busy machine takes to make them.
hypothesis.settings.register_profile(
    "suite", database=None, deadline=None, phases=PHASES, derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
hypothesis.configuration.set_hypothesis_home_dir(cache_folder() / "hypothesis")

# The longest tests: begun first, they leave no process alone at the end.
FIRST = ("test_faults.py", "test_generations.py", "test_machine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first, all else as it is."""
    items.sort(key=lambda item: (FIRST.index(item.path.name) if item.path.name in FIRST
                                 else len(FIRST)))


def pytest_collection_finish() -> None:
    """Have no collection look through the tests again and again: a twenty-fifth of all work."""
    gc.collect()
    gc.freeze()
