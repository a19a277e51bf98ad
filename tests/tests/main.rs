//! The end-to-end tests, one file a theme. What they stand on is in the library beside them.

mod budgets;
mod cli_run;
mod cli_view;
mod confinement;
mod exec;
mod exit;
mod failures;
mod hooks;
mod hostile;
mod kill;
mod limits;
mod many;
mod metrics;
mod namespaces;
mod nowait;
mod options;
mod oracle;
mod pause;
mod rootless;
mod sharing;
mod stdio;
mod supervisor;
mod survival;
mod systemd;
mod terminal;
