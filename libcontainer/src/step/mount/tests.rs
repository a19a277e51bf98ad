//! Effects, seen from inside: each test plans from a spec, runs the steps in a child with its own namespaces, and looks.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::sys::{Call, Failed};

#[path = "../../../tests/support/alone.rs"]
mod alone;
mod container;
mod stage;

use self::alone::alone;
use self::stage::{Stage, bind, fds, kinds, line, ordinary, ordinary_linux, proc, shared, spec};

#[test]
fn a_bind_mount_is_made_where_it_is_missing_as_file_or_directory() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    fs::create_dir(stage.data("dir")).expect("dir");
    let mounts = json!([
        proc(),
        bind(&stage.data("file"), "/etc/deep/down/file", &["bind", "ro"]),
        bind(&stage.data("dir"), "relative/../rel/dir", &["rbind", "nosuid", "noexec"]),
        bind(Path::new("data/file"), "/etc/from-bundle", &["bind"]),
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(fs::read("/etc/deep/down/file").expect("file"), b"hello");
            assert_eq!(line("/etc/deep/down/file").0, "ro,relatime");
            assert_eq!(line("/rel/dir").0, "rw,nosuid,noexec,relatime");
            assert_eq!(line("/etc/from-bundle").0, "rw,relatime");
        })
        .expect("steps");
    assert_eq!(fs::metadata(stage.root("etc/deep/down")).expect("made").permissions().mode() & 0o7777, 0o755);
    assert!(stage.root("etc/deep/down/file").is_file());
}

#[test]
fn a_missing_source_is_an_error_of_the_source() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let spec = spec(json!([bind(Path::new("/no/such/source"), "/x", &["bind"])]), json!({}));
    let failed = stage.run(&spec, |_| unreachable!()).expect_err("no source");
    assert_eq!(failed, Failed { call: Call::OpenTree, errno: Errno::ENOENT });
    let (_, plan) = stage.plan(&spec);
    assert_eq!(plan.before[0].to_string(), "open /no/such/source for /x rslave");
    assert!(!stage.root("x").exists(), "nothing was made");
}

#[test]
fn no_link_of_the_image_leads_out_of_it() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    let out = stage.top.join("outside");
    fs::create_dir(&out).expect("folder");
    symlink("../../../../../../../../..", stage.root("up")).expect("link");
    symlink(&out, stage.root("absolute")).expect("link");
    symlink("/proc/self/root", stage.root("magic")).expect("link");
    symlink("../run/resolve/conf", stage.root("etc/dangling")).expect("link");
    symlink("loop", stage.root("loop")).expect("link");
    let file = stage.data("file");
    let mounts = json!([
        proc(),
        bind(&file, "/up/a", &["bind"]),
        bind(&file, "/../../b", &["bind"]),
        bind(&file, "/absolute/c", &["bind"]),
        bind(&file, "/etc/dangling", &["bind"]),
        bind(&file, "/magic/d", &["bind"]),
        {"destination": "/up/up/new", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            let inside = format!("{}/c", out.display());
            for path in ["/a", "/b", &inside, "/d", "/run/resolve/conf", "/etc/dangling"] {
                assert_eq!(fs::read(path).expect(path), b"hello");
            }
            assert_eq!(line("/new").0, "rw,relatime");
        })
        .expect("steps");
    assert_eq!(fs::read_dir(&out).expect("outside").count(), 0);
    for (target, errno) in [("/loop/x", Errno::ELOOP), ("/etc/dangling/x", Errno::ENOTDIR)] {
        fs::create_dir_all(stage.root("run/resolve")).expect("folder");
        fs::write(stage.root("run/resolve/conf"), "").expect("file");
        let failed = stage.run(&spec(json!([proc(), bind(&file, target, &["bind"])]), json!({})), |_| unreachable!());
        assert_eq!(failed.expect_err(target), Failed { call: Call::Openat2, errno }, "{target}");
    }
}

#[test]
fn proc_and_sysfs_are_at_their_very_path_or_nowhere() {
    if !alone() {
        return;
    }
    for (name, mount) in [("proc", proc()), ("sys", json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}))]
    {
        let stage = Stage::new();
        symlink("/etc", stage.root(name)).expect("link");
        let failed = stage.run(&spec(json!([mount]), json!({})), |_| unreachable!()).expect_err("a link");
        assert_eq!(failed, Failed { call: Call::Openat2, errno: Errno::ELOOP });
    }
}

