//! `start`: makes sure that a shim serves this container, or its pod, and prints where.
//!
//! Everything that can fail comes before the daemon is there. stdout and stderr are one buffer to containerd, so nothing
//! but the address is printed, or else the reason why there is none.

use std::{
    collections::BTreeMap,
    env,
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::{ffi::OsStringExt as _, fs::OpenOptionsExt as _, process::parent_id},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use libcontainer::{sealed, sys::process::prctl};
use nix::errno::Errno;
use protobuf::Message as _;
use runtime_v2_api::{
    Any,
    bootstrap::{BootstrapParams, BootstrapResult},
};
use serde::Deserialize;

use crate::{
    address::{self, Socket},
    args::Args,
    log as journal,
    options::Options,
    publish,
    sys::spawn,
};

/// More than this on stdin is not from containerd.
pub(crate) const LONGEST_INPUT: u64 = 10 << 20;
/// The annotations that name the group a container shares its shim with, in the order in which they count.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// The file in the bundle by which containerd finds the shim again after a restart: a plain address in every release.
pub(crate) const ADDRESS: &str = "address";

/// Starts or finds the shim for the bundle that is our working directory.
pub(crate) fn start(args: &Args) -> Result<()> {
    // The daemon gets its socket in descriptor 3, so nothing that we open from here on may be there. If it was open
    // already, then nothing will be either, and that one is not used.
    let _three = File::open("/dev/null").context("open /dev/null")?;
    let bundle = env::current_dir().context("find the bundle, which is the working directory")?;
    journal::init(args, &bundle, false)?;

    let mut input = Vec::new();
    io::stdin().take(LONGEST_INPUT).read_to_end(&mut input).context("read stdin")?;
    let input = Input::read(&input, args)?;
    let options = Options::read(&input.options)?;
    let group = group(&bundle, &args.id)?;
    // The daemon reads it, but only here is somebody listening.
    publish::address()?;

    let path = address::socket_path(&input.socket_dir, &args.address, &args.namespace, &group);
    let address = format!("unix://{}", path.to_str().context("the socket's path is not UTF-8")?);
    let Socket::Ours(listener) = address::take(&path)? else {
        log::debug!("a shim serves {group} already, at {address}");
        write_address(&bundle, &address)?;
        return print(&input.answer(address)?);
    };

    let socket = OnFailure(Some(|| fs::remove_file(&path)));
    write_address(&bundle, &address)?;
    // All three are inherited, so they are set before there is a daemon, rather than on one that already serves.
    if env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        share_core_with_nobody().context("SCHED_CORE: get a core scheduling cookie")?;
    }
    if !options.shim_cgroup.is_empty() {
        join_cgroup(&options.shim_cgroup)?;
    }
    set_oom_score()?;

    let program = sealed::binary().context("seal our own binary against containers")?;
    let mut daemon = spawn::daemon(&program, argv(args)?, environment(), &listener).context("execute the shim")?;
    let process = OnFailure(Some(|| daemon.kill().and_then(|()| daemon.wait()).map(drop)));
    print(&input.answer(address)?)?;
    process.keep();
    socket.keep();
    Ok(())
}

/// Undoes something, unless it is kept.
struct OnFailure<F: FnOnce() -> io::Result<()>>(Option<F>);

impl<F: FnOnce() -> io::Result<()>> OnFailure<F> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce() -> io::Result<()>> Drop for OnFailure<F> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|undo| undo()) {
            log::warn!("clean up after a failed start: {error}");
        }
    }
}

/// What containerd tells `start` on stdin.
#[derive(Debug, PartialEq)]
struct Input {
    options: Any,
    socket_dir: PathBuf,
    /// It is 2.3 or later, which is the only one that can be told from the others.
    bootstrap: bool,
}

impl Input {
    /// containerd 2.3 and later send BootstrapParams; before that, it is the bare options, or nothing if there are none.
    ///
    /// Each can be decoded as the other. What tells them apart is that params repeat the id and the namespace.
    fn read(input: &[u8], args: &Args) -> Result<Self> {
        let params = BootstrapParams::parse_from_bytes(input)
            .ok()
            .filter(|params| params.instance_id == args.id && params.namespace == args.namespace);
        let Some(params) = params else {
            let options = Any::parse_from_bytes(input).context("decode the options on stdin")?;
            return Ok(Self { options, socket_dir: address::SOCKET_DIR.into(), bootstrap: false });
        };
        let mut options = params.extensions.into_iter().filter_map(|extension| extension.value.into_option());
        // What else may come this way one day is not about how containers run.
        let options = options.find(|any| any.type_url.ends_with(".Options")).unwrap_or_default();
        let socket_dir = params.socket_dir.filter(|dir| !dir.is_empty());
        let socket_dir = socket_dir.map_or(address::SOCKET_DIR.into(), PathBuf::from);
        Ok(Self { options, socket_dir, bootstrap: true })
    }

