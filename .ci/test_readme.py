"""Tests of the documents: that what they name is there, and that they can be read in one sitting.

What they quote is run by the tests of what it is about.
"""
from __future__ import annotations

import re
from pathlib import Path

import pytest

import backup_executor
from environment import PROJECT
from readme import CHART_README, README

SECRETS = {each.name for each in backup_executor.SETTINGS if each.kind in backup_executor.SECRET}
BOTH = pytest.mark.parametrize("document", [README, CHART_README], ids=["project", "chart"])


def prose(document: Path) -> str:
    """The document without its blocks of code, whose comments would look like headings."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", document.read_text("utf-8"))


def anchors(document: Path) -> set[str]:
    """What GitHub makes of its headings."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall("(?m)^#+ (.*)", prose(document))}


@pytest.mark.parametrize(("document", "most"), [(README, 400), (CHART_README, 350)],
                         ids=["project", "chart"])
def test_a_document_is_read_in_one_sitting(document: Path, most: int) -> None:
    lines = document.read_text("utf-8").splitlines()
    assert len(lines) <= most
    assert [line for line in lines if len(line) > 100] == []


@BOTH
def test_each_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", prose(document))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = (document.parent / path).resolve() if path else document
            assert target.is_file() and target.is_relative_to(PROJECT), link
            assert not anchor or anchor in anchors(target), link


@BOTH
def test_each_setting_that_a_document_names_is_there(document: Path) -> None:
    kinds = "COLONIES|BACKUP|VERIFY|CHECK|DB|AWS_S3|FULL|KEEP|LOG"
    named = set(re.findall(rf"\b(?:{kinds})_[A-Z][A-Z_]*\b", document.read_text("utf-8")))
    assert named <= {each.name for each in backup_executor.SETTINGS} | {
        f"{name}_FILE" for name in SECRETS}


def test_the_settings_in_readmes_table_are_the_codes() -> None:
    rows = re.findall(r"(?m)^\| *`([A-Z][A-Z0-9_]+)`([^|]*)\|([^|]*)\|(.*)\|$",
                      README.read_text("utf-8"))
    codes = {each.name: ([each.also] if each.also else [], each.name in SECRETS, each.default,
                         each.meaning) for each in backup_executor.SETTINGS}
    found = {name: (re.findall("[A-Z][A-Z0-9_]+", rest), "*" in rest, default.strip(" `"),
                    meaning.strip()) for name, rest, default, meaning in rows}
    assert len(rows) == len(found) > 5
    assert found == {name: codes.get(name) for name in found}


def test_readmes_check_looks_at_as_many_settings_as_there_are() -> None:
    told = re.findall("ok    settings: ([0-9]+) looked at", README.read_text("utf-8"))
    assert told == [str(len(backup_executor.SETTINGS))]
