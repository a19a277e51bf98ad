//! How the supervisor is configured: flags over the file over defaults, all checked before anything is done.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use log::LevelFilter;
use serde::Deserialize;

use crate::paths::Paths;

/// What the supervisor runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What ends with the machine's uptime.
    pub state: PathBuf,
    /// What outlives it.
    pub root: PathBuf,
    /// The socket.
    pub address: PathBuf,
    /// What is logged.
    pub log_level: LevelFilter,
    /// `oom_score_adj` of the supervisor (proc_pid_oom_score_adj(5)); `None` leaves it as it is.
    pub oom_score: Option<i32>,
    /// Adopt the shims, and what is left of a shim that was killed.
    pub subreaper: bool,
    /// Where metrics are served, if they are.
    pub metrics: Option<MetricsAddress>,
    /// The shim's binary; `None` for the one beside ours, or on the PATH.
    pub shim: Option<PathBuf>,
    /// What is kept of events.
    pub journal: Journal,
    /// What is kept of a container's output, unless its client says otherwise.
    pub log: Log,
    /// How containers are run, unless their client says otherwise.
    pub runtime: Runtime,
}

/// Bounds of the event journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Bytes.
    pub max_size: u64,
    /// Of the oldest event.
    pub max_age: Duration,
}

/// Bounds of a container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Bytes in one file.
    pub max_size: u64,
    /// How many files.
    pub max_files: u32,
}

/// The runtime options that make sense for every container (containerd.runc.v1.Options).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Let systemd make the cgroups.
    pub systemd_cgroup: bool,
    /// Move the root filesystem over the old one rather than pivot to it, for hosts that run from an initramfs.
    pub no_pivot_root: bool,
    /// Leave containers in the shim's session keyring.
    pub no_new_keyring: bool,
    /// The cgroup that shims move to.
    pub shim_cgroup: String,
}

/// Where metrics are served. Never to other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address and port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // As a URL, and without the slashes.
            return absolute(Path::new(path.strip_prefix("//").unwrap_or(path))).map(Self::Unix);
        }
        let address: SocketAddr =
            text.parse().map_err(|_| format!("{text:?} is neither IP:PORT nor unix:/PATH, such as 127.0.0.1:9323"))?;
        if !address.ip().is_loopback() {
            return Err(format!("{address} can be reached from other machines; use 127.0.0.1, [::1] or unix:/PATH"));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a user gave on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML); it must exist when it is named
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for what ends with the machine's uptime
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder for the journal and the logs
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The socket
    #[arg(long, value_name = "PATH")]
    pub address: Option<PathBuf>,
    /// off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LevelFilter>,
    /// Serve metrics on a loopback IP:PORT or unix:/PATH
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<MetricsAddress>,
    /// The shim's binary
    #[arg(long, value_name = "FILE")]
    pub shim: Option<PathBuf>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no file, or it cannot be read.
    #[error("read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that is not understood.
    #[error("the configuration {}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What, and where.
        what: String,
    },
    /// A flag, or a default.
    #[error("{0}")]
    Flag(String),
}

/// The file. Everything in it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    state: Option<PathBuf>,
    root: Option<PathBuf>,
    address: Option<PathBuf>,
    log_level: Option<Text<LevelFilter>>,
    oom_score: Option<i32>,
    subreaper: Option<bool>,
    metrics: Option<Text<MetricsAddress>>,
    shim: Option<PathBuf>,
    journal: JournalFile,
    log: LogFile,
    runtime: Runtime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JournalFile {
    max_size: Option<Size>,
    max_age: Option<Text<humantime::Duration>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogFile {
    max_size: Option<Size>,
    max_files: Option<u32>,
}

/// All keys there are, for who mistypes one. A test keeps it equal to what [`File`] takes.
pub(crate) const KEYS: [&str; 16] = [
    "state",
    "root",
    "address",
    "log_level",
    "oom_score",
    "subreaper",
    "metrics",
    "shim",
    "journal.max_size",
    "journal.max_age",
    "log.max_size",
    "log.max_files",
    "runtime.systemd_cgroup",
    "runtime.no_pivot_root",
    "runtime.no_new_keyring",
    "runtime.shim_cgroup",
];

/// A value written as a string.
#[derive(Debug)]
struct Text<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map(Text).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

/// Bytes: a number, or a string with a unit such as "64MiB".
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number of bytes, or a string such as \"64MiB\"")]
enum Size {
    Bytes(u64),
    Text(Text<bytesize::ByteSize>),
}

