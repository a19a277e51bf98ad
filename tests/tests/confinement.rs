//! What a process is kept from, as it sees it from inside.

use dunnage_tests::{Case, case};
use serde_json::json;

/// Runs a shell script in a container with the defaults of `ctr` and `flags`.
fn inside(c: &Case, flags: &[&str], script: &str) -> dunnage_tests::Outcome {
    c.run("box", ["sh", "-c", script]).flags(flags).output()
}

#[test]
fn a_read_only_root_cannot_be_written_but_mounts_can() {
    case(|c| {
        let script = "for f in /new /etc/new /bin/sh; do if echo > $f; then echo wrote $f; fi; done; echo > /dev/shm/new && echo shm";
        let outcome = inside(c, &["--read-only"], script);
        assert_eq!(outcome.ok(), "shm");
        assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
        assert_eq!(inside(c, &[], "echo new > /new && cat /new").ok(), "new");
    });
}

#[test]
fn capabilities_are_the_default_set_and_what_is_added_and_dropped() {
    case(|c| {
        let show = "grep Cap /proc/self/status | tr '\\n\\t' ' '";
        // The fourteen that containerd gives.
        let usual = 0xa804_25fb_u64;
        let line = |prm: u64| {
            format!("CapInh: {:016x} CapPrm: {prm:016x} CapEff: {prm:016x} CapBnd: {prm:016x} CapAmb: {:016x}", 0, 0)
        };
        assert_eq!(inside(c, &[], show).ok().trim(), line(usual));
        let admin = 1 << 21;
        assert_eq!(inside(c, &["--cap-add", "CAP_SYS_ADMIN"], show).ok().trim(), line(usual | admin));
        assert_eq!(inside(c, &["--cap-drop", "CAP_CHOWN"], show).ok().trim(), line(usual & !1));
        let chown = inside(c, &["--cap-drop", "CAP_CHOWN"], "touch /tmp/f; chown 1 /tmp/f");
        assert!(chown.refused().contains("not permitted"), "{chown:?}");
    });
}

#[test]
fn new_privileges_are_forbidden_unless_asked_for() {
    case(|c| {
        let show = "grep NoNewPrivs /proc/self/status";
        assert_eq!(inside(c, &[], show).ok(), "NoNewPrivs:\t1");
        assert_eq!(inside(c, &["--allow-new-privs"], show).ok(), "NoNewPrivs:\t0");
    });
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() {
    case(|c| {
        let read = "cd /proc; for f in kcore keys timer_list latency_stats; do [ -e $f ] && wc -c < $f; done; ls acpi /sys/firmware | grep -v :";
        let masked = inside(c, &[], read);
        let sizes: Vec<_> = masked.stdout.split_whitespace().collect();
        assert!(!sizes.is_empty() && sizes.iter().all(|size| *size == "0"), "{masked:?}");
        let write = "for f in /proc/sys/kernel/panic /proc/irq/default_smp_affinity; do echo 1 > $f; done; echo done";
        let locked = inside(c, &["--cap-add", "CAP_SYS_ADMIN"], write);
        assert_eq!(locked.ok(), "done");
        assert_eq!(locked.stderr.matches("Read-only file system").count(), 2, "{locked:?}");
    });
}

#[test]
fn sysfs_cannot_be_written() {
    case(|c| {
        let outcome = inside(c, &[], "mkdir /sys/fs/new; echo 1 > /sys/kernel/profiling; echo done");
        assert_eq!(outcome.ok(), "done");
        // A folder of sysfs refuses new folders in other words, for everyone.
        assert!(outcome.stderr.contains("profiling: Read-only file system"), "{outcome:?}");
    });
}

#[test]
fn the_default_seccomp_profile_refuses_what_it_lists() {
    case(|c| {
        let show = "grep ^Seccomp: /proc/self/status";
        assert_eq!(inside(c, &[], show).ok(), "Seccomp:\t0");
        assert_eq!(inside(c, &["--seccomp"], show).ok(), "Seccomp:\t2");
        // Anyone may make a user namespace; the profile allows unshare(2) only with CAP_SYS_ADMIN.
        assert_eq!(inside(c, &[], "unshare -U echo free").ok(), "free");
        let refused = inside(c, &["--seccomp"], "unshare -U echo free");
        assert!(refused.refused().contains("not permitted"), "{refused:?}");
        // Everyday work goes on under it.
        assert_eq!(
            inside(c, &["--seccomp"], "ls / | grep -c bin; date > /dev/null; seq 3 | sort -r | head -1").ok(),
            "1\n3"
        );
    });
}

#[test]
fn a_seccomp_profile_gives_the_errno_it_says_and_kills_whom_it_says() {
    case(|c| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [
                { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
                { "names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS" },
                { "names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO" },
            ],
        });
        let profile = c.file("profile.json", profile.to_string());
        let flags = ["--seccomp", "--seccomp-profile", &profile.to_string_lossy()];
        let outcome = inside(c, &flags, "mkdir /tmp/d; chmod 1 /tmp; sync; echo $?");
        assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
        assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
        // 128 + SIGSYS
        assert_eq!(outcome.ok(), "159");
        c.idle("host", &flags);
        let exec = c.exec("host", "exec", ["mkdir", "/tmp/d"]).output();
        assert!(exec.stderr.contains("No space left on device"), "an exec is under the filter too: {exec:?}");
    });
}