#[test]
fn nothing_but_a_procfs_hides_proc_by_way_of_a_link_either() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir_all(stage.root("proc/x")).expect("folder");
    for (link, to) in [("p", "/proc"), ("q", "proc/self/.."), ("r", "/")] {
        symlink(to, stage.root(link)).expect("link");
    }
    let data = stage.data("");
    let rule = |call| Failed { call, errno: Errno::EPERM };
    for (mount, answer) in [
        (bind(&data, "/p", &["rbind"]), rule(Call::ProcRule)),
        (bind(&data, "/proc", &["rbind"]), rule(Call::ProcRule)),
        (bind(&data, "/p/sys", &["rbind"]), rule(Call::ProcRule)),
        (json!({"destination": "/p/fs", "type": "tmpfs", "source": "x"}), rule(Call::ProcRule)),
        (json!({"destination": "/p", "type": "tmpfs", "source": "x"}), rule(Call::ProcRule)),
        (bind(&data, "/r", &["rbind"]), rule(Call::RootRule)),
    ] {
        let failed = stage.run(&spec(json!([proc(), mount]), json!({})), |_| unreachable!());
        assert_eq!(failed.expect_err("refused"), answer, "{mount}");
    }
    fs::write(stage.data("meminfo"), "mine").expect("file");
    let stand_in = bind(&stage.data("meminfo"), "/p/meminfo", &["bind"]);
    stage
        .run(&spec(json!([proc(), stand_in]), json!({})), |_| {
            assert_eq!(fs::read("/proc/meminfo").expect("meminfo"), b"mine");
        })
        .expect("allowed");
    let again = json!([bind(Path::new("/proc"), "/proc", &["rbind"])]);
    stage.run(&spec(again, json!({})), |fds| assert!(fds.proc.is_some())).expect("a procfs may");
}

#[test]
fn propagation_ends_where_runc_has_it() {
    if !alone() {
        return;
    }
    for (root, options, top, below) in [
        (None, &["rbind"][..], &["master"][..], &["master"][..]),
        (None, &["rbind", "rprivate"], &[], &[]),
        (None, &["rbind", "private"], &[], &["master"]),
        (None, &["rbind", "rshared"], &["shared", "master"], &["shared", "master"]),
        (None, &["rbind", "rslave"], &["master"], &["master"]),
        (None, &["rbind", "runbindable"], &["unbindable"], &["unbindable"]),
        (None, &["rbind", "ro", "nosuid"], &["master"], &["master"]),
        (Some("rprivate"), &["rbind"], &[], &[]),
        (Some("rprivate"), &["rbind", "rshared"], &["shared"], &["shared"]),
        (Some("rshared"), &["rbind"], &["shared"], &["shared"]),
        (Some("rshared"), &["rbind", "rslave"], &["master"], &["master"]),
        (Some("rshared"), &["rbind", "rprivate"], &[], &[]),
        (Some("shared"), &["rbind"], &["shared"], &["shared"]),
        (Some("slave"), &["rbind"], &["master"], &["master"]),
        (Some("private"), &["rbind"], &[], &[]),
    ] {
        let stage = Stage::new();
        let source = shared(&stage);
        let mut linux = json!({});
        if let Some(root) = root {
            linux["rootfsPropagation"] = json!(root);
        }
        let spec = spec(json!([proc(), bind(&source, "/mnt", options)]), linux);
        stage
            .run(&spec, |_| {
                assert_eq!(kinds(&line("/mnt").1), top, "{root:?} {options:?}");
                assert_eq!(kinds(&line("/mnt/below").1), below, "{root:?} {options:?} below");
            })
            .expect("steps");
    }
}