impl Size {
    fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => *bytes,
            Self::Text(Text(size)) => size.0,
        }
    }
}

impl Config {
    /// Reads the file, if there is one, and lays the flags over it.
    ///
    /// # Errors
    /// When a file that was named cannot be read, or something in it or in the flags is not understood. An unknown key is
    /// such an error: it may be a mistyped one that somebody relies on.
    pub fn read(flags: &Flags, paths: &Paths) -> Result<Self, ConfigError> {
        let path = flags.config.as_ref().unwrap_or(&paths.config);
        let file = match fs::read_to_string(path) {
            Ok(text) => File::parse(&text).map_err(|what| ConfigError::Content { path: path.clone(), what })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && flags.config.is_none() => File::default(),
            Err(source) => return Err(ConfigError::Read { path: path.clone(), source }),
        };
        Self::lay(flags, file, paths).map_err(ConfigError::Flag)
    }

    fn lay(flags: &Flags, file: File, paths: &Paths) -> Result<Self, String> {
        let folder = |flag: &Option<PathBuf>, file, default: &Path| {
            absolute(&flag.clone().or(file).unwrap_or_else(|| default.to_owned()))
        };
        let state = folder(&flags.state, file.state, &paths.state)?;
        let config = Self {
            address: folder(&flags.address, file.address, &Paths::socket(&state))?,
            root: folder(&flags.root, file.root, &paths.root)?,
            log_level: flags.log_level.or(file.log_level.map(|level| level.0)).unwrap_or(LevelFilter::Info),
            oom_score: file.oom_score,
            subreaper: file.subreaper.unwrap_or(true),
            metrics: flags.metrics.clone().or(file.metrics.map(|address| address.0)),
            shim: flags.shim.clone().or(file.shim).map(|path| absolute(&path)).transpose()?,
            journal: Journal {
                max_size: file.journal.max_size.map_or(64 << 20, |size| size.bytes()),
                max_age: file.journal.max_age.map_or(Duration::from_secs(7 * 86400), |age| *age.0),
            },
            log: Log {
                max_size: file.log.max_size.map_or(10 << 20, |size| size.bytes()),
                max_files: file.log.max_files.unwrap_or(3),
            },
            runtime: file.runtime,
            state,
        };
        config.check().map(|()| config)
    }

    fn check(&self) -> Result<(), String> {
        /// Smaller, a single event or line might not fit.
        const LEAST: u64 = 64 << 10;
        for (key, size) in [("journal.max_size", self.journal.max_size), ("log.max_size", self.log.max_size)] {
            if size < LEAST {
                return Err(format!("{key} is {size}; the least is 64KiB"));
            }
        }
        if self.log.max_files == 0 {
            return Err("log.max_files is 0; the least is 1".to_owned());
        }
        if self.oom_score.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err("oom_score is not between -1000 and 1000".to_owned());
        }
        Ok(())
    }

    /// What of `new` needs a restart, by key; the rest is taken over.
    pub fn reload(&mut self, new: Self) -> Vec<&'static str> {
        let mut fixed = Vec::new();
        let mut keep = |key, same: bool| fixed.extend((!same).then_some(key));
        keep("state", self.state == new.state);
        keep("root", self.root == new.root);
        keep("address", self.address == new.address);
        keep("subreaper", self.subreaper == new.subreaper);
        keep("metrics", self.metrics == new.metrics);
        *self = Self {
            state: self.state.clone(),
            root: self.root.clone(),
            address: self.address.clone(),
            subreaper: self.subreaper,
            metrics: self.metrics.clone(),
            ..new
        };
        fixed
    }
}

impl File {
    fn parse(text: &str) -> Result<Self, String> {
        let mut unknown = Vec::new();
        // Its own text shows the line and the place in it.
        let said = |error: toml::de::Error| error.to_string().trim_end().to_owned();
        let document = toml::Deserializer::parse(text).map_err(said)?;
        let file = serde_ignored::deserialize(document, |path| unknown.push(path.to_string())).map_err(said)?;
        match unknown.first() {
            Some(key) => Err(format!("there is no key {key:?}; the nearest is {:?}", nearest(key))),
            None => Ok(file),
        }
    }
}