    /// What to print. A bare address is what every containerd takes; but one that takes more then knows of Task v3, and
    /// starts no `start` for the other containers of a pod.
    fn answer(&self, address: String) -> Result<Vec<u8>> {
        if !self.bootstrap {
            return Ok(address.into_bytes());
        }
        let result = BootstrapResult { version: 3, address, protocol: "ttrpc".to_owned(), ..Default::default() };
        result.write_to_bytes().context("encode the answer")
    }
}

fn print(answer: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(answer).and_then(|()| stdout.flush()).context("write to stdout")
}

/// The name of the group that the container shares a shim with, or its own if it has none.
fn group(bundle: &Path, id: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Annotated {
        annotations: Option<BTreeMap<String, String>>,
    }
    let config = match fs::read(bundle.join("config.json")) {
        Ok(json) => serde_json::from_slice::<Annotated>(&json).context("read annotations from config.json")?,
        // A sandbox may have no spec.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Annotated { annotations: None },
        Err(error) => return Err(error).context("read config.json"),
    };
    let annotations = config.annotations.unwrap_or_default();
    let group = GROUPS.iter().find_map(|name| annotations.get(*name)).map(String::as_str).unwrap_or(id);
    Ok(group.to_owned())
}

/// Tells containerd's next life where the shim is. All of it or nothing: it is read by whoever starts in between.
fn write_address(bundle: &Path, address: &str) -> Result<()> {
    let (path, new) = (bundle.join(ADDRESS), bundle.join(".address"));
    let mut options = OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(0o644).open(&new);
    written
        .and_then(|mut file| file.write_all(address.as_bytes()))
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("write {}", path.display()))
}

/// Keeps other people's processes off the sibling of the core that the shim and its containers run on.
fn share_core_with_nobody() -> Result<()> {
    let create = [libc::PR_SCHED_CORE_CREATE as libc::c_ulong, 0, libc::PR_SCHED_CORE_SCOPE_THREAD_GROUP as _, 0];
    prctl(libc::PR_SCHED_CORE, create)?;
    Ok(())
}

/// Joins `cgroup` in every hierarchy that has it.
fn join_cgroup(cgroup: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mut joined = false;
    for root in cgroup_roots(&mounts) {
        let procs = root.join(cgroup.trim_start_matches('/')).join("cgroup.procs");
        match OpenOptions::new().write(true).open(&procs).and_then(|mut file| file.write_all(b"0")) {
            Ok(()) => joined = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("ShimCgroup: write to {}", procs.display())),
        }
    }
    if !joined {
        bail!("ShimCgroup: there is no cgroup {cgroup}, and it must exist before the shim is started");
    }
    Ok(())
}

/// Where the hierarchies are mounted whose root is visible, of either version.
fn cgroup_roots(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, target) = (fields.next()?, fields.next()?);
        (root == "/" && filesystem.starts_with("cgroup")).then(|| PathBuf::from(target))
    })
}

/// Makes the shim a little more likely to be killed for memory than containerd, whose score we read from our parent.
fn set_oom_score() -> Result<()> {
    let parent = format!("/proc/{}/oom_score_adj", parent_id());
    let text = fs::read_to_string(&parent).with_context(|| format!("read {parent}"))?;
    let score: i32 = text.trim().parse().with_context(|| format!("read {parent}"))?;
    let score = (score + 1).clamp(-1000, 1000);
    // In one piece: formatted into the file, the sign is a write of its own, which the kernel takes for a number.
    let text = score.to_string();
    let written = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    match written.and_then(|mut file| file.write_all(text.as_bytes())) {
        // Below what we were started with only for who has CAP_SYS_RESOURCE.
        Err(error) if matches!(Errno::from_raw(error.raw_os_error().unwrap_or(0)), Errno::EACCES | Errno::EPERM) => {
            log::debug!("set oom_score_adj to {score}: {error}");
            Ok(())
        }
        answer => answer.with_context(|| format!("set oom_score_adj to {score}")),
    }
}

/// The daemon's command line: no action.
fn argv(args: &Args) -> Result<Vec<CString>> {
    let program = env::args_os().next().unwrap_or_else(|| "containerd-shim-dunnage-v2".into());
    let mut argv = vec![program];
    for (flag, value) in [("-namespace", &args.namespace), ("-id", &args.id), ("-address", &args.address)] {
        argv.extend([flag.into(), value.into()]);
    }
    argv.extend(args.debug.then(|| "-debug".into()));
    argv.into_iter().map(|argument: OsString| Ok(CString::new(argument.into_vec())?)).collect()
}

