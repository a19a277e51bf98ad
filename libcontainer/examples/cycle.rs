//! Creates, starts, awaits and removes containers of one bundle in this process, and says how long a cycle takes.
//!
//! `cycle BUNDLE COUNT`: the bundle's program must end by itself.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libcontainer::host::Host;
use libcontainer::plan::{Plan, Request};
use libcontainer::run::{Into, Io, Launch, Progress, Wake};
use libcontainer::sys::wait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bundle = PathBuf::from(args.next().context("usage: cycle BUNDLE COUNT")?).canonicalize()?;
    let count: usize = args.next().context("usage: cycle BUNDLE COUNT")?.parse()?;
    let host = Host::detect()?;
    let mut times = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        cycle(&bundle, &host, number)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let micros = |time: Option<&Duration>| time.map_or(0, Duration::as_micros);
    println!("{count} cycles: p50 {} us, p99 {} us", micros(times.get(count / 2)), micros(times.get(count * 99 / 100)));
    Ok(())
}

fn cycle(bundle: &std::path::Path, host: &Host, number: usize) -> Result<()> {
    let spec = libcontainer::spec::read(bundle)?;
    let request = Request {
        id: format!("cycle-{}-{number}", std::process::id()),
        bundle: bundle.to_owned(),
        rootfs: bundle.join("rootfs"),
        no_pivot: false,
        no_new_keyring: false,
        preserve_fds: 0,
        systemd: None,
    };
    let plan = Plan::create(&spec, host, &request)?;
    let io = Io::Fds {
        stdin: io::stdin().as_fd().try_clone_to_owned()?,
        stdout: io::stdout().as_fd().try_clone_to_owned()?,
        stderr: io::stderr().as_fd().try_clone_to_owned()?,
    };
    let mut launch = Launch::begin(plan, io, Into::New { host, gate: None })?;
    loop {
        match launch.advance(Wake::Readable)? {
            Progress::Running => break,
            Progress::AtGate => {
                launch.start();
                continue;
            }
            Progress::Waiting => {}
        }
        let Some(wire) = launch.wants().readable else { bail!("the container failed") };
        poll(&mut [PollFd::new(wire, PollFlags::POLLIN)], PollTimeout::NONE)?;
    }
    if let Some(timeline) = launch.timeline().filter(|_| number == 0) {
        for span in timeline.spans() {
            let took = span.end.map_or(0, |end| end.saturating_sub(span.begin).as_micros());
            let what = launch.plan().to_string();
            println!("{took:>6} us  {}", what.lines().nth(span.step).unwrap_or_default());
        }
    }
    let mut launched = launch.into_launched()?;
    wait::child(launched.pidfd.as_fd())?;
    if let Some(cgroup) = &mut launched.cgroup {
        cgroup.remove()?;
    }
    Ok(())
}