fn nearest(key: &str) -> &'static str {
    let likeness = |known: &&str| {
        // A key that was put in the wrong table is nearer to its own name than to the rest of that table.
        let last = |path: &str| path.rsplit('.').next().map(str::to_owned).unwrap_or_default();
        strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(&last(key), &last(known)))
    };
    KEYS.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or(KEYS[0])
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    if !path.is_absolute() {
        return Err(format!("{:?} is not an absolute path", path.display()));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths { state: "/s".into(), root: "/r".into(), config: "/none".into() }
    }

    fn lay(flags: &Flags, text: &str) -> Result<Config, String> {
        Config::lay(flags, File::parse(text)?, &paths())
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let default = lay(&Flags::default(), "").unwrap();
        assert_eq!((&*default.address, default.journal.max_size), (Path::new("/s/dunnaged.sock"), 64 << 20));
        let text =
            "root = '/file'\nstate = '/state'\nlog_level = 'debug'\n[journal]\nmax_size = '1MiB'\nmax_age = '2h'";
        let flags = Flags { root: Some("/flag".into()), ..Flags::default() };
        let config = lay(&flags, text).unwrap();
        assert_eq!((&*config.root, &*config.state), (Path::new("/flag"), Path::new("/state")));
        assert_eq!(config.address, Path::new("/state/dunnaged.sock"));
        assert_eq!(config.journal, Journal { max_size: 1 << 20, max_age: Duration::from_secs(7200) });
        assert_eq!(config.log_level, LevelFilter::Debug);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (text, near) in [
            ("adress = '/x'", "address"),
            ("[journal]\nmaxsize = 1", "journal.max_size"),
            ("max_files = 7", "log.max_files"),
            ("[runtime]\nSystemdCgroup = true", "runtime.systemd_cgroup"),
        ] {
            let error = lay(&Flags::default(), text).unwrap_err();
            assert!(error.ends_with(&format!("the nearest is {near:?}")), "{error}");
        }
    }

    #[test]
    fn the_keys_are_those_that_a_file_may_have() {
        for key in KEYS {
            let (table, key) = key.split_once('.').map_or((String::new(), key), |(t, k)| (format!("[{t}]\n"), k));
            // Of a wrong type, each is an error of its own and never one of an unknown key.
            let error = lay(&Flags::default(), &format!("{table}{key} = [[]]")).unwrap_err();
            assert!(!error.contains("no key"), "{error}");
        }
    }

    #[test]
    fn the_sample_has_every_key_at_its_default() {
        let key = |line: &&str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_lowercase()));
        let uncommented = |line| if key(&line) { &line[1..] } else { line };
        let text: Vec<&str> = crate::command::SAMPLE.lines().map(uncommented).collect();
        let text = text.join("\n");
        let mut keys = Vec::new();
        for (name, value) in text.parse::<toml::Table>().unwrap() {
            match value {
                toml::Value::Table(table) => keys.extend(table.keys().map(|key| format!("{name}.{key}"))),
                _ => keys.push(name),
            }
        }
        keys.sort();
        let mut known = KEYS.map(str::to_owned);
        known.sort();
        assert_eq!(keys, known);

        let paths = Paths::of(true, |_| None).unwrap();
        let read = |text: &str| Config::lay(&Flags::default(), File::parse(text).unwrap(), &paths).unwrap();
        let mut sample = read(&text);
        let examples = (sample.oom_score.take(), sample.metrics.take(), sample.shim.take());
        assert!(matches!(examples, (Some(_), Some(_), Some(_))), "{examples:?}");
        assert_eq!(sample, read(""));
        assert_eq!(read(crate::command::SAMPLE), sample, "as it is, it changes nothing");
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for (text, part) in [
            ("metrics = '0.0.0.0:1'", "can be reached from other machines"),
            ("metrics = 'here'", "neither IP:PORT nor unix:/PATH"),
            ("state = 'relative'", "not an absolute path"),
            ("oom_score = 1001", "between -1000 and 1000"),
            ("[log]\nmax_files = 0", "the least is 1"),
            ("[log]\nmax_size = 9", "the least is 64KiB"),
            ("log_level = 'loud'", "loud"),
        ] {
            let error = lay(&Flags::default(), text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_reload_takes_what_it_can_and_names_the_rest() {
        let mut config = lay(&Flags::default(), "").unwrap();
        let new = lay(&Flags::default(), "root = '/other'\nlog_level = 'warn'\n[log]\nmax_files = 9").unwrap();
        assert_eq!(config.reload(new), ["root"]);
        assert_eq!((&*config.root, config.log_level, config.log.max_files), (Path::new("/r"), LevelFilter::Warn, 9));
    }
}
