"""Tests of what the log and the errors say without being asked: who only reads these knows."""
from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import backup_executor
from colonies import COLONY_NAME, OWNER_KEY, UNREGISTERED
from proxies import COMPLETING, FORBIDDEN, PART, Proxy, Stranger, http_reply, through
from servers import (
    ASKED,
    PASSING_ON,
    Executor,
    asking,
    client_programs,
    descendants,
    error_lines,
    programs,
    run,
)
from surroundings import (
    BRISK,
    EXECUTOR_KEY,
    GENERATIONS,
    Scene,
    Site,
    becomes_true,
    one_error,
    standin,
)

SOON = 'msg="`check` finds: '  # what the executor finds when it has nothing to do


# ---- The executor's beginning and end ----------------------------------------------------------

@standin()
def test_serve_begins_by_saying_what_it_is_and_does_and_ends_with_a_line(site: Site) -> None:
    with site.serve(BACKUP_CRON="0 0 1 * * *", FULL_BACKUPS="7") as executor:
        site.polling()
        assert executor.stop() == 0
    first, *_, last = executor.lines
    database = f"127.0.0.1:{site.postgres.port}/{site.database}"
    for part in (f'msg="Colonies backup executor {backup_executor.__version__}"',
                 f'Colonies="http://127.0.0.1:{site.where.port}/api"', f'Database="{database}"',
                 f'Bucket="http://{site.s3.endpoint}/backup/{site.prefix}"',
                 'BackupCron="0 0 1 * * *"', "VerifyCron=none", 'Keeps="7 backups"'):
        assert part in first, (part, first)
    assert "level=info" in last and "msg=Ended By=SIGTERM" in last


@standin()
def test_serve_warns_of_what_check_would_fail_at(site: Site) -> None:
    site.standin.longest = 0.5
    with site.serve(BACKUP_CRON="nightly", BACKUP_PATH=str(site.folder), FULL_BACKUP="3",
                    VERIFY_DB_HOST="127.0.0.1", VERIFY_DB_PORT="1") as executor:
        executor.wait_for(f"level=warning {SOON}settings: FULL_BACKUP is no setting.*FULL_BACKUPS")
        executor.wait_for(f"level=warning {SOON}crons: BACKUP_CRON, 'nightly'")
        executor.wait_for(f"level=warning {SOON}verify: .*Connection refused")
        executor.wait_for("`check` has ended. Status=1")
        site.succeeds(site.submit())
        assert executor.stop() == 0
        assert not re.search(f"{SOON}(colonies|database|bucket|jobs)", executor.log)
    assert executor.log.count("FULL_BACKUP is") == 1
    assert [name for name in site.objects() if name.startswith("check_")] == []


@standin()
def test_what_serve_looks_at_delays_no_process(site: Site, tmp_path: Path) -> None:
    """Here that never ends."""
    site.standin.longest = 0.5
    path = programs(tmp_path / "hanging", psql=f"""{ASKED}
case "$asked" in *{asking('shared_preload_libraries')}*) : > '{tmp_path}/begun'; exec sleep 600 ;;
esac
{PASSING_ON.format(client_programs()[0])}""")
    with site.serve(PATH=path) as executor:
        becomes_true((tmp_path / "begun").exists)
        site.succeeds(site.submit())
        assert descendants(executor.pid)
        assert executor.stop() == 0
        assert "finds" not in executor.log


@standin()
def test_what_serve_looks_at_leaves_no_object_when_it_is_stopped(
        site: Site, meddler: Proxy) -> None:
    site.standin.longest = 0.5
    meddler.delay(rb"^GET \S*check_", 60)
    meddler.refuse(rb"^DELETE \S*check_", 0.1)  # so it takes longer than to leave the colony
    with Executor(site.environ() | through(meddler, 0.2)) as executor:
        meddler.wait_seen(rb"^GET \S*check_")
        assert [*site.objects()] and executor.stop() == 0
        assert [*site.objects()] == []


# ---- A process's end, and the executor's own ---------------------------------------------------

