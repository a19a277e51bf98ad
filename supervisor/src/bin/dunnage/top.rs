//! `top`: all containers on the whole screen, as they change. What there is to show is asked for each second while
//! somebody looks ([`model`]), and drawn ([`draw`]); keys move and sort ([`keys`]), and none of them changes a container.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use dunnage_supervisor::client::{CallError, Client, within};
use futures::FutureExt;
use futures::future::{Fuse, FusedFuture};
use nix::sys::signal::Signal::{self, SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use runtime_v2_api::Empty;
use runtime_v2_api::supervisor::{ListRequest, UsageRequest};
use tokio::select;
use tokio::time::{MissedTickBehavior, interval};

use self::keys::{Key, keys};
use self::machine::Machine;
use self::model::{Link, Model, Sample};
use self::screen::Screen;
use crate::args::Global;
use crate::paper::Paper;
use crate::session::Session;
use crate::talk::Signals;
use crate::words;

mod draw;
mod keys;
mod machine;
mod model;
mod screen;
#[cfg(test)]
mod tests;

/// From one reading to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// A supervisor answers in milliseconds; one that has not after this is stuck, and somebody has to know.
const PATIENCE: Duration = Duration::from_secs(3);

/// Those that end us, once the terminal is given back.
const ENDING: [Signal; 3] = [SIGTERM, SIGINT, SIGHUP];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

pub(crate) async fn top(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("top needs a terminal; `dunnage stats --no-stream` prints the same numbers anywhere");
    }
    let session = Session::open(global).await?;
    let signals = Signals::of(ENDING.into_iter().chain([SIGWINCH, SIGCONT]))?;
    let mut screen = Screen::open()?;
    show(&session.client, &args, &mut screen, &signals).await
}

async fn show(client: &Client, args: &Args, screen: &mut Screen, signals: &Signals) -> anyhow::Result<ExitCode> {
    let mut model = Model::new(args.all);
    let colours = Paper::of_stdout().colours;
    let mut clock = interval(PERIOD);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = SystemTime::now();
    let mut answer = pin!(Fuse::terminated());
    loop {
        screen.draw(|frame| draw::draw(&mut model, frame, SystemTime::now(), colours))?;
        select! {
            _ = clock.tick() => {
                model.machine(Machine::read()?);
                if answer.is_terminated() {
                    asked = SystemTime::now();
                    answer.set(ask(client, args.all_namespaces).fuse());
                } else if words::since(asked, SystemTime::now()) > PATIENCE {
                    model.silent(asked);
                }
            }
            answered = &mut answer => match answered {
                Ok(sample) => model.take(sample),
                Err(CallError::Gone { .. } | CallError::NotRunning { .. }) => model.away(SystemTime::now()),
                Err(error) => model.link = Link::Failing(error.to_string()),
            },
            typed = screen.typed() => {
                let typed = typed.context("read from the terminal")?;
                anyhow::ensure!(!typed.is_empty(), "the terminal was closed");
                for key in keys(&typed) {
                    if key == Key::Redraw {
                        screen.renew()?;
                    }
                    if !model.key(key) {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
            }
            signal = signals.next() => {
                let signal = signal.context("wait for signals")?;
                if ENDING.iter().any(|ending| *ending as i32 == signal) {
                    // As a shell tells it of who is ended by a signal.
                    return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)));
                }
                screen.renew()?;
            }
        }
    }
}

/// Everything at once. A call fails as soon as the supervisor goes away; the next one waits for it to be back.
async fn ask(client: &Client, all_namespaces: bool) -> Result<Sample, CallError> {
    let request = ListRequest { all_namespaces, ..ListRequest::default() };
    let list = client.call(async |on, context| on.supervisor.list(context, &request).await).await?;
    let version = client.call(async |on, context| on.supervisor.version(context, &Empty::new()).await).await?;
    let living = list.containers.iter().filter(|container| words::lives(container));
    let namespaces: BTreeSet<&str> = living.map(|container| container.namespace.as_str()).collect();
    let mut usages = Vec::new();
    for namespace in namespaces {
        let request = UsageRequest::default();
        let call = client.call(async |on, context| on.supervisor.usage(within(context, namespace), &request).await);
        usages.extend(call.await?.usages.into_iter().map(|usage| (namespace.to_owned(), usage)));
    }
    Ok(Sample { containers: list.containers, usages, version })
}
