#!/usr/bin/env bash
# APScheduler: "fri#1" is every Friday, "mon-fri/2" every weekday, "jan-dec/3" every month.
#
# APScheduler 3.11.3, croniter 7.0.0 (PyPI). CronTrigger.from_crontab() takes a line of crontab. Some crons know
# more than others, and APScheduler refuses what it does not know: "5#1", "L" and "?" are a ValueError.
# One would think that "fri#1", which croniter and others take for the month's first Friday, is one
# as well, and that a step works behind a range of names as it does behind one of numbers ("1-12/3").
# But behind a name of a day or a month it reads no further, and says nothing: what was to run
# once a month runs each week, and what was to run each quarter, each month.
#
# Seen: in the half year from 2026-01-01, runs of "fri#1": croniter 6, APScheduler 26; of "jan-dec/3": 2 and 6;
# of "1-12/3": 2 and 2; "5#1" is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check APScheduler==3.11.3 croniter==7.0.0
cat > "$folder/try.py" <<'PYTHON'
from datetime import datetime, timedelta, timezone

from apscheduler.triggers.cron import CronTrigger
from croniter import croniter

begin, end = (datetime(2026, month, 1, tzinfo=timezone.utc) for month in (1, 7))


def by_croniter(line):
    moments = croniter(line, begin - timedelta(seconds=1), ret_type=datetime)
    return sum(1 for _ in iter(lambda: moments.get_next() < end, False))


def by_apscheduler(line):
    try:
        trigger = CronTrigger.from_crontab(line, timezone=timezone.utc)
    except ValueError as error:
        return str(error)
    count, now = 0, begin
    while (now := trigger.get_next_fire_time(None, now)) < end:
        count, now = count + 1, now + timedelta(seconds=1)
    return count


found = {}
for line in ("0 3 * * fri#1", "0 3 * * 5#1", "0 3 * * mon-fri/2", "0 3 1 jan-dec/3 *", "0 3 1 1-12/3 *"):
    found[line] = by_croniter(line), by_apscheduler(line)
    print(f"{line:18} croniter {found[line][0]:3}, APScheduler {found[line][1]}")
assert found == {
    "0 3 * * fri#1": (6, 26), "0 3 * * mon-fri/2": (77, 129), "0 3 1 jan-dec/3 *": (2, 6),
    "0 3 1 1-12/3 *": (2, 2),
    "0 3 * * 5#1": (6, 'Unrecognized expression "5#1" for field "day_of_week"')}
PYTHON
"$folder/env/bin/python" "$folder/try.py"