/// The daemon's environment: ours, but not the door by which containerd tells systemd that it is ready.
fn environment() -> Vec<CString> {
    let variables = env::vars_os().filter(|(name, _)| name != "NOTIFY_SOCKET").map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        variable
    });
    // What came from an environment has no NUL inside.
    variables.filter_map(|variable| CString::new(variable.into_vec()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use protobuf::MessageField;
    use runtime_v2_api::{bootstrap::Extension, pack, runc};

    use super::*;

    fn args() -> Args {
        Args { namespace: "default".into(), id: "web-1".into(), ..Args::default() }
    }

    fn options() -> Any {
        pack(&runc::Options { shim_cgroup: "/shims".into(), ..Default::default() }).unwrap()
    }

    fn extension(any: Any) -> Extension {
        Extension { value: MessageField::some(any), ..Default::default() }
    }

    #[test]
    fn before_2_3_stdin_is_the_options_and_the_answer_an_address() {
        for (stdin, options) in [(vec![], Any::new()), (options().write_to_bytes().unwrap(), options())] {
            let input = Input::read(&stdin, &args()).unwrap();
            assert_eq!(input, Input { options, socket_dir: address::SOCKET_DIR.into(), bootstrap: false });
            assert_eq!(input.answer("unix:///run/s".into()).unwrap(), b"unix:///run/s");
        }
        assert!(Input::read(&[0x0a, 200], &args()).is_err());
    }

    #[test]
    fn since_2_3_stdin_is_params_and_the_answer_a_result() {
        let mut params =
            BootstrapParams { instance_id: "web-1".into(), namespace: "default".into(), ..Default::default() };
        let input = Input::read(&params.write_to_bytes().unwrap(), &args()).unwrap();
        assert_eq!(input, Input { options: Any::new(), socket_dir: address::SOCKET_DIR.into(), bootstrap: true });
        params.socket_dir = Some("/run/x".into());
        let other = Any { type_url: "io.containerd.trace.Context".into(), value: vec![1], ..Any::default() };
        params.extensions = vec![extension(other), extension(options())];
        let input = Input::read(&params.write_to_bytes().unwrap(), &args()).unwrap();
        assert_eq!(input, Input { options: options(), socket_dir: "/run/x".into(), bootstrap: true });
        let answer = BootstrapResult::parse_from_bytes(&input.answer("unix:///run/s".into()).unwrap()).unwrap();
        assert_eq!((answer.version, &*answer.address, &*answer.protocol), (3, "unix:///run/s", "ttrpc"));
    }

    #[test]
    fn options_that_look_like_params_are_not_taken_for_them() {
        // Both begin with two strings.
        let options = Any { type_url: "web-1".into(), value: b"another".to_vec(), ..Any::default() };
        assert!(!Input::read(&options.write_to_bytes().unwrap(), &args()).unwrap().bootstrap);
    }

    #[test]
    fn the_first_annotation_names_the_group() {
        let bundle = tempfile::tempdir().unwrap();
        let group = |json: &str| {
            fs::write(bundle.path().join("config.json"), json).unwrap();
            group(bundle.path(), "web-1").map_err(|error| format!("{error:#}"))
        };
        let [ours, pods] = GROUPS;
        assert_eq!(group(&format!(r#"{{"annotations":{{"{pods}":"pod","{ours}":"ours"}}}}"#)), Ok("ours".into()));
        assert_eq!(group(&format!(r#"{{"annotations":{{"x":"y","{pods}":"pod"}}}}"#)), Ok("pod".into()));
        for none in [r#"{"annotations":{"x":"y"}}"#, r#"{"annotations":null}"#, r#"{"ociVersion":"1.0.2"}"#] {
            assert_eq!(group(none), Ok("web-1".into()));
        }
        assert!(group(r#"{"annotations":[]}"#).unwrap_err().starts_with("read annotations from config.json: "));
        assert!(group("").is_err());
        fs::remove_file(bundle.path().join("config.json")).unwrap();
        assert_eq!(super::group(bundle.path(), "web-1").unwrap(), "web-1");
    }

    #[test]
    fn hierarchies_are_those_mounted_from_their_root() {
        let mountinfo = "\
            30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
            33 30 0:29 /docker/x /mnt/memory rw shared:11 master:1 - cgroup cgroup rw,memory\n";
        let roots: Vec<_> = cgroup_roots(mountinfo).collect();
        assert_eq!(roots, [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup/cpu,cpuacct")]);
    }
}
