//! exec: a further process in a container.

use std::fs;

use anyhow::{Context, bail};
use libcontainer::container::{Container, Status};
use libcontainer::host::Host;
use libcontainer::plan::{ExecRequest, Plan};
use libcontainer::run::{Into, Launch};
use libcontainer::spec;
use oci_spec::runtime::{Capabilities, Capability, Process, Spec};

use crate::args::{Exec, Global};
use crate::drive::Driver;
use crate::lives::{hand_out, io_of, stay};

/// `exec`. Unless detached we stay until the process ends, and end as it does.
pub(crate) fn exec(global: &Global, options: &Exec) -> anyhow::Result<u8> {
    let (preserve_fds, _) = options.streams.preserved()?;
    let path = global.folder(&options.of.id)?;
    let container = Container::load(&path)?;
    match container.status()? {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Creating => bail!("cannot exec in a container that is not created yet"),
        Status::Paused if !options.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => {}
    }
    let init = container.init()?.context("cannot exec in a stopped container")?;
    let spec = spec::read(&path)?;
    let process = process(options, &spec)?;
    let terminal = process.terminal().unwrap_or(false);
    options.streams.check(terminal, options.detach)?;
    let no_new_keyring = container.state().no_new_keyring;
    let request = ExecRequest { id: &options.of.id, spec: &spec, process: &process, no_new_keyring, preserve_fds };
    let plan = Plan::exec(&request, &Host::detect()?)?;
    let cgroup = container.cgroup()?;
    let mut driver = Driver::new()?;
    let mut launch = Launch::begin(plan, io_of(terminal)?, Into::Running { cgroup: &cgroup, init })?;
    driver.drive(&mut launch)?;
    let master = hand_out(&options.streams, &mut launch)?;
    let process = launch.into_launched()?;
    if options.detach { Ok(0) } else { stay(&mut driver, &process, master) }
}

/// The process: from a file, or the container's own with what the command line says instead.
fn process(options: &Exec, spec: &Spec) -> anyhow::Result<Process> {
    if let Some(file) = &options.process {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return spec::process(&text).with_context(|| format!("cannot read {}", file.display()));
    }
    if options.args.is_empty() {
        bail!("what is to be executed? give a program after the container's id, or --process");
    }
    let mut process = spec.process().clone().context("config.json: process: missing")?;
    process.set_args(Some(options.args.clone())).set_terminal(Some(options.tty));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !options.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(options.env.iter().cloned());
        process.set_env(Some(env));
    }
    if let Some(user) = &options.user {
        let (uid, gid) = ids(user).with_context(|| format!("--user {user:?} is not uid[:gid]"))?;
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !options.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&options.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    if !options.cap.is_empty() {
        add_capabilities(&mut process, &options.cap)?;
    }
    Ok(process)
}

fn ids(user: &str) -> anyhow::Result<(u32, Option<u32>)> {
    Ok(match user.split_once(':') {
        Some((uid, gid)) => (uid.parse()?, Some(gid.parse()?)),
        None => (user.parse()?, None),
    })
}

/// Adds to every set but the inheritable one, which would hand them on to programs of other users.
fn add_capabilities(process: &mut Process, names: &[String]) -> anyhow::Result<()> {
    let mut sets = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let capability: Capability = serde_json::from_value(name.as_str().into())
            .with_context(|| format!("--cap {name:?} is not a capability"))?;
        let with = |set: &Option<Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective) = (with(sets.bounding()), with(sets.effective()));
        let (permitted, ambient) = (with(sets.permitted()), with(sets.ambient()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(ambient);
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn of(line: &str) -> anyhow::Result<Process> {
        let Command::Exec(options) = Args::try_parse_from(line.split(' '))?.command else { bail!("not an exec") };
        process(&options, &Spec::default())
    }

    #[test]
    fn what_is_not_said_is_the_containers() {
        let own = Spec::default().process().clone().unwrap();
        let process = of("dunnage-oci exec web-1 ls").unwrap();
        assert_eq!(process.args().as_deref(), Some(["ls".to_owned()].as_slice()));
        assert_eq!((process.env(), process.cwd(), process.capabilities()), (own.env(), own.cwd(), own.capabilities()));
    }

    #[test]
    fn what_is_said_is_added_or_replaces() {
        let process =
            of("dunnage-oci exec -t -u 7:8 -g 9 -e A=1 --cwd /x -c CAP_SYS_ADMIN --no-new-privs web-1 ls").unwrap();
        let user = process.user();
        assert_eq!((user.uid(), user.gid(), user.additional_gids().as_deref()), (7, 8, Some([9].as_slice())));
        assert!(process.env().as_ref().unwrap().contains(&"A=1".to_owned()) && process.terminal() == Some(true));
        let sets = process.capabilities().as_ref().unwrap();
        assert!(sets.effective().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(!sets.inheritable().as_ref().is_some_and(|set| set.contains(&Capability::SysAdmin)));
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for line in ["exec web-1", "exec -u root web-1 ls", "exec -c CAP_FLY web-1 ls", "exec -p /nowhere web-1"] {
            assert!(of(&format!("dunnage-oci {line}")).is_err(), "{line}");
        }
    }
}
