# Sourced by scripts/vm: gets the parts of a virtual machine from Debian's archive, unpacked into target/vm. Bash.
# Nothing is installed, and apt's own lists and caches stay as they are: installing Debian's QEMU would remove a newer
# qemu-utils, and installing a kernel would rewrite the boot loader's menu.

cache="${CARGO_TARGET_DIR:-$top/target}/vm"

# Whether virtual machines can be made here; if not, $unable says why.
vm_able() {
    unable=
    if [ "$(uname -m)" != x86_64 ]; then
        unable="needs an x86-64 machine"
    elif ! command -v apt-get >/dev/null || [ -z "$(codename)" ]; then
        unable="needs Debian, for its kernel and QEMU"
    elif [ "$(id -u)" != 0 ]; then
        unable="needs root"
    fi
    [ -z "$unable" ]
}

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null; }

# The machine's own sources of Debian, as lines of address and suite.
sources() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
        awk -v name="$(codename)" '$2 == name || index($2, name "-") == 1' | sort -u
}

mirror() { sources | awk -v name="$(codename)" '$2 == name { print $1; exit }'; }

# Runs a tool of apt on lists of its own: this machine's suites, and $1 of the same mirror if it is not empty.
debian() {
    local suite=$1 tool=$2 dir="$cache/apt${1:+-$1}"
    shift 2
    "$tool" -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root ${suite:+-t "$suite"} "$@"
}

debian_update() {
    local suite=$1 dir="$cache/apt${1:+-$1}"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    sources | awk -v more="$suite" -v name="$(codename)" '
        { print "deb " $1 " " $2 " main" }
        more && $2 == name { print "deb " $1 " " more " main" }' >"$dir/sources.list"
    [ -s "$dir/sources.list" ] || die "apt's configuration names no source for $(codename)"
    debian "$suite" apt-get update -qq >&2 || die "cannot read the lists of Debian packages"
}

# Makes the folder $1 by the function $2 (with the arguments after it, in the new folder), unless it is there. Its name
# carries a checksum of the function, so that a changed recipe makes a new one. Sets $made to its path.
make_once() {
    local key
    key=$(declare -f "$2" | sha256sum | cut -c1-12)
    made="$cache/$1-$key"
    mkdir -p "$cache"
    exec {lock}>"$cache/lock"
    flock "$lock"
    if [ ! -d "$made" ]; then
        # Former recipes, and attempts that failed. Other kernels have longer names.
        rm -rf "$cache/$1-"???????????? "$cache/$1-"????????????.new
        mkdir "$made.new"
        say "making $made"
        (cd "$made.new" && shift && "$@") # with no || after it, which would switch off the end at the first error
        mv "$made.new" "$made"
    fi
    exec {lock}>&-
}

# Packages with what they need and the machine lacks, unpacked.
unpack_all() {
    debian_update ''
    mkdir -p debs/partial
    debian '' apt-get install --download-only --no-install-recommends -y -qq -o Dir::Cache::Archives="$PWD/debs" "$@" >&2
    local deb
    for deb in debs/*.deb; do dpkg -x "$deb" .; done
    rm -r debs
}

# QEMU; sets up qemu_run.
qemu_fetch() {
    make_once qemu unpack_all qemu-system-x86
    qemu=$made
}

qemu_run() {
    LD_LIBRARY_PATH="$qemu/usr/lib/x86_64-linux-gnu:$qemu/lib/x86_64-linux-gnu" \
        timeout --foreground "${DUNNAGE_VM_SECONDS:-2400}" "$qemu/usr/bin/qemu-system-x86_64" -L "$qemu/usr/share/qemu" -L "$qemu/usr/share/seabios" "$@"
}

# Debian's kernel for virtual machines; sets $kernel to a folder with vmlinuz and lib/modules.
kernel_fetch() {
    make_once "kernel${1:+-$1}" unpack_kernel "$1"
    kernel=$made
}

unpack_kernel() {
    local suite=$1 package
    debian_update "$suite"
    # The package without a version is empty and depends on the newest.
    package=$(debian "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
    [ -n "$package" ] || die "Debian has no kernel for virtual machines in ${suite:-$(codename)}"
    debian "$suite" apt-get download -qq "$package" >&2
    dpkg -x ./*.deb .
    rm ./*.deb
    mv boot/vmlinuz-* vmlinuz
    busybox depmod -b "$PWD" "$(ls lib/modules)"
}

# The disk of systemd's guest; sets $image. Only an installed Debian has a working process 1, so it is made with
# debootstrap, which needs root to run the packages' scripts in it.
image_fetch() {
    make_once image make_image
    image="$made/disk"
}

make_image() {
    debian_update ''
    debian '' apt-get download -qq debootstrap >&2
    dpkg -x debootstrap_*.deb debootstrap
    # In a mount namespace, so that nothing stays mounted wherever it ends.
    DEBOOTSTRAP_DIR="$PWD/debootstrap/usr/share/debootstrap" unshare --mount --propagation private \
        sh "$PWD/debootstrap/usr/sbin/debootstrap" --variant=minbase \
        --include=systemd-sysv,dbus,dbus-user-session,libpam-systemd,uidmap,busybox-static,containerd,kmod,iproute2,procps \
        "$(codename)" "$PWD/root" "$(mirror)" >debootstrap.log 2>&1 || die "debootstrap failed: $(tail -n 20 debootstrap.log)"
    (
        cd root
        # Started by whoever wants it.
        rm -f etc/systemd/system/*.wants/{containerd.service,fstrim.timer,apt-daily*.timer,dpkg-db-backup.timer,e2scrub*}
        printf 'guest\n' >etc/hostname
        : >etc/fstab
        : >etc/machine-id # systemd makes one for each start
        # An ordinary user with ranges of ids and a systemd of its own, to which every controller is delegated.
        chroot . useradd --create-home --shell /bin/bash porter
        mkdir -p var/lib/systemd/linger etc/systemd/system/user@.service.d
        touch var/lib/systemd/linger/porter
        printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >etc/systemd/system/user@.service.d/delegate.conf
        # What only takes room.
        rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/{doc,man,locale}/*
    )
    truncate -s 2G disk
    mkfs.ext4 -q -O ^has_journal -d root disk
    rm -rf root debootstrap debootstrap_*.deb
}