#[test]
fn the_root_is_related_to_the_host_as_rootfs_propagation_says() {
    if !alone() {
        return;
    }
    for (root, kind) in [
        (None, &["master"][..]),
        (Some("rslave"), &["master"]),
        (Some("rprivate"), &[]),
        (Some("private"), &[]),
        (Some("rshared"), &["shared", "master"]),
        (Some("unbindable"), &["unbindable"]),
    ] {
        let stage = Stage::new();
        mount(None::<&str>, &stage.top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
        let linux = root.map_or(json!({}), |root| json!({"rootfsPropagation": root}));
        stage.run(&spec(json!([proc()]), linux), |_| assert_eq!(kinds(&line("/").1), kind, "{root:?}")).expect("steps");
    }
}

#[test]
fn what_the_container_mounts_is_not_seen_by_the_host() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    mount(None::<&str>, &stage.top, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("shared");
    let before = fs::read_to_string("/proc/self/mountinfo").expect("table");
    stage.run(&spec(ordinary(), ordinary_linux()), |_| {}).expect("steps");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("table"), before);
}

#[test]
fn attributes_are_set_on_the_top_or_on_the_whole_tree() {
    if !alone() {
        return;
    }
    for (options, top, below) in [
        (&["rbind"][..], "rw,relatime", "rw,nodev,relatime"),
        (&["rbind", "ro"], "ro,relatime", "rw,nodev,relatime"),
        (&["rbind", "rro"], "ro,relatime", "ro,nodev,relatime"),
        (&["rbind", "ro", "rrw"], "rw,relatime", "rw,nodev,relatime"),
        (&["rbind", "rnosuid", "rnoexec", "rdev"], "rw,nosuid,noexec,relatime", "rw,nosuid,noexec,relatime"),
        (&["rbind", "rnoatime"], "rw,noatime", "rw,nodev,noatime"),
        (&["rbind", "strictatime", "nodiratime"], "rw,nodiratime", "rw,nodev,relatime"),
        (&["rbind", "nosymfollow"], "rw,relatime,nosymfollow", "rw,nodev,relatime"),
    ] {
        let stage = Stage::new();
        let source = shared(&stage);
        stage
            .run(&spec(json!([proc(), bind(&source, "/mnt", options)]), json!({})), |_| {
                assert_eq!(line("/mnt").0, top, "{options:?}");
                assert_eq!(line("/mnt/below").0, below, "{options:?} below");
            })
            .expect("steps");
    }
    // A bind mount with any attribute has no other than those named.
    let stage = Stage::new();
    let source = shared(&stage).join("below");
    for (options, is) in [
        (&["bind"][..], "rw,nodev,relatime"),
        (&["bind", "noexec"], "rw,noexec,relatime"),
        (&["bind", "rw"], "rw,relatime"),
    ] {
        stage
            .run(&spec(json!([proc(), bind(&source, "/mnt", options)]), json!({})), |_| {
                assert_eq!(line("/mnt").0, is, "{options:?}");
            })
            .expect("steps");
    }
}

#[test]
fn a_read_only_tmpfs_is_filled_first() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::write(stage.data("file"), "hello").expect("file");
    let mounts = json!([
        proc(),
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=755"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "nosuid"]},
        bind(&stage.data("file"), "/run/secrets/file", &["bind"]),
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(fs::read("/run/secrets/file").expect("file"), b"hello");
            assert!(fs::metadata("/dev/null").expect("null").file_type().is_char_device());
            for dir in ["/run", "/dev"] {
                assert!(line(dir).0.starts_with("ro,"));
                assert!(fs::write(Path::new(dir).join("x"), "").is_err());
            }
        })
        .expect("steps");
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers_and_may_start_with_a_copy() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.root("covered")).expect("folder");
    fs::set_permissions(stage.root("covered"), fs::Permissions::from_mode(0o2710)).expect("mode");
    fs::create_dir(stage.root("covered/sub")).expect("folder");
    fs::write(stage.root("covered/sub/file"), "hello").expect("file");
    fs::set_permissions(stage.root("covered/sub/file"), fs::Permissions::from_mode(0o4751)).expect("mode");
    std::os::unix::fs::chown(stage.root("covered/sub/file"), Some(7), Some(8)).expect("owner");
    fs::set_permissions(stage.root("covered/sub/file"), fs::Permissions::from_mode(0o4751)).expect("mode");
    symlink("/proc/self/root/etc", stage.root("covered/link")).expect("link");
    nix::unistd::mkfifo(&stage.root("covered/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let tmpfs = |path: &str, options: &[&str]| json!({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options});
    let mounts = json!([proc(), tmpfs("/covered", &["tmpcopyup"]), tmpfs("/new", &[]), tmpfs("/bin", &["mode=1700"])]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            let mode = |path: &str| fs::symlink_metadata(path).expect(path).permissions().mode() & 0o7777;
            assert_eq!((mode("/covered"), mode("/new"), mode("/bin")), (0o2710, 0o1777, 0o1700));
            let file = fs::metadata("/covered/sub/file").expect("file");
            assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o7777), (7, 8, 0o4751));
            assert_eq!(fs::read("/covered/sub/file").expect("file"), b"hello");
            assert_eq!(fs::read_link("/covered/link").expect("link"), Path::new("/proc/self/root/etc"));
            assert!(fs::metadata("/covered/fifo").expect("fifo").file_type().is_fifo());
            fs::remove_file("/covered/sub/file").expect("removed");
        })
        .expect("steps");
    assert_eq!(fs::read(stage.root("covered/sub/file")).expect("the original"), b"hello");
}

