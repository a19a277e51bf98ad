//! The supervisor: where the shims are, and what they said. Its programs are `dunnaged`, the daemon, and `dunnage`, the
//! command line.

pub mod attend;
mod book;
mod bundle;
mod carry;
mod children;
pub mod client;
pub mod command;
pub mod config;
mod fault;
pub mod fdstore;
mod ground;
pub mod journal;
mod launch;
mod logging;
pub mod metrics;
pub mod paths;
mod place;
mod recover;
pub mod relay;
mod remove;
pub mod rootless;
mod route;
pub mod serve;
pub mod service;
mod shims;
mod socket;
pub mod start;
mod strays;
pub mod sys;
mod traffic;
mod upgrade;
pub mod usage;
pub mod watch;
