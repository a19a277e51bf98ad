//! What `-v` and `--mount` say.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::limits::size;

/// A mount that was asked for. The source of a bind mount may be relative to where the command line was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) destination: PathBuf,
    pub(crate) what: What,
    pub(crate) read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A folder or file of the host.
    Bind { source: PathBuf, recursive: bool, propagation: String },
    /// A new folder in memory, with options of tmpfs(5).
    Tmpfs { options: Vec<String> },
}

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// `-v SOURCE:DESTINATION[:OPTIONS]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume(pub(crate) Wanted);

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Volume, String> {
        let (source, rest) = match text.split_once(':') {
            Some((source, rest)) if !source.is_empty() => (source, rest),
            _ => return Err(format!("{text:?} is not SOURCE:DESTINATION[:OPTIONS]")),
        };
        let (destination, options) = rest.split_once(':').unwrap_or((rest, ""));
        if !source.starts_with(['/', '.']) {
            return Err(format!(
                "{source:?} would be a volume with a name, which there are none of; name a folder: ./{source}"
            ));
        }
        let mut wanted = bind(source, destination)?;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match (option, &mut wanted.what) {
                ("ro", _) => wanted.read_only = true,
                ("rw", _) => wanted.read_only = false,
                (option, What::Bind { propagation, .. }) if PROPAGATIONS.contains(&option) => {
                    option.clone_into(propagation)
                }
                _ => return Err(format!("unknown option {option:?}: ro, rw, or one of {}", PROPAGATIONS.join(", "))),
            }
        }
        Ok(Volume(wanted))
    }
}

/// `--mount type=bind|tmpfs,…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount(pub(crate) Wanted);

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Mount, String> {
        let (mut kind, mut source, mut destination, mut read_only) = ("bind", None, None, false);
        let (mut propagation, mut recursive, mut tmpfs) = ("rprivate", true, Vec::new());
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            match key {
                "type" => kind = value,
                "source" | "src" => source = Some(value),
                "destination" | "dst" | "target" => destination = Some(value),
                "readonly" | "ro" => read_only = truth(field, value)?,
                "bind-propagation" if PROPAGATIONS.contains(&value) => propagation = value,
                "bind-propagation" => return Err(format!("{value:?} is none of {}", PROPAGATIONS.join(", "))),
                "bind-nonrecursive" => recursive = !truth(field, value)?,
                "tmpfs-size" => tmpfs.push(format!("size={}", size(value)?)),
                "tmpfs-mode" if value.chars().all(|digit| digit.is_digit(8)) => tmpfs.push(format!("mode={value}")),
                _ => return Err(format!("unknown field {field:?} of a mount")),
            }
        }
        let destination = destination.ok_or_else(|| format!("{text:?} has no destination=/PATH"))?;
        let wanted = match (kind, source) {
            ("bind", Some(source)) if !source.is_empty() && tmpfs.is_empty() => {
                let mut wanted = bind(source, destination)?;
                wanted.what = What::Bind { source: source.into(), recursive, propagation: propagation.to_owned() };
                wanted
            }
            ("bind", Some(_)) => return Err(format!("{text:?}: fields of a tmpfs in a bind mount")),
            ("bind", None) => return Err(format!("{text:?} has no source=PATH")),
            ("tmpfs", None) => {
                let what = What::Tmpfs { options: tmpfs };
                Wanted { destination: absolute(destination)?, what, read_only: false }
            }
            ("tmpfs", Some(_)) => return Err(format!("{text:?}: a tmpfs has no source")),
            _ => return Err(format!("there are no mounts of type {kind:?}: bind or tmpfs")),
        };
        Ok(Mount(Wanted { read_only, ..wanted }))
    }
}

fn bind(source: &str, destination: &str) -> Result<Wanted, String> {
    let what = What::Bind { source: source.into(), recursive: true, propagation: "rprivate".to_owned() };
    Ok(Wanted { destination: absolute(destination)?, what, read_only: false })
}