#[test]
fn a_filesystem_says_what_it_does_not_understand() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    for (options, call, says) in [
        (&["size=lots"][..], Call::Fsconfig, "tmpfs: Bad value for 'size'"),
        (&["colour=blue"], Call::Fsconfig, "tmpfs: Unknown parameter 'colour'"),
    ] {
        let mount = json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": options});
        let (_, plan) = stage.plan(&spec(json!([mount]), json!({})));
        let root = fs::File::open(stage.root("")).expect("root");
        let mut fds = fds();
        fds.root = Some(root.into());
        let failed = plan.child[0].run(&mut fds).expect_err("refused");
        assert_eq!(failed.call, call);
        assert_eq!(fds.complaint.as_deref(), Some(says));
    }
    let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "x"});
    let failed = stage.run(&spec(json!([mount]), json!({})), |_| unreachable!()).expect_err("unknown");
    assert_eq!(failed, Failed { call: Call::Fsopen, errno: Errno::ENODEV });
}

#[test]
fn what_fsconfig_cannot_say_is_mounted_the_old_way() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layers: Vec<PathBuf> = (0..8).map(|n| stage.data(&format!("a-layer-of-a-rather-long-name-{n}"))).collect();
    for layer in &layers {
        fs::create_dir(layer).expect("layer");
        fs::write(layer.join("who"), layer.to_str().expect("UTF-8")).expect("file");
    }
    let lower = layers.iter().map(|l| l.to_str().expect("UTF-8")).collect::<Vec<_>>().join(":");
    assert!(lower.len() > 255);
    let mounts = json!([
        proc(),
        {"destination": "/o", "type": "overlay", "source": "overlay", "options": ["ro", "rprivate", format!("lowerdir={lower}")]},
        {"destination": "/i", "type": "tmpfs", "source": "tmpfs", "options": ["iversion", "size=4k"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert!(fs::read_to_string("/o/who").expect("who").ends_with("-0"));
            assert_eq!(line("/o").0, "ro,relatime");
            assert!(line("/i").2.contains("size=4k"));
        })
        .expect("steps");
}

#[test]
fn remount_changes_what_is_there() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let mounts = json!([
        proc(),
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "size=128k", "noexec"]},
        {"destination": "/u", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/u", "type": "bind", "source": "tmpfs", "options": ["bind", "remount", "ro"]},
        {"destination": "/v", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/v", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]},
        {"destination": "/w", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "rw"]},
    ]);
    stage
        .run(&spec(mounts, json!({})), |_| {
            assert_eq!(line("/t").0, "rw,noexec,relatime");
            assert!(line("/t").2.contains("size=128k"), "{}", line("/t").2);
            assert_eq!(line("/u").0, "ro,relatime");
            assert!(line("/u").2.starts_with("tmpfs tmpfs rw"), "a bind mount is not the filesystem");
            for (path, state) in [("/v", "ro"), ("/w", "rw")] {
                assert_eq!(line(path).0, format!("{state},relatime"));
                assert!(line(path).2.starts_with(&format!("tmpfs tmpfs {state}")), "{}", line(path).2);
            }
        })
        .expect("steps");
}
