//! The judge is judged: what is left behind on purpose is found.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    process::{Command, Stdio},
    time::Duration,
};

use dunnage_tests::case;
use nix::mount::{MsFlags, mount, umount};

/// What the residue check says of the case, in one text.
fn found(c: &dunnage_tests::Case) -> String {
    c.residue_after(Duration::ZERO).join("\n")
}

#[test]
fn nothing_is_found_after_a_plain_run() {
    case(|c| {
        c.run("plain", ["true"]).output().ok();
        assert!(c.residue().is_empty());
    });
}

#[test]
fn a_running_container_is_found_everywhere_it_is() {
    case(|c| {
        c.idle("stays", &[]);
        let all = found(c);
        for part in ["process", "mount on", "cgroup", "socket of stays", "bundle", "containerd has"] {
            let part = if part == "bundle" { "/stays" } else { part };
            assert!(all.contains(part), "no {part:?} in:\n{all}");
        }
    });
}

#[test]
fn each_kind_of_thing_left_behind_is_found() {
    case(|c| {
        let place = c.path("left");
        fs::create_dir(&place).expect("make a folder");
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
        assert!(found(c).contains(&format!("mount on {}", place.display())));
        umount(&place).expect("unmount");

        let group = c.cgroup("left").folder("pids");
        fs::create_dir_all(&group).expect("make a cgroup");
        assert!(found(c).contains(&format!("cgroup {}", group.display())));
        fs::remove_dir(&group).expect("remove the cgroup");

        c.may_leave_socket("left");
        fs::create_dir_all(c.socket("left").parent().expect("a folder")).expect("make the folder of sockets");
        let listener = UnixListener::bind(c.socket("left")).expect("listen");
        drop(listener);
        assert!(found(c).contains("socket of left"));
        fs::remove_file(c.socket("left")).expect("remove the socket");

        fs::create_dir_all(c.bundle("left")).expect("make a bundle");
        assert!(found(c).contains(&format!("file {}", c.bundle("left").display())));
        fs::remove_dir(c.bundle("left")).expect("remove the bundle");

        let state = format!("/run/dunnage-oracle/{}", c.name);
        fs::create_dir_all(format!("{state}/left")).expect("make a folder of state");
        assert!(found(c).contains(&format!("file {state}/left")));
        fs::remove_dir_all("/run/dunnage-oracle").expect("remove the state");

        let mut cat = Command::new("cat");
        cat.env("CASE", &c.name).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = cat.spawn().expect("start a process");
        // Once it answers it has its own memory, where its environment is.
        process.stdin.as_mut().expect("its stdin").write_all(b"x").expect("write to it");
        process.stdout.as_mut().expect("its stdout").read_exact(&mut [0]).expect("read from it");
        assert!(found(c).contains(&format!("process {}", process.id())));
        process.kill().expect("kill it");
        process.wait().expect("wait for it");

        assert_eq!(found(c), "");
    });
}
