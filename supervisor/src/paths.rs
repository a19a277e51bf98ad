//! Where the supervisor keeps things: for root where daemons do, for an ordinary user in folders of their own.

use std::{
    env,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

/// The name of the socket in the state folder.
pub const SOCKET: &str = "dunnaged.sock";

/// The folders that are used unless flags or the configuration name others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What ends with the machine's uptime: the socket, the address book, the bundles.
    pub state: PathBuf,
    /// What outlives it: the journal and the logs.
    pub root: PathBuf,
    /// The configuration file, which need not exist.
    pub config: PathBuf,
}

/// Why there are no such folders for this user.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "${0} is not set: log in with a session of your own (ssh, or machinectl shell USER@), or set it to a folder of yours"
)]
pub struct NoPaths(&'static str);

impl Paths {
    /// Those of the user we run as.
    ///
    /// # Errors
    /// When an ordinary user has no runtime folder (`XDG_RUNTIME_DIR`) or no home.
    pub fn of_this_user() -> Result<Self, NoPaths> {
        Self::of(geteuid().is_root() && !in_rootless(), |name| env::var_os(name).map(PathBuf::from))
    }

    pub(crate) fn of(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, NoPaths> {
        if root {
            return Ok(Self {
                state: "/run/dunnage/supervisor".into(),
                root: "/var/lib/dunnage".into(),
                config: "/etc/dunnage/dunnaged.toml".into(),
            });
        }
        // As the XDG base directory specification has it, a relative path there is none.
        let folder = |name| variable(name).filter(|path| path.is_absolute());
        let home = || folder("HOME").ok_or(NoPaths("HOME"));
        let or_home = |name, below: &str| folder(name).map_or_else(|| Ok(home()?.join(below)), Ok);
        Ok(Self {
            state: folder("XDG_RUNTIME_DIR").ok_or(NoPaths("XDG_RUNTIME_DIR"))?.join("dunnage/supervisor"),
            root: or_home("XDG_DATA_HOME", ".local/share")?.join("dunnage"),
            config: or_home("XDG_CONFIG_HOME", ".config")?.join("dunnage/dunnaged.toml"),
        })
    }

    /// The socket of a supervisor with this state folder.
    pub fn socket(state: &Path) -> PathBuf {
        state.join(SOCKET)
    }
}

/// Whether we are root only in a user namespace of an ordinary user's, whose folders are that user's.
fn in_rootless() -> bool {
    env::var_os(ROOTLESS).is_some()
}

/// Set in a supervisor that an ordinary user started, in its user namespace.
pub const ROOTLESS: &str = "DUNNAGE_ROOTLESS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_users_have_folders_of_their_own() {
        let none = |_: &str| None;
        assert_eq!(Paths::of(true, none).unwrap().state, Path::new("/run/dunnage/supervisor"));
        assert_eq!(Paths::of(false, none), Err(NoPaths("XDG_RUNTIME_DIR")));
        let user = |name: &str| match name {
            "XDG_RUNTIME_DIR" => Some("/run/user/7".into()),
            "HOME" => Some("/home/seven".into()),
            "XDG_CONFIG_HOME" => Some("relative".into()),
            _ => None,
        };
        let paths = Paths::of(false, user).unwrap();
        assert_eq!(paths.state, Path::new("/run/user/7/dunnage/supervisor"));
        assert_eq!(paths.root, Path::new("/home/seven/.local/share/dunnage"));
        assert_eq!(paths.config, Path::new("/home/seven/.config/dunnage/dunnaged.toml"));
    }
}
