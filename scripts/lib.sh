# Sourced by the other scripts: a private containerd, an image for it, a private supervisor, and what a process weighs. Bash.
# Nothing here touches a daemon of the system: root, state, socket and configuration are in one throw-away folder.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
image=docker.io/library/dunnage:quickstart

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }

# The folder of the release build: cargo names it after the machine, since .cargo/config.toml sets a target.
release_dir() {
    local host
    host=$(cd "$top" && rustc -vV | sed -n 's/^host: //p')
    printf '%s/%s/release\n' "${CARGO_TARGET_DIR:-$top/target}" "$host"
}

# Makes the folder $work and starts a containerd there, whose PATH holds the given programs and nothing else.
containerd_start() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/dunnage-XXXXXX")
    chmod 711 "$work"
    mkdir "$work/bin" "$work/lib" "$work/state"
    local program
    for program in "$@"; do
        ln -s "$program" "$work/bin/"
    done
    cat >"$work/config.toml" <<EOF
version = 2
root = "$work/lib"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$work/c.sock"
EOF
    : >"$work/log" # so that tail finds it, however late the daemon is
    env -i PATH="$work/bin" "$(command -v containerd)" --config "$work/config.toml" >>"$work/log" 2>&1 &
    containerd=$!
    grep -q 'successfully booted' < <(timeout 30 tail -n +1 -f --pid=$containerd "$work/log") ||
        die "containerd did not start: $(cat "$work/log")"
}

# Removes what is left of the containers, ends containerd and deletes its folder.
containerd_stop() {
    [ -n "${containerd:-}" ] || return 0
    local id
    for id in $(ctr container ls --quiet 2>/dev/null); do
        ctr task kill --signal SIGKILL --all "$id" 2>/dev/null || true
        ctr task rm --force "$id" >/dev/null 2>&1 || true
        ctr container rm "$id" || true
    done
    kill "$containerd" 2>/dev/null || true
    wait "$containerd" 2>/dev/null || true
    containerd=
    # The empty cgroups above the containers, and the runtimes' empty folders of the namespace.
    find /sys/fs/cgroup -maxdepth 2 -type d -name "$(basename "$work")" -exec rmdir {} + 2>/dev/null || true
    rm -rf "$work" "/run/containerd/runc/$(basename "$work")"
}

ctr() { command ctr --address "$work/c.sock" --namespace "$(basename "$work")" "$@"; }

# Imports an image that is busybox under all its names: an OCI layout, made with tar and sha256sum.
image_import() {
    local dir="$work/image" layer config manifest
    mkdir -p "$dir/root/bin" "$dir/root/tmp" "$dir/layout/blobs/sha256"
    cp "$(command -v busybox)" "$dir/root/bin/busybox"
    "$dir/root/bin/busybox" --list | while read -r name; do
        [ -e "$dir/root/bin/$name" ] || ln -s busybox "$dir/root/bin/$name"
    done
    tar -C "$dir/root" -cf "$dir/layer" .
    layer=$(blob "$dir/layer")
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(case $(uname -m) in x86_64) echo amd64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac)" "${layer%% *}" >"$dir/config"
    config=$(blob "$dir/config")
    printf '{"schemaVersion":2,"config":%s,"layers":[%s]}' \
        "$(descriptor image.config.v1+json $config)" "$(descriptor image.layer.v1.tar $layer)" >"$dir/manifest"
    manifest=$(blob "$dir/manifest")
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "$(descriptor image.manifest.v1+json $manifest | sed "s|}\$|,\"annotations\":{\"io.containerd.image.name\":\"$image\"}}|")" \
        >"$dir/layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/layout/oci-layout"
    tar -C "$dir/layout" -cf "$dir/archive" .
    ctr image import "$dir/archive" >/dev/null
    rm -r "$dir"
}

# Puts a file among the blobs; prints its digest and its size.
blob() {
    local digest
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    cp "$1" "$dir/layout/blobs/sha256/$digest"
    printf '%s %s' "$digest" "$(stat -c %s "$1")"
}

descriptor() {
    printf '{"mediaType":"application/vnd.oci.%s","digest":"sha256:%s","size":%s}' "$1" "$2" "$3"
}

# Starts a dunnaged, found on the PATH like the `dunnage` that is to talk to it, in the folder $work, which is made if there
# is none yet. Sets $supervisor to its pid.
supervisor_start() {
    if [ -z "${work:-}" ]; then
        work=$(mktemp -d "${TMPDIR:-/tmp}/dunnage-XXXXXX")
        export DUNNAGE_ADDRESS="$work/state/dunnaged.sock"
    fi
    mkfifo "$work/log"
    dunnaged --state "$work/state" --root "$work/root" 2>"$work/log" &
    supervisor=$!
    # It says so when it is ready; what it says later goes nowhere.
    grep -q supervising "$work/log" || die "dunnaged did not start"
    rm "$work/log"
}

# Removes what is left of the containers, ends the supervisor and deletes its folder.
supervisor_finish() {
    [ -n "${supervisor:-}" ] || return 0
    dunnage ps --all --quiet | xargs -r dunnage rm --force >/dev/null || true
    kill "$supervisor" 2>/dev/null || true
    tail -f --pid="$supervisor" /dev/null
    # Should a container be left after all, its root is none of our files.
    rm -rf --one-file-system "$work"
    rmdir /sys/fs/cgroup{,/*}/dunnage/default /sys/fs/cgroup{,/*}/dunnage 2>/dev/null || true
}

# The pid of the shim that runs a container: it is the parent of the container's first process.
shim_of() {
    local pid
    pid=$(ctr task ls | awk -v id="$1" '$1 == id { print $2 }')
    sed -n 's/^PPid:\t*//p' "/proc/$pid/status"
}

# Threads, private KiB and resident KiB of a process.
weight() {
    local threads
    threads=$(sed -n 's/^Threads:\t*//p' "/proc/$1/status")
    awk -v threads="$threads" '/^Private_/ { private += $2 } /^Rss:/ { rss += $2 } END { print threads, private, rss }' \
        "/proc/$1/smaps_rollup"
}
