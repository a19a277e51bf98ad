//! An ordinary user's supervisor lives in a user namespace in which that user is root, and in a mount namespace that goes
//! with it. So everything below it, shims and containers, works as in a root's world, as far as the kernel lets it.

use std::{
    convert::Infallible,
    env,
    ffi::CString,
    fs,
    io::{Read, Write},
    os::{fd::AsFd, unix::ffi::OsStringExt},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use libcontainer::sys::{
    process::{CloneOptions, Cloned, clone3, exit_now},
    wait::{self, Exit},
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, Uid, execve, getegid, geteuid, getpid},
};

use crate::{paths::ROOTLESS, place};

/// Whether we are an ordinary user who is not in such a namespace yet.
pub fn is_needed() -> bool {
    !geteuid().is_root() && env::var_os(ROOTLESS).is_none()
}

/// Goes into namespaces of our own, and executes this program there anew, in the same process. For a process with one
/// thread, before it has opened anything.
///
/// # Errors
/// When the kernel or the system's configuration forbids it.
pub fn enter() -> Result<Infallible> {
    if let Err(error) = place::take() {
        // Containers do without. Nobody is left to tell if this fails.
        drop(writeln!(std::io::stderr(), "dunnaged: containers will have no limits: {error:#}"));
    }
    // Asked for before: inside, nobody knows any more who we are.
    let (uid, gid) = (geteuid(), getegid());
    let ranges = Ranges::of(uid);
    let (told, mut tell) = std::io::pipe().context("make a pipe")?;
    let helper = match clone3(&CloneOptions { flags: 0, cgroup: None }).context("start a helper")? {
        Cloned::Parent(_, helper) => helper,
        Cloned::Child => {
            // Else it would never end.
            drop(tell);
            exit_now(map_from_outside(told, &ranges, uid, gid.as_raw()))
        }
    };
    let hint = "make a user namespace; this system may forbid it to users (kernel.unprivileged_userns_clone, \
                user.max_user_namespaces, AppArmor): `dunnage doctor` says";
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).context(hint)?;
    tell.write_all(&[1]).context("talk to the helper")?;
    drop(tell);
    if wait::child(helper.as_fd()).context("wait for the helper")? != Exit::Code(0) {
        map_only_ourselves(uid, gid.as_raw())?;
    }
    execute_again()
}

/// The ids that /etc/subuid and /etc/subgid give to a user, each as first and count.
struct Ranges {
    uids: Option<(u32, u32)>,
    gids: Option<(u32, u32)>,
}

impl Ranges {
    fn of(uid: Uid) -> Ranges {
        // Not by getpwuid(3): a static binary would load the system's NSS plugins, which were made for another C library.
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let own = |line: &&str| line.split(':').nth(2).and_then(|number| number.parse().ok()) == Some(uid.as_raw());
        let name = users.lines().find(own).and_then(|line| line.split(':').next());
        let read = |file: &str| {
            let text = fs::read_to_string(file).ok()?;
            range(&text, name, uid.as_raw())
        };
        Ranges { uids: read("/etc/subuid"), gids: read("/etc/subgid") }
    }
}

/// The first range of `NAME-OR-UID:FIRST:COUNT` lines (subuid(5)) that is this user's.
fn range(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let ours = Some(owner) == name || owner.parse() == Ok(uid);
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ours.then_some(range)
    })
}

/// In the helper, which stays outside: writes the maps once our parent is inside. Only the set-uid programs may, for
/// more than one id. The exit code says whether they did.
fn map_from_outside(mut told: std::io::PipeReader, ranges: &Ranges, uid: Uid, gid: u32) -> i32 {
    // Nothing comes when our parent could not go in.
    if told.read_exact(&mut [0]).is_err() {
        return 1;
    }
    let parent = nix::unistd::getppid().to_string();
    let map = |program: &str, own: u32, range: Option<(u32, u32)>| {
        let Some((first, count)) = range else { return false };
        let numbers = [0, own, 1, 1, first, count].map(|number| number.to_string());
        let mut command = Command::new(program);
        command.arg(&parent).args(numbers).stdin(Stdio::null()).stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    // Both or none: with one of them written, the other could not be written from inside.
    i32::from(
        ranges.uids.is_none() || !map("newgidmap", gid, ranges.gids) || !map("newuidmap", uid.as_raw(), ranges.uids),
    )
}

/// What a user may map without anybody's help: their own ids.
fn map_only_ourselves(uid: Uid, gid: u32) -> Result<()> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).with_context(|| format!("write {file} of a user namespace"))
    };
    write("uid_map", format!("0 {uid} 1\n"))?;
    // It may be there already, by newgidmap.
    let mapped = fs::read_to_string("/proc/self/gid_map").context("read gid_map of a user namespace")?;
    if mapped.trim().is_empty() {
        // The kernel's condition: groups that keep somebody out could be dropped otherwise (user_namespaces(7)).
        write("setgroups", "deny".to_owned())?;
        write("gid_map", format!("0 {gid} 1\n"))?;
    }
    Ok(())
}

fn execute_again() -> Result<Infallible> {
    let string = |text: std::ffi::OsString| CString::new(text.into_vec()).context("a NUL in our own arguments");
    let argv = env::args_os().map(string).collect::<Result<Vec<CString>>>()?;
    let mut environment = Vec::new();
    for (mut variable, value) in env::vars_os() {
        variable.push("=");
        variable.push(value);
        environment.push(string(variable)?);
    }
    environment.push(string(format!("{ROOTLESS}={}", getpid()).into())?);
    execve(c"/proc/self/exe", &argv, &environment).context("execute ourselves in the user namespace")
}

/// What the containers of an ordinary user's supervisor, by its pid, go without on this machine, for people.
pub fn shortcomings(supervisor: u32) -> String {
    let supervisor = Pid::from_raw(supervisor.cast_signed());
    let mut missing = Vec::new();
    let map = fs::read_to_string(format!("/proc/{supervisor}/uid_map")).unwrap_or_default();
    if map.lines().count() < 2 {
        missing
            .push("no user but root in containers (needs newuidmap and lines in /etc/subuid and /etc/subgid)".into());
    }
    match place::controllers(supervisor) {
        Some(there) => {
            let lacking =
                ["cpu", "memory", "pids"].into_iter().filter(|name| !there.split_whitespace().any(|one| one == *name));
            let lacking = lacking.collect::<Vec<_>>().join(" and ");
            if !lacking.is_empty() {
                missing.push(format!("no limits of {lacking} (not delegated to users: Delegate= of user@.service)"));
            }
        }
        None => missing.push("no limits, pause or stats (needs cgroup v2 and a systemd user session)".into()),
    }
    missing.push("no writing to the machine's own root".into());
    format!("as an ordinary user: {}", missing.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "root:1:1\nann:100000:65536\n# comment\n1001:300000:65536\nann:500000:1\nbad:x:1\n";
        assert_eq!(range(text, Some("ann"), 1000), Some((100_000, 65536)));
        assert_eq!(range(text, None, 1001), Some((300_000, 65536)));
        assert_eq!(range(text, Some("bad"), 7), None);
        assert_eq!(range("", Some("ann"), 1000), None);
    }
}
