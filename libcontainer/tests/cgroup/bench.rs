//! What the tests of cgroups share: a place to make them in, processes to put there, a look at their files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libcontainer::cgroup::{Cgroup, CgroupError, CgroupPath, FreezerState, Hierarchies, Layout, Limits};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid, gettid};
use oci_spec::runtime::LinuxResources;

/// A cgroup of one test, and the promise that nothing of it is left.
pub(crate) struct Bench {
    pub(crate) layout: Layout,
    pub(crate) path: CgroupPath,
    pub(crate) name: String,
}

impl Bench {
    pub(crate) fn new(test: &str) -> Option<Bench> {
        if !geteuid().is_root() {
            let must = std::env::var("ROOT_TESTS").is_ok_and(|value| value == "must");
            assert!(!must, "{test}: needs root, and ROOT_TESTS=must forbids to skip");
            eprintln!("SKIPPED {test}: needs root");
            return None;
        }
        let name = format!("cgrouptest-{}-{test}", std::process::id());
        let path = CgroupPath::new(Some(Path::new(&format!("/{name}/c"))), "").unwrap();
        Some(Bench { layout: Layout::detect().unwrap(), path, name })
    }

    /// The same machine as if it had no v2 mount, or nothing else. `None` where that would leave nothing.
    pub(crate) fn only(mut self, v2: bool) -> Option<Bench> {
        self.layout.hierarchies = match (self.layout.hierarchies, v2) {
            (Hierarchies::V1 { controllers, .. }, false) => Hierarchies::V1 { controllers, unified: None },
            (Hierarchies::V1 { unified: Some(unified), .. }, true) => Hierarchies::V2(unified),
            (hierarchies @ Hierarchies::V2(_), true) => hierarchies,
            _ => {
                eprintln!("SKIPPED {}: this machine has no such hierarchy", self.name);
                return None;
            }
        };
        Some(self)
    }

    /// The test on the machine as it is, and on each part of it alone.
    pub(crate) fn each(test: &str, run: impl Fn(Bench)) {
        Bench::new(test).into_iter().for_each(&run);
        Bench::new(&format!("{test}-v1")).and_then(|bench| bench.only(false)).into_iter().for_each(&run);
        Bench::new(&format!("{test}-v2")).and_then(|bench| bench.only(true)).into_iter().for_each(&run);
    }

    /// For what only a machine with these controllers in cgroup v2 can show.
    pub(crate) fn has_v2(self, controllers: &[&str]) -> Option<Bench> {
        let lacks = controllers.iter().find(|controller| !self.layout.has(controller));
        if !self.layout.is_v2() || lacks.is_some() {
            eprintln!("SKIPPED {}: this machine has no cgroup v2 with {controllers:?}", self.name);
            return None;
        }
        Some(self)
    }

    pub(crate) fn limits(&self, json: &str) -> Limits {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        Limits::compile(&resources, &self.layout).unwrap()
    }

    /// The limits of an update.
    pub(crate) fn update(&self, json: &str) -> Limits {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        Limits::compile_update(&resources, &self.layout).unwrap()
    }

    pub(crate) fn create(&self, json: &str) -> Cgroup {
        Cgroup::create(&self.path, &self.limits(json), &self.layout).unwrap()
    }

    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        self.path.places(&self.layout).into_iter().map(|place| place.dir).collect()
    }

    /// What exists of this test's directories in all hierarchies, those above the container's own included.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let mounts = self.path.places(&self.layout).into_iter().map(|place| place.mount);
        mounts.map(|mount| mount.join(&self.name)).filter(|dir| dir.exists()).collect()
    }

    pub(crate) fn remove(&self, mut cgroup: Cgroup) {
        // The tests reap what they spawn, but a thread that spawned may still be on its way out.
        soon(|| match cgroup.remove() {
            Ok(()) => true,
            Err(CgroupError::Busy { .. }) => false,
            Err(error) => panic!("{error}"),
        });
        assert_eq!(self.left(), Vec::<PathBuf>::new());
    }
}

/// Waits for what the kernel tells nobody; the bound is for a test that hangs.
pub(crate) fn soon(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not done after a minute");
        std::thread::yield_now();
    }
}

/// Starts a shell inside: the thread that forks has entered, and v1 cgroups are inherited from it. The shell stops itself
/// until it is in the v2 directory as well (a test has no clone3 to be born there).
pub(crate) fn spawn(cgroup: &Cgroup, script: &str) -> Inside {
    let entry = cgroup.entry().unwrap();
    let (child, thread) = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            entry.enter_v1().unwrap();
            let script = format!("kill -STOP $$; {script}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            (Inside(shell.spawn().unwrap()), gettid().to_string())
        });
        inside.join().unwrap()
    });
    // It is joined a little before it has left.
    for place in cgroup.places().filter(|place| !place.v2) {
        soon(|| fs::read_to_string(place.dir.join("tasks")).unwrap().lines().all(|line| line != thread));
    }
    for place in cgroup.places().filter(|place| place.v2) {
        fs::write(place.dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let stat = format!("/proc/{}/stat", child.id());
    soon(|| fs::read_to_string(&stat).unwrap().contains(") T "));
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).unwrap();
    child
}

/// A process of a test, killed at the latest when the test fails.
pub(crate) struct Inside(Child);

impl std::ops::Deref for Inside {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Inside {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Not awaited: a frozen one would not die. It is an error only if it is gone, which is well.
        self.0.kill().ok();
    }
}

pub(crate) fn end(mut child: Inside) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a file of the cgroup says: on v1 that of a controller, on v2 its counterpart.
pub(crate) fn read(cgroup: &Cgroup, (controller, v1): (&str, &str), v2: &str) -> String {
    let place = cgroup.places().find(|place| place.controllers.iter().any(|name| name == controller));
    let file = match place {
        Some(place) if !place.v2 => place.dir.join(v1),
        _ => cgroup.places().find(|place| place.v2).unwrap().dir.join(v2),
    };
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

pub(crate) fn freeze(cgroup: &Cgroup) {
    let mut freezing = cgroup.freeze().unwrap();
    soon(|| match freezing.poll(cgroup) {
        Ok(state) => state == FreezerState::Frozen,
        // It gives up after so many looks, and these come faster than a busy machine freezes.
        Err(CgroupError::NeverFroze { .. }) => {
            freezing = cgroup.freeze().unwrap();
            false
        }
        Err(error) => panic!("{error}"),
    });
}

/// Processor time a process has used, in clock ticks.
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}
