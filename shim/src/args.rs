//! The command line that containerd calls us with: Go's `flag` syntax.

use std::{ffi::OsString, path::PathBuf};

use thiserror::Error;

/// What we were called for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a shim, or find the one that serves already, and print its address.
    Start,
    /// Remove what a shim that is gone has left of one container.
    Delete,
    /// Say what this runtime can do.
    Info,
    /// Say which version this is.
    Version,
    /// Be the shim: no action, or one we do not know.
    #[default]
    Serve,
}

/// The flags, by containerd's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's gRPC address, exactly as it is configured there.
    pub(crate) address: String,
    /// Only given to `delete`, where it is also the working directory.
    pub(crate) bundle: Option<PathBuf>,
    /// Listen here instead of on descriptor 3.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) debug: bool,
}

/// A command line that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Mistake {
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    #[error("unknown flag -{0}")]
    Unknown(String),
    #[error("flag -{0} needs a value")]
    NoValue(String),
    #[error("flag -{0} is true or false, not {1:?}")]
    NotBool(String, String),
    #[error("flag -{0} must be given and not be empty")]
    Missing(&'static str),
    #[error("flag -id is a name, not {0:?}")]
    Id(String),
}

impl Args {
    /// Reads the arguments that follow the program's name. One or two dashes, `-flag value` or `-flag=value`, a boolean
    /// bare or `-flag=value`; the first argument that is no flag is the action, and what follows it is ignored.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Mistake> {
        let mut args = Self::default();
        let (mut info, mut version) = (false, false);
        let mut rest = arguments.into_iter().map(|argument| argument.into_string().map_err(Mistake::NotText));
        while let Some(argument) = rest.next() {
            let argument = argument?;
            let Some(flag) = flag(&argument)? else {
                // After a bare `--` the action comes as the next one.
                let action = if argument == "--" { rest.next().transpose()?.unwrap_or_default() } else { argument };
                args.action = match action.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => Action::Serve,
                };
                break;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => args.debug = boolean(name, given)?,
                "info" => info = boolean(name, given)?,
                "v" | "version" => version = boolean(name, given)?,
                _ => {
                    let mut value = || match given.clone() {
                        Some(value) => Ok(value),
                        None => rest.next().transpose()?.ok_or_else(|| Mistake::NoValue(name.to_owned())),
                    };
                    match name {
                        "namespace" => args.namespace = value()?,
                        "id" => args.id = value()?,
                        "address" => args.address = value()?,
                        "bundle" => args.bundle = Some(value()?.into()).filter(|path: &PathBuf| path != ""),
                        "socket" => args.socket = Some(value()?.into()).filter(|path: &PathBuf| path != ""),
                        // The way to publish events by running containerd, which we have no use for.
                        "publish-binary" => drop(value()?),
                        _ => return Err(Mistake::Unknown(name.to_owned())),
                    }
                }
            }
        }
        match (version, info) {
            (true, _) => args.action = Action::Version,
            (false, true) => args.action = Action::Info,
            (false, false) => args.check()?,
        }
        Ok(args)
    }

    fn check(&self) -> Result<(), Mistake> {
        for (name, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(Mistake::Missing(name));
            }
        }
        // It becomes part of paths.
        if self.id.contains('/') || self.id == "." || self.id == ".." {
            return Err(Mistake::Id(self.id.clone()));
        }
        Ok(())
    }
}

/// The argument without its dashes, or `None` if it ends the flags.
fn flag(argument: &str) -> Result<Option<&str>, Mistake> {
    let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else { return Ok(None) };
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    match flag.chars().next() {
        None => Ok(None),
        Some('-' | '=') => Err(Mistake::Syntax(argument.to_owned())),
        Some(_) => Ok(Some(flag)),
    }
}

/// Go's spellings of a boolean.
fn boolean(name: &str, given: Option<String>) -> Result<bool, Mistake> {
    match given.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(Mistake::NotBool(name.to_owned(), other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Mistake> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    fn base(action: Action) -> Args {
        Args {
            action,
            namespace: "k8s.io".into(),
            id: "web-1".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Args::default()
        }
    }

    const BASE: &str = "-namespace k8s.io -address /run/containerd/containerd.sock -id web-1";

    #[test]
    fn containerd_calls_start_delete_and_the_daemon() {
        assert_eq!(parse(&format!("{BASE} -publish-binary /usr/bin/containerd start")), Ok(base(Action::Start)));
        let args = Args { bundle: Some("/run/b/web-1".into()), debug: true, ..base(Action::Delete) };
        assert_eq!(parse(&format!("{BASE} -bundle /run/b/web-1 -debug delete")), Ok(args));
        assert_eq!(parse(BASE), Ok(base(Action::Serve)));
        assert_eq!(parse(&format!("{BASE} -bundle= whatever -nonsense")), Ok(base(Action::Serve)));
    }

    #[test]
    fn go_takes_either_dash_and_either_form() {
        for line in [
            "--namespace=k8s.io --address /run/containerd/containerd.sock -id=web-1 start",
            "-id web-1 -namespace x -namespace k8s.io -debug -debug=F -address=/run/containerd/containerd.sock -- start",
            "-id web-1 -namespace k8s.io -address /run/containerd/containerd.sock start -debug",
        ] {
            assert_eq!(parse(line), Ok(base(Action::Start)), "{line}");
        }
        assert_eq!(parse("-namespace k8s.io -address=a=b -id web-1").map(|args| args.address), Ok("a=b".into()));
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        for line in ["-v", "--v", "-version", "-v=true", "-v start", "-info -v"] {
            assert_eq!(parse(line).map(|args| args.action), Ok(Action::Version), "{line}");
        }
        assert_eq!(parse("-info").map(|args| args.action), Ok(Action::Info));
        assert_eq!(parse("-info=0 -v=0 start"), Err(Mistake::Missing("namespace")));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (line, text) in [
            ("", "flag -namespace must be given and not be empty"),
            ("-namespace k8s.io start", "flag -id must be given and not be empty"),
            ("-namespace k8s.io -id a/b start", "flag -id is a name, not \"a/b\""),
            ("-namespace k8s.io -id .. delete", "flag -id is a name, not \"..\""),
            ("-namespace", "flag -namespace needs a value"),
            ("-name k8s.io", "unknown flag -name"),
            ("---v", "bad flag syntax: ---v"),
            ("-=v", "bad flag syntax: -=v"),
            ("-debug=maybe", "flag -debug is true or false, not \"maybe\""),
        ] {
            assert_eq!(parse(line).map_err(|mistake| mistake.to_string()), Err(text.to_owned()), "{line}");
        }
    }
}
