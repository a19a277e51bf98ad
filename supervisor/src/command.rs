//! `dunnaged`'s command line, of which its manual page is made.

use crate::config::{self, Flags};

/// Knows where the shims are and relays what they say; the containers do not need it to live
#[derive(Debug, clap::Parser)]
#[command(name = "dunnaged", version, after_help = help())]
pub struct Args {
    /// What the configuration is read with.
    #[command(flatten)]
    pub flags: Flags,
    /// Check the configuration, say who we are, and end
    #[arg(long)]
    pub check: bool,
}

/// The configuration file, with every key.
pub const SAMPLE: &str = include_str!("../systemd/dunnaged.toml");

fn help() -> String {
    let mut text =
        "Configuration: /etc/dunnage/dunnaged.toml, an ordinary user's ~/.config/dunnage/dunnaged.toml; flags come \
                    before it. Its keys (`dunnage man dunnaged` explains each):"
            .to_owned();
    for key in config::KEYS {
        text += "\n  ";
        text += key;
    }
    text
}