@standin(None)
def test_closed_process_says_what_it_ended_as(site: Site) -> None:
    site.standin.longest = 0.5
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        good, bad = site.submit(), site.submit("unknown")
        for process, end in ((good, "successful"), (bad, "failed")):
            executor.wait_for(f'msg="Closed process" ProcessId={process} End={end}$')
        with site.locked():
            for end in ("cancelled", "failed"):
                process = site.submit(maxexectime=-1 if end == "cancelled" else site.limit,
                                      maxretries=0)
                site.waiting()
                if end == "cancelled":
                    site.client.cancel(process)
                site.expire(process)
                executor.wait_for(f'msg="Closed process" ProcessId={process} End={end}$')
                site.nobody_waits()
        executor.wait_for("level=warning .*Stopping what was cancelled.*Why=.it was cancelled")


@standin(*GENERATIONS)
@pytest.mark.parametrize("how", ["remove", "reject"])
def test_that_the_owner_put_it_out_and_that_it_came_back_are_warnings(
        site: Site, how: str) -> None:
    site.standin.longest = 0.5
    who = {"executorname": site.name}
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.polling()
        who["executorid"] = site.standin.executors[site.name]["executorid"]
        verb = "delete" if how == "remove" and site.standin.generation == 2023 else how
        site.client.call(f"{verb}executormsg", OWNER_KEY, **who)
        executor.wait_for("level=warning .*The colony's owner removed or rejected this executor")
        executor.wait_for("level=warning .*The colony has this executor back")
        site.succeeds(site.submit())
        assert "level=error" not in executor.log