fn absolute(destination: &str) -> Result<PathBuf, String> {
    let path = Path::new(destination);
    let climbs = path.components().any(|component| component == Component::ParentDir);
    if !path.is_absolute() || climbs || path == Path::new("/") {
        return Err(format!("{destination:?} is no absolute path below / in the container"));
    }
    Ok(path.components().collect())
}

fn truth(field: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{field:?} is neither true nor false")),
    }
}

impl Wanted {
    /// What of the host it shows.
    pub(crate) fn source(&self, cwd: &Path) -> Option<PathBuf> {
        match &self.what {
            What::Bind { source, .. } => Some(cwd.join(source).components().collect()),
            What::Tmpfs { .. } => None,
        }
    }

    /// As the runtime-spec has it. Relative sources count from `cwd`.
    pub(crate) fn mount(&self, cwd: &Path) -> oci_spec::runtime::Mount {
        let mut mount = oci_spec::runtime::Mount::default();
        mount.set_destination(self.destination.clone());
        let mut options: Vec<String>;
        match &self.what {
            What::Bind { recursive, propagation, .. } => {
                options = vec![if *recursive { "rbind" } else { "bind" }.to_owned(), propagation.clone()];
                if self.read_only {
                    // With what is mounted below, or it would not be what was asked for.
                    options.push(if *recursive { "rro" } else { "ro" }.to_owned());
                }
                mount.set_typ(Some("bind".to_owned())).set_source(self.source(cwd));
            }
            What::Tmpfs { options: given } => {
                options = ["nosuid", "nodev", "noexec"].map(ToOwned::to_owned).to_vec();
                options.extend(given.iter().cloned());
                options.extend(self.read_only.then(|| "ro".to_owned()));
                mount.set_typ(Some("tmpfs".to_owned())).set_source(Some("tmpfs".into()));
            }
        }
        mount.set_options(Some(options));
        mount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(wanted: &Wanted) -> String {
        let mount = wanted.mount(Path::new("/cwd"));
        let text = |path: &PathBuf| path.display().to_string();
        let (source, options) = (mount.source().as_ref().map(text), mount.options().as_ref().map(|o| o.join(",")));
        format!("{} {} {}", source.unwrap_or_default(), text(mount.destination()), options.unwrap_or_default())
    }

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("/a:/b", "/a /b rbind,rprivate"),
            ("./a:/b:ro", "/cwd/a /b rbind,rprivate,rro"),
            ("/a/:/b/:rslave,rw", "/a /b rbind,rslave"),
        ] {
            assert_eq!(line(&text.parse::<Volume>().unwrap().0), expected);
        }
        for (text, part) in [
            ("name:/b", "volume with a name"),
            ("/a", "is not SOURCE:DESTINATION"),
            (":/b", "is not SOURCE:DESTINATION"),
            ("/a:b", "no absolute path"),
            ("/a:/", "no absolute path"),
            ("/a:/b/../c", "no absolute path"),
            ("/a:/b:rx", "unknown option \"rx\""),
        ] {
            let error = text.parse::<Volume>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn mounts_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("type=bind,src=/a,dst=/b,readonly", "/a /b rbind,rprivate,rro"),
            ("source=a,target=/b,bind-nonrecursive,ro=true", "/cwd/a /b bind,rprivate,ro"),
            ("src=/a,dst=/b,ro=false,bind-propagation=rshared", "/a /b rbind,rshared"),
            ("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777", "tmpfs /t nosuid,nodev,noexec,size=1048576,mode=1777"),
        ] {
            assert_eq!(line(&text.parse::<Mount>().unwrap().0), expected);
        }
        for (text, part) in [
            ("type=volume,src=a,dst=/b", "no mounts of type \"volume\""),
            ("src=/a", "no destination"),
            ("dst=/a", "no source"),
            ("type=tmpfs,src=/a,dst=/b", "has no source"),
            ("src=/a,dst=/b,tmpfs-size=1m", "fields of a tmpfs"),
            ("src=/a,dst=/b,ro=maybe", "neither true nor false"),
            ("src=/a,dst=/b,colour=red", "unknown field"),
        ] {
            let error = text.parse::<Mount>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
