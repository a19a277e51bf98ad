# Sourced by scripts/vm: builds the tests, and packs what a guest needs into archives for its initramfs. Bash.

# The test programs that the guests may run: those whose tests make containers or cgroups.
build_tests() {
    (
        cd "$top"
        [ "$profile" = debug ] || cargo build --release --locked --bins
        cargo test --workspace --locked --no-run
    ) >&2
}

# Lines of name and path: the test programs of the last build, the libraries' own and those in tests/.
test_programs() {
    (cd "$top" && cargo test --quiet --workspace --locked --no-run --message-format=json-render-diagnostics) |
        sed -n '/"kind":\["\(lib\|test\)"\]/s/.*"test":true.*"executable":"\([^"]*\)".*/\1/p' |
        while read -r path; do
            name=${path##*/}
            printf '%s %s\n' "${name%-*}" "$path"
        done
}

# An archive of the folder $1 in the form of an initramfs.
archive() { (cd "$1" && find . -print0 | busybox cpio -0 -o -H newc -R 0:0 2>/dev/null); }

# Copies files and folders of this machine into the folder $1, at the same paths.
take() {
    local into=$1 path
    shift
    for path in "$@"; do
        mkdir -p "$into${path%/*}"
        cp -a -L "$path" "$into$path"
    done
}

# The same for a binary, without what only a debugger reads.
take_binary() {
    mkdir -p "$1${2%/*}"
    strip -o "$1$2" "$2"
}

# A program of this machine with the libraries it needs.
take_program() {
    local path
    path=$(realpath "$(type -P "$2")") || die "$2 is not installed: run scripts/setup"
    take "$1" "$path" $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*')
    [ "${path##*/}" = "$2" ] || ln -s "$path" "$1/usr/bin/$2"
}

# What the kernel finds when it starts: busybox, the modules, and the first process.
pack_initramfs() {
    local root="$run/initramfs" release module
    release=$(ls "$kernel/lib/modules")
    mkdir -p "$root/usr/bin" "$root/lib/modules/$release"
    ln -s usr/bin "$root/bin"
    cp "$(command -v busybox)" "$root/usr/bin/busybox"
    cp "$top/scripts/vm.d/init" "$root/init"
    printf '%s\n' overlay loop ${image:+virtio_pci virtio_blk ext4 autofs4} >"$root/modules"
    (
        cd "$kernel"
        cp "lib/modules/$release"/modules.* "$root/lib/modules/$release/"
        while read -r module; do
            grep -m1 "/$module\.ko[^:]*:" "lib/modules/$release/modules.dep" | tr -d : || true
        done <"$root/modules" | tr ' ' '\n' | while read -r module; do
            cp --parents "lib/modules/$release/$module" "$root"
        done
    )
    archive "$root"
}

# What the tests need, and the job. Systemd's guest copies it over its image.
pack_payload() {
    local root="$run/payload${image:+/payload}" name path
    mkdir -p "$root/tests" "$root/etc" "$root/usr/bin"
    cp "$top/scripts/vm.d/job" "$root/job"
    cp "$top/scripts/vm.d/tests" "$root/run-tests"
    {
        printf 'export ROOT_TESTS=must RUST_BACKTRACE=1 DUNNAGE_TEST_SLOW=%s\n' "${DUNNAGE_TEST_SLOW:-10}"
        [ -z "$image" ] || echo 'export DUNNAGE_TEST_SYSTEMD=must'
        [ "$profile" = release ] || printf 'export DUNNAGE_TEST_SHIM=%s\n' "$(built)/containerd-shim-dunnage-v2"
        printf '%s ' "${command[@]@Q}"
        echo
    } >"$root/command"
    [ -z "$interactive" ] || touch "$root/interactive"
    test_programs | while read -r name path; do
        take_binary "$root" "$path"
        ln -s "$path" "$root/tests/$name"
    done
    for path in "$(built debug)"/{dunnage-oci,dunnage,dunnaged,containerd-shim-dunnage-v2} \
        "$(built release)"/{dunnage,dunnaged,containerd-shim-dunnage-v2}; do
        [ ! -e "$path" ] || take_binary "$root" "$path"
    done
    take "$root" "$top/libcontainer/tests/plans" "$top/libcontainer/tests/profiles" ${files[@]+"${files[@]}"}
    if [ -n "$image" ]; then
        mkdir -p "$root/etc/systemd/system" "$root/etc/tmpfiles.d"
        : >"$root/etc/tmpfiles.d/tmp.conf" # the files in here may be under /tmp, which would be emptied
        cp "$top/scripts/vm.d/job.service" "$root/etc/systemd/system/"
    else
        printf 'ttyS0::once:/bin/sh /job %s\n' "$mode" >"$root/etc/inittab"
        printf 'root:x:0:0::/root:/bin/sh\n' >"$root/etc/passwd"
        printf 'root:x:0:\n' >"$root/etc/group"
        # Bound into containers that share the network of the host.
        printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
        : >"$root/etc/resolv.conf"
        take_program "$root" containerd
        take_program "$root" ctr
    fi
    archive "$run/payload"
}

built() { printf '%s/%s' "$(dirname "$(release_dir)")" "${1:-$profile}"; }