#[test]
fn devices_are_those_of_the_default_list_and_no_others_open() {
    case(|c| {
        let outcome = inside(
            c,
            &[],
            "cd /dev; for d in full null random tty urandom zero ptmx; do [ -c $d ] || echo no $d; done; for l in fd stdin stdout stderr; do readlink $l; done; head -c 4 zero | wc -c",
        );
        assert_eq!(outcome.ok(), "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n4");
        // The cgroup refuses what the list lacks, though the right to make the node is there.
        let refused = inside(c, &["--cap-add", "CAP_MKNOD"], "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk");
        assert!(refused.refused().contains("not permitted"), "{refused:?}");
    });
}

#[test]
fn a_device_that_is_given_is_there_and_works() {
    case(|c| {
        // The number of loop-control, which is not on the default list, and which may be opened without any right.
        let node = c.path("given");
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(10, 237))
            .expect("mknod");
        let open = format!("{}", node.display());
        let outcome = inside(c, &["--device", &open], &format!("stat -c %t:%T {open} && : < {open} && echo opened"));
        assert_eq!(outcome.ok(), "a:ed\nopened");
        let refused = inside(c, &["--cap-add", "CAP_MKNOD"], "mknod /tmp/given c 10 237 && : < /tmp/given");
        assert!(refused.refused().contains("not permitted"), "{refused:?}");
    });
}

#[test]
fn mounts_come_with_their_options() {
    case(|c| {
        let file = c.file("host-file", "from outside\n");
        let folder = file.parent().expect("a folder").display().to_string();
        let bind = format!("type=bind,src={folder},dst=/mnt,options=rbind:ro:noexec:nosuid");
        let script = "cat /mnt/host-file; echo x > /mnt/host-file; grep ' /mnt ' /proc/mounts | cut -d' ' -f4; cp /bin/true /mnt/true || echo kept; grep ' /scratch ' /proc/mounts";
        let tmpfs = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=700:nodev";
        let outcome = inside(c, &["--mount", &bind, "--mount", tmpfs], script);
        let lines: Vec<_> = outcome.ok().lines().collect();
        assert_eq!(lines[0], "from outside");
        let options: Vec<_> = lines[1].split(',').collect();
        assert!(["ro", "noexec", "nosuid"].iter().all(|option| options.contains(option)), "{options:?}");
        assert_eq!(lines[2], "kept");
        assert!(
            lines[3].contains("size=1024k") && lines[3].contains("mode=700") && lines[3].contains("nodev"),
            "{lines:?}"
        );
        assert_eq!(outcome.stderr.matches("Read-only").count(), 2, "{outcome:?}");
    });
}

#[test]
fn nothing_of_the_hosts_mounts_is_left_inside() {
    case(|c| {
        let outcome = inside(c, &[], "cut -d' ' -f2 /proc/mounts");
        let expected = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run"];
        for place in outcome.ok().lines() {
            let masked = place.starts_with("/proc/") || place.starts_with("/sys/");
            assert!(masked || expected.contains(&place), "{place} in {:?}", outcome.stdout);
        }
    });
}

#[test]
fn the_environment_and_the_host_name_are_what_the_spec_says() {
    case(|c| {
        let root = c.root_folder("root");
        let mut spec = c.spec("named", &root, &["sh", "-c", "hostname; env | sort; pwd; id; umask; ulimit -n; cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_forward"]);
        spec["hostname"] = "ship".into();
        spec["process"]["env"] = json!(["A=1", "PATH=/bin", "Z=with space"]);
        spec["process"]["cwd"] = "/home/porter".into();
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [2000], "umask": 0o27 });
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 123, "hard": 456 }]);
        spec["process"]["oomScoreAdj"] = 321.into();
        spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        let outcome = c.run_spec("named", &spec).output();
        let lines: Vec<_> = outcome
            .ok()
            .lines()
            .filter(|line| !line.starts_with("PWD") && !line.starts_with("SHLVL") && !line.starts_with("HOME"))
            .collect();
        let expected = [
            "ship",
            "A=1",
            "PATH=/bin",
            "Z=with space",
            "/home/porter",
            "uid=1000(porter) gid=1000(porter) groups=2000(crane)",
            "0027",
            "123",
            "321",
            "1",
        ];
        assert_eq!(lines, expected);
    });
}
