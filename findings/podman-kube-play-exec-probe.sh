#!/usr/bin/env bash
# `podman kube play` makes one line of an exec probe's words, and a probe by `sh -c` looks at nothing.
#
# Debian 12's podman 4.3.1 (as root). The words of livenessProbe.exec.command come to a shell with only
# spaces between them: [sh, -c, "exit 1"] becomes `sh -c exit 1`, whose script is `exit` alone. With
# [sh, -c, "find /tmp/alive -mmin -3 | grep -q ."] it is `find`, which finds the folder it is in, and the
# container is healthy whatever is in it. Who tries a chart's probes with it runs them by `podman exec`.
#
# Seen: what ends with 1 by `podman exec` ends with 0 as a health check.
set -euo pipefail
[[ $EUID == 0 ]] || { echo "It takes root." >&2; exit 2; }
folder=$(mktemp -d)
chmod 711 "$folder"
podman=()
finish() {
    [[ -z ${podman[*]} ]] || "${podman[@]}" pod rm --all --force --time 0 > "$folder/removed" 2>&1
    umount -l "$folder/storage/overlay" 2> "$folder/unmounted" || true
    rm -rf "$folder"
}
trap finish EXIT

# Unpacked, not installed: what the machine has stays as it is.
mkdir "$folder/packages" "$folder/root"
(cd "$folder/packages" && apt-get -q update > ../apt.log && apt-get -q -o APT::Sandbox::User=root download \
    podman=4.3.1+ds1-8+deb12u1+b3 conmon=2.1.6+ds1-1 runc=1.1.5+ds1-1+deb12u1 catatonit=0.1.7-1+b2 \
    busybox-static libgpgme11 libsubid4 libassuan0 >> ../apt.log
for package in *.deb; do dpkg -x "$package" ../root; done)
usr=$folder/root/usr
mkdir -p "$folder/home/.config/containers"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$folder/home/.config/containers/policy.json"
cat > "$folder/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
helper_binaries_dir = ["$usr/libexec/podman"]
infra_command = "/catatonit -P"
[engine.runtimes]
runc = ["$usr/sbin/runc"]
END
podman=(env -i "PATH=$PATH" "HOME=$folder/home" "CONTAINERS_CONF=$folder/containers.conf"
    "LD_LIBRARY_PATH=$(echo "$usr"/lib/*-linux-gnu)"
    "$usr/bin/podman" "--root=$folder/storage" "--runroot=$folder/run" "--tmpdir=$folder/tmp"
    "--conmon=$usr/bin/conmon" --runtime=runc --cgroup-manager=cgroupfs --events-backend=none)

mkdir -p "$folder/image/bin"
cp "$folder/root/bin/busybox" "$folder/image/bin/sh"
cp "$folder/root/bin/busybox" "$folder/image/bin/sleep"
tar -C "$folder/image" -c . | "${podman[@]}" import --quiet --change "ENV PATH=/bin" - localhost/busybox:1 > "$folder/imported"
"${podman[@]}" kube play --quiet --network=none - > "$folder/played" <<'END'
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  containers:
    - name: it
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [sleep, "1000"]
      livenessProbe: {exec: {command: [sh, -c, "exit 1"]}, timeoutSeconds: 60}
END
"${podman[@]}" exec probed-it sh -c "exit 1" && by_exec=0 || by_exec=$?
"${podman[@]}" healthcheck run probed-it && by_probe=0 || by_probe=$?
"${podman[@]}" --version
"${podman[@]}" inspect --format '{{json .Config.Healthcheck.Test}}' probed-it
[[ "$by_exec $by_probe" == "1 0" ]] || { echo "by exec $by_exec, by the probe $by_probe" >&2; exit 1; }
echo "By exec it ends with 1, as the health check with 0."
