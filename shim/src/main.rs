//! containerd-shim-dunnage-v2: the process between containerd and the containers of one pod.
//!
//! Here is only the way from the command line to what is to be done, and the exit code.

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use nix::sys::prctl;

mod address;
mod args;
mod attach;
mod console;
mod delete;
mod flow;
mod house;
mod info;
mod kept;
mod launch;
mod ledger;
mod log;
mod logger;
mod options;
mod outlet;
mod publish;
mod reap;
mod serve;
mod service;
mod start;
mod stats;
mod stdio;
mod sys;
mod task;
mod trace;

const NAME: &str = env!("CARGO_BIN_NAME");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            drop(writeln!(io::stderr(), "{NAME}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args = args::Args::parse(env::args_os().skip(1))?;
    match args.action {
        args::Action::Start => start::start(&args),
        args::Action::Delete => delete::delete(&args),
        args::Action::Info => info::info(),
        args::Action::Version => {
            writeln!(io::stdout(), "{NAME} {}", env!("CARGO_PKG_VERSION")).context("write to stdout")
        }
        args::Action::Serve => serve(args),
    }
}

/// Becomes the shim, on the socket that `start` left us.
fn serve(args: args::Args) -> anyhow::Result<()> {
    let bundle = env::current_dir().context("find the bundle, which is the working directory")?;
    log::init(&args, &bundle, true)?;
    // Executed by descriptor, older kernels name us after its number.
    prctl::set_name(c"containerd-shim").context("set the process's name")?;
    let listener = match &args.socket {
        Some(path) => runtime_v2_server::listen(path).with_context(|| format!("listen on {}", path.display()))?,
        None => sys::spawn::inherited_listener().context("take the socket in descriptor 3")?,
    };
    let (events, ledger) = (publish::address()?, ledger::Ledger::of_this_process()?);
    let config = serve::Config { namespace: args.namespace, listener, events, ledger };
    serve::serve(config).context("serve")
}
