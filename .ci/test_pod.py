"""Tests of the chart's pod, whole, which the command `image` runs: their names begin with image_.

Podman runs it. What had to be translated for that, and what is left out, is told by pod.Pod.
"""
from __future__ import annotations

import os
import signal
import urllib.request

from colonies import FAILED, UNREGISTERED
from pod import Installed
from servers import PATIENCE
from surroundings import becomes_true

EXECUTOR = ("python3", "/app/backup_executor.py")


def image_pod_backs_its_database_up_and_replaces_it_by_what_was_restored(
        installed: Installed) -> None:
    """By the commands of the chart's notes, in the sidecar, while that goes on."""
    pod, executor = installed.pod, installed.pod.pid("backup")
    installed.polling()
    result = installed.succeeds(installed.submit())
    installed.sql("DELETE FROM t WHERE id > 100")
    ran = pod.exec("backup", *EXECUTOR, "restore", "latest", "--database", "sensors", "--replace")
    assert ran.returncode == 0, ran.stderr
    count = "SELECT count(*) FROM t"
    assert installed.sql(count) == "500" and result["filename"] in ran.stderr
    old = installed.postgres.sql(
        "SELECT datname FROM pg_database WHERE datname LIKE 'before_restore_%'")
    assert installed.postgres.sql(count, old) == "100"
    installed.succeeds(installed.submit())
    metrics = f"http://127.0.0.1:{installed.metrics}/metrics"
    with urllib.request.urlopen(metrics, timeout=PATIENCE) as answer:
        assert b"\ncolonies_backup_info{" in answer.read()
    assert pod.pid("backup") == executor
    listed = pod.exec("backup", *EXECUTOR, "list").stdout
    assert listed.count("\nbackup_") == 2 == listed.count(" proven "), listed


def image_pod_starts_a_killed_sidecar_again_which_makes_the_backup_it_was_at(
        installed: Installed) -> None:
    database = installed.pod.pid("postgres")
    with installed.locked():
        process = installed.submit()
        killed = installed.waiting()
        installed.pod.kill("backup")
        installed.waiting(but=killed)
    installed.succeeds(process)
    assert installed.files() == [] and installed.pod.pid("postgres") == database


def image_pod_starts_a_killed_database_again_and_its_executor_goes_on(
        installed: Installed) -> None:
    """Amid a dump, which fails, and says why. Its successor is process 1, as it was itself."""
    executor = installed.pod.pid("backup")
    with installed.locked():
        process = installed.submit()
        installed.waiting()
        installed.pod.kill("postgres")
    [error] = installed.client.wait(process, FAILED)["errors"]
    assert "server closed the connection" in error
    installed.pod.ready()
    installed.succeeds(installed.submit())
    assert installed.pod.pid("backup") == executor


def image_pod_takes_a_new_key_for_s3_out_of_its_secret_without_a_restart(
        installed: Installed) -> None:
    pod, s3 = installed.pod, installed.s3
    pids = [pod.pid(each) for each in ("postgres", "backup")]
    s3.kill()
    s3.access_key, s3.secret_key = "another", "another-secret"
    s3.start()
    installed.s3_client = s3.client()
    [error] = installed.client.wait(installed.submit(), FAILED)["errors"]
    assert "InvalidAccessKeyId" in error or "403" in error
    rendered = installed.render()
    assert rendered.workload == pod.rendered.workload  # so an upgrade starts nothing again
    pod.project(rendered)
    installed.succeeds(installed.submit())
    assert pids == [pod.pid(each) for each in ("postgres", "backup")]


def image_pod_shows_by_its_liveness_probe_that_its_sidecar_hangs(installed: Installed) -> None:
    pod, pid = installed.pod, installed.pod.pid("backup")
    becomes_true(lambda: pod.probe("backup", "liveness"))
    os.kill(pid, signal.SIGSTOP)
    os.utime(pod.folder / "backup-tmp/alive", (0, 0))
    assert not pod.probe("backup", "liveness") and pod.probe("postgres", "readiness")
    os.kill(pid, signal.SIGCONT)
    becomes_true(lambda: pod.probe("backup", "liveness"))


def image_pod_that_was_deleted_comes_back_with_all_that_it_had(installed: Installed) -> None:
    pod = installed.pod
    before = installed.postgres.fingerprint("sensors")
    pod.stop()
    standin = installed.standin
    assert all(each["state"] == UNREGISTERED for each in standin.executors.values())
    process = installed.submit()
    pod.start()
    installed.succeeds(process)
    assert installed.postgres.fingerprint("sensors") == before
    assert "database system was shut down at" in pod.logs("postgres")
