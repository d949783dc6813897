# The backup executor, with all that a backup and a restore by hand need. It runs as any user, on a
# read-only root file system; only /tmp and the staging volume /backups have to be writable.
#
#     docker build -t backup-executor .
#
# PG_MAJOR is that of the database server, or later: pg_dump refuses a server that is newer than
# itself. CI builds 17 on amd64, on a base that debootstrap makes. Other majors come from PostgreSQL's
# own apt repository; they and arm64 are unbuilt.
#
# For two platforms, with what it was made of, and an SBOM; or that of any image:
#
#     docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=true --push \
#         --build-arg SOURCE=https://example.org/its-source --build-arg VERSION=1.0.0 \
#         --build-arg REVISION="$(git rev-parse HEAD)" -t REGISTRY/backup-executor:1.0.0 .
#     syft REGISTRY/backup-executor:1.0.0 -o spdx-json
#
# Pinned are what all starts from, by the digest that Docker Hub had on 2026-10-08 for each platform,
# and boto3 with all that it requires, by the hashes in .requirements.txt. Newer ones:
#
#     docker buildx imagetools inspect debian:trixie-slim
#     echo boto3==1.44.5 | uv pip compile -U --generate-hashes --universal -o .requirements.txt -
ARG BASE=debian:trixie-slim@sha256:a29215f6a35e51e22adffa17f89e9d2ef06214e64a2bad10d765c46aea49f11f

FROM $BASE AS venv
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip
COPY .requirements.txt /
# Without dependencies pip adds nothing to what is pinned, and `check` says what is missing. The
# examples are documentation; the .pyc files stay, nobody could write them later.
RUN python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --only-binary=:all: \
        --require-hashes -r /.requirements.txt \
    && pip --python /opt/venv/bin/python check \
    && rm -r /opt/venv/lib/python3*/site-packages/boto3/examples \
    && find /opt/venv -name 'examples-1.json*' -delete

FROM $BASE
ARG PG_MAJOR=17
ARG DEBIAN_FRONTEND=noninteractive
LABEL org.opencontainers.image.title="Colonies Backup Executor" \
    org.opencontainers.image.description="Backs a PostgreSQL or TimescaleDB database up to S3"
# PostgreSQL's own folder comes before /usr/bin, whose pg_dump is a Perl script that looks for the
# programs. A user without an entry in passwd has no home and no shell but these. One arena of malloc,
# and no more of it than is asked for, are enough for a few threads, and save memory.
ENV PATH=/opt/venv/bin:/usr/lib/postgresql/$PG_MAJOR/bin:$PATH \
    HOME=/tmp SHELL=/bin/bash LANG=C.UTF-8 \
    MALLOC_ARENA_MAX=1 MALLOC_TOP_PAD_=0
# Debian's versions are not pinned: it keeps only the newest of a release, with its security fixes,
# which the base has to get, too.
# A login shell, as in tmux, takes PATH from /etc/profile. Nothing here needs a setuid program, nor
# a folder for everybody beside /tmp and /backups (a volume in earnest).
# hadolint ignore=DL3008
RUN apt-get update && apt-get upgrade -y \
    && apt-get install -y --no-install-recommends ca-certificates postgresql-client-common \
    && if [ "$PG_MAJOR" != 17 ]; then \
        /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y; \
    fi \
    && apt-get install -y --no-install-recommends \
        age bash minio-client "postgresql-client-$PG_MAJOR" python3 tmux tzdata \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/* \
    && ln -s /usr/bin/minio-client /usr/local/bin/mc \
    && echo "PATH=$PATH" > /etc/profile.d/path.sh \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && find / -xdev -type d -perm /022 ! -path /tmp -exec chmod go-w {} + \
    && install -d -m 1777 /backups
COPY --from=venv /opt/venv /opt/venv
COPY --chmod=755 backup_executor.py /app/
# Compiled here, as nobody could write it later: what waits for processes then holds 5 MB less. It is
# used only while it fits the source, also where somebody mounts another one over that.
RUN python3 -m compileall -q --invalidation-mode checked-hash /app
WORKDIR /app
# From where it is, as whoever builds it says.
ARG SOURCE=
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.source=$SOURCE \
    org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$REVISION
# A number, so that runAsNonRoot can be checked: postgres in the images of TimescaleDB. No init
# program: the executor handles its signals itself, also as process 1.
USER 70:70
CMD ["python", "-m", "backup_executor"]