@standin()
def test_without_the_owners_key_its_return_is_a_warning_too(site: Site) -> None:
    site.standin.longest = 0.5
    site.admit()
    with site.serve(BACKUP_TIME_SCALE=BRISK, COLONIES_COLONY_PRVKEY="",
                    COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        site.polling()
        assert "has this executor back" not in executor.log
        site.expel()
        executor.wait_for("level=warning .*removed or rejected this executor")
        executor.wait_for("level=error .*approve it")
        assert site.standin.executors[site.name]["state"] == UNREGISTERED
        site.admit()
        executor.wait_for("level=warning .*The colony has this executor back")


# ---- What goes away ----------------------------------------------------------------------------

@pytest.mark.parametrize("resume", [False, True])
def test_each_object_that_retention_removes_is_a_line(
        scene: Scene, meddler: Proxy, resume: bool) -> None:
    scene.settings |= {"FULL_BACKUPS": "1", "BACKUP_ROLES": "no-passwords"}
    first = scene.backup()["filename"]
    command = ["backup"]
    if resume:
        meddler.reply(COMPLETING, FORBIDDEN, 9)
        scene.failure(**through(meddler, 0.001))
        command.append("--resume")
    said = scene.run(*command).stderr
    gone = [first, first.replace(".bak", ".roles.sql")]
    assert not set(gone) & set(scene.objects()) and len(scene.objects()) == 2
    for name in gone:
        removed = rf"level=info .*[Rr]emoved.* Key={scene.prefix}/{name}"
        assert len(re.findall(removed, said)) == 1, said


# ---- A signal during an upload -----------------------------------------------------------------

@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_stops_an_upload_is_told_which_file_stays_and_what_finishes_it(
        big: Scene, meddler: Proxy, sig: signal.Signals) -> None:
    meddler.cut(PART, 1000, times=10000)
    with big.start(**through(meddler)) as executor:
        meddler.wait_seen(PART, 2)
        assert executor.stop(sig) == 128 + sig
    [name, _] = big.files()
    [line] = [line for line in executor.lines if "stays" in line]
    assert f"Filepath={big.folder}/{name}" in line and "`backup --resume`" in line
    assert "level=warning" in line and not error_lines(executor.log)
    assert f"stopped by {sig.name}" in executor.lines[-1]
    big.run("backup", "--resume")
    assert [*big.objects()] == [name] and not big.files()


# ---- Messages: the cause, and what to look at --------------------------------------------------

def test_a_folder_that_is_not_there_is_named_as_what_it_is(scene: Scene) -> None:
    for command in (["backup"], ["verify"], ["restore", "latest", "--database", "new"]):
        said = one_error(scene.run(*command, status=1, BACKUP_PATH="/missing/folder"))
        assert re.search("msg=./missing/folder: No such file or directory .BACKUP_PATH: is it "
                         f"mounted, and may user {os.getuid()} write there", said), said
    said = scene.run("check", status=1, BACKUP_PATH="/missing/folder").stdout
    assert re.search("FAIL +staging volume: /missing/folder: .*BACKUP_PATH", said)


def test_a_program_that_is_not_there_is_named_with_what_brings_it(
        scene: Scene, tmp_path: Path) -> None:
    for command in (["backup"], ["restore", "latest", "--database", "new"]):
        said = one_error(scene.run(*command, status=1, PATH=str(tmp_path)))
        assert re.search(r"(pg_dump|psql) cannot be started: No such file or directory: "
                         r"PostgreSQL's client programs.* have to be on PATH", said), said


@pytest.mark.parametrize(("options", "says"), [
    (["--database", "x" * 64], "--database 'x+': it takes a name of 1 to 63 bytes"),
    (["--database", "postgres"], "--database 'postgres': .* made from postgres"),
    (["--database", "new", "--jobs", "0"], "--jobs 0: it takes 1 or more")])
def test_each_impossible_option_is_named_by_itself(
        scene: Scene, options: list[str], says: str) -> None:
    ran = scene.run("restore", "latest", *options, status=2)
    [said] = error_lines(ran.stderr)
    assert re.search(says, said), said


def test_what_a_program_says_is_told_in_a_locale_of_another_encoding(
        scene: Scene, tmp_path: Path) -> None:
    program = tmp_path / "pg_dump"
    program.write_text("#!/bin/sh\necho 'Zürich is away' >&2; exit 1\n")
    program.chmod(0o755)
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = scene.failure(PATH=f"{tmp_path}:/usr/bin:/bin", **ascii_alone)
    assert "pg_dump: exit status 1: Zürich is away" in said


@standin()
def test_a_server_that_is_not_there_is_named_with_the_settings_that_say_where(
        site: Site, tmp_path: Path) -> None:
    refused = run(site.environ(1), "check").stdout
    unknown = run(site.environ(COLONIES_SERVER_HOST="colonies.invalid"), "check").stdout
    tls = run(site.environ(COLONIES_TLS="true"), "check").stdout
    for said, says in ((refused, "Connection refused .see COLONIES_SERVER_HOST, COLONIES_SERVER_P"),
                       (unknown, r"\(see COLONIES_SERVER_HOST, COLONIES_SERVER_PORT\)"),
                       (tls, r"\(see COLONIES_TLS, COLONIES_CA_FILE\)")):
        assert re.search(f"FAIL +colonies: .*{says}", said), said
        assert "HTTP 0" not in said and "urlopen" not in said


@pytest.mark.parametrize(("settings", "says"), [
    ({"AWS_S3_ENDPOINT": "127.0.0.1:1"}, "AWS_S3_ENDPOINT: is it there"),
    ({"AWS_S3_ACCESS_KEY": "nobody"}, r"\(AWS_S3_ACCESS_KEY"),
    ({"AWS_S3_SECRET_ACCESS_KEY": "wrong-wrong"}, r"\(AWS_S3_SECRET_ACCESS_KEY\)"),
    ({"AWS_S3_ACCESS_KEY": "", "AWS_S3_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
     r"\(AWS_S3_ACCESS_KEY, AWS_S3_SECRET_ACCESS_KEY, or this machine's role\)")],
    ids=["refused", "key", "secret", "none"])
def test_what_s3_refuses_is_named_with_the_settings_to_look_at(
        scene: Scene, settings: dict[str, str], says: str) -> None:
    said = scene.run("check", status=1, **settings, BACKUP_TIME_SCALE="0.01").stdout
    assert re.search(f"FAIL +bucket: .*{says}", said), said


@pytest.mark.parametrize(("how", "says"), [
    ("__version__ = '1.35.99'", r"boto3 1\.35\.99 is too old: install boto3 1\.36 or later for /"),
    ("import nothing_like_it", r"No module named 'nothing_like_it': install boto3 1\.36 or later")])
def test_a_boto3_that_is_too_old_or_missing_is_named_with_the_version_that_is_needed(
        scene: Scene, tmp_path: Path, how: str, says: str) -> None:
    (tmp_path / "boto3.py").write_text(how)
    said = one_error(scene.run("list", status=1, PYTHONPATH=str(tmp_path)))
    assert re.search(says, said), said


# ---- A private authority -----------------------------------------------------------------------

@contextlib.contextmanager
def behind(folder: Path, lacking: str) -> Iterator[tuple[Stranger, str]]:
    """A server behind a private authority whose certificates lack something; its file."""
    now, day = datetime.now(timezone.utc), timedelta(days=1)
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    called = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
              for name in ("authority", "server")}
    made: list[bytes] = []
    for name, key in (("authority", authority), ("server", own)):
        builder = x509.CertificateBuilder().issuer_name(called["authority"]).subject_name(
            called[name]).public_key(key.public_key()).serial_number(1 + len(made))
        builder = builder.not_valid_before(now - day).not_valid_after(now + day)
        extensions: list[tuple[str, x509.ExtensionType, bool]] = [
            ("", x509.BasicConstraints(True, None), lacking != "a critical basicConstraints"),
            ("keyUsage", x509.KeyUsage(
                False, False, False, False, False, True, True, False, False), True),
            ("subjectKeyIdentifier",
             x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)]
        if name == "server":
            extensions = [
                ("", x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False),
                ("authorityKeyIdentifier", x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    authority.public_key()), False)]
        for what, extension, critical in extensions:
            if what != lacking:
                builder = builder.add_extension(extension, critical)
        made.append(builder.sign(authority, hashes.SHA256()).public_bytes(
            serialization.Encoding.PEM))
    (folder / "authority.pem").write_bytes(made[0])
    (folder / "server.pem").write_bytes(made[1] + own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with Stranger(http_reply("418 I'm a teapot", b""), context) as server:
        yield server, str(folder / "authority.pem")


# What Python does from 3.13 on, for an older one.
AS_LATER = """import ssl
made = ssl.create_default_context
def create_default_context(*arguments, **more):
    context = made(*arguments, **more)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
ssl.create_default_context = create_default_context
"""


@pytest.mark.parametrize("lacking", [
    "nothing", "keyUsage", "subjectKeyIdentifier", "authorityKeyIdentifier",
    "a critical basicConstraints", "trust"])
def test_an_authority_that_only_s3s_client_takes_is_told_from_one_that_nobody_trusts(
        scene: Scene, tmp_path: Path, lacking: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(AS_LATER)
    with behind(tmp_path, lacking) as (server, trusted):
        if lacking == "trust":
            with behind(tmp_path, ""):  # which overwrites the file
                pass
        said = scene.run(
            "check", status=1, PYTHONPATH=str(tmp_path), COLONIES_SERVER_HOST="127.0.0.1",
            COLONIES_SERVER_PORT=str(server.port), COLONIES_COLONY_NAME=COLONY_NAME,
            COLONIES_COLONY_PRVKEY=OWNER_KEY, AWS_S3_ENDPOINT=f"https://127.0.0.1:{server.port}",
            COLONIES_CA_FILE=trusted, AWS_S3_CA_FILE=trusted, BACKUP_TIME_SCALE="0.01").stdout
    [colonies] = re.findall("(?m)^FAIL +colonies: (.*)", said)
    [bucket] = re.findall("(?m)^FAIL +bucket: (.*)", said)
    strict = "the authority is known, but such a certificate is refused from Python 3.13 on"
    assert (strict in colonies) == (lacking not in ("nothing", "trust")), colonies
    if strict in colonies:
        assert colonies.endswith("see `serve --help`)")
        assert "else Python 3.13 refuses it" in backup_executor.HELP["serve"]
    assert ("HTTP 418" in colonies) == (lacking == "nothing"), colonies
    assert ("(418)" in bucket) == (lacking != "trust"), bucket
    assert lacking != "trust" or "(see COLONIES_TLS, COLONIES_CA_FILE)" in colonies
