use std::{
    collections::HashMap,
    fs,
    process::{Child, Command},
    time::{Duration, Instant},
};

use libcontainer::{
    cgroup::{CgroupPath, Layout, Limits},
    state::{Dir, Init},
};
use nix::unistd::{Pid, geteuid};
use protobuf::MessageField;
use runtime_v2_api::pack;
use tokio::runtime::Builder;

use super::*;

/// A cgroup with a process that is busy, as the container `c`; gone with this.
struct Busy {
    cgroup: Option<Cgroup>,
    child: Child,
    state: tempfile::TempDir,
}

impl Busy {
    fn start(name: &str) -> Option<Self> {
        let must = std::env::var_os("ROOT_TESTS").is_some_and(|must| must == "must");
        if !geteuid().is_root() {
            assert!(!must, "cannot be tested: making cgroups needs root");
            eprintln!("skipped: making cgroups needs root");
            return None;
        }
        let layout = Layout::detect().unwrap();
        let path = format!("/dunnage-usage-{name}-{}/c", std::process::id());
        let path = CgroupPath::new(Some(path.as_ref()), "c").unwrap();
        let resources = serde_json::from_str(r#"{"memory":{"limit":67108864},"pids":{"limit":9}}"#).unwrap();
        let cgroup = Cgroup::create(&path, &Limits::compile(&resources, &layout).unwrap(), &layout).unwrap();
        // It goes into its cgroups by itself, before it begins.
        let mut script = String::new();
        for place in cgroup.places() {
            script += &format!("echo 0 > {}/{};", place.dir.display(), if place.v2 { "cgroup.procs" } else { "tasks" });
        }
        let child = Command::new("sh").args(["-c", &(script + "while :; do :; done")]).spawn().unwrap();
        let state = tempfile::tempdir().unwrap();
        let busy = Self { cgroup: Some(cgroup), child, state };
        busy.save("c");
        Some(busy)
    }

    fn dir(&self) -> PathBuf {
        self.state.path().join("c")
    }

    fn save(&self, id: &str) {
        let init = Init::of(Pid::from_raw(self.child.id().cast_signed())).unwrap();
        let dir = Dir::create(&self.state.path().join(id)).unwrap();
        dir.save(&State {
            id: id.to_owned(),
            bundle: "/nowhere".into(),
            rootfs: "/nowhere".into(),
            created: String::new(),
            annotations: HashMap::new(),
            no_pivot: false,
            no_new_keyring: false,
            init: Some(init),
            creating: false,
            cgroup: self.cgroup.as_ref().unwrap().saved(),
            poststop: Vec::new(),
        })
        .unwrap();
    }

    /// How many directories of its cgroup are open here.
    fn descriptors(&self) -> usize {
        let dirs: Vec<PathBuf> = self.cgroup.iter().flat_map(Cgroup::places).map(|place| place.dir.clone()).collect();
        let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        open.filter(|path| dirs.contains(path)).count()
    }

    fn container(&self, phase: Phase) -> Container {
        Container { namespace: "n".to_owned(), id: "c".to_owned(), phase: phase.into(), ..Default::default() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        // Another test of this process may have collected it.
        drop(self.child.wait());
        let mut cgroup = self.cgroup.take().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(error) = cgroup.remove() {
            assert!(Instant::now() < end, "{error}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_busy_container_has_numbers() {
    let Some(busy) = Busy::start("numbers") else { return };
    let usages = Usages::default();
    let end = Instant::now() + Duration::from_secs(20);
    let usage = loop {
        let usage = usages.read("n", "c", &busy.dir()).unwrap();
        if usage.cpu_total > 50_000_000 && usage.cpu_user > 0 {
            break usage;
        }
        assert!(Instant::now() < end, "{usage:?}");
        std::thread::yield_now();
    };
    assert_eq!((&*usage.id, usage.pids, usage.pids_limit), ("c", 1, 9));
    assert_eq!(usage.memory_limit, 64 << 20);
    assert!(usage.memory > 0 && usage.memory_working_set <= usage.memory, "{usage:?}");
    assert_eq!(usage.oom_kills, 0);
    assert!(usage.time > 1_600_000_000_000_000_000);
}

#[test]
fn only_who_is_asked_about_costs_descriptors_and_not_after_its_end() {
    let Some(busy) = Busy::start("descriptors") else { return };
    let usages = Usages::default();
    let before = busy.descriptors();
    usages.read("n", "c", &busy.dir()).unwrap();
    let kept = busy.descriptors() - before;
    assert!((1..=CONTROLLERS.len()).contains(&kept), "{kept}");
    usages.read("n", "c", &busy.dir()).unwrap();
    assert_eq!(busy.descriptors() - before, kept);

    let exit = |id: &str| {
        let (container_id, id) = ("c".to_owned(), id.to_owned());
        let event = MessageField::some(pack(&TaskExit { container_id, id, ..Default::default() }).unwrap());
        let (namespace, topic) = ("n".to_owned(), topic::TASK_EXIT.to_owned());
        Envelope { namespace, topic, event, ..Default::default() }
    };
    usages.heard(&exit("an exec"));
    assert_eq!(busy.descriptors() - before, kept);
    usages.heard(&exit("c"));
    assert_eq!(busy.descriptors(), before);

    // Whoever has not heard of it notices when it is asked about the next time.
    usages.read("n", "c", &busy.dir()).unwrap();
    let runtime = Builder::new_current_thread().build().unwrap();
    let stopped = [busy.container(Phase::STOPPED)];
    assert_eq!(runtime.block_on(usages.of(&stopped, |_, _| Some(busy.dir()))), vec![]);
    assert_eq!(busy.descriptors(), before);
}

#[test]
fn who_cannot_be_read_is_left_out() {
    let Some(busy) = Busy::start("left-out") else { return };
    let usages = Usages::default();
    let runtime = Builder::new_current_thread().build().unwrap();
    let mut other = busy.container(Phase::RUNNING);
    other.id = "other".to_owned();
    let containers = [other, busy.container(Phase::PAUSED)];
    let of = usages.of(&containers, |_, id| Some(busy.state.path().join(id)));
    let of: Vec<_> = runtime.block_on(of).into_iter().map(|(index, usage)| (index, usage.id)).collect();
    assert_eq!(of, [(1, "c".to_owned())]);
}

#[test]
fn the_numbers_of_v2_are_in_our_units() {
    let psi = |some, full| {
        let data = |total| v2::PsiData { total, ..Default::default() };
        Some(v2::Psi { some: data(some), full: data(full) })
    };
    let io = |rbytes| v2::IoEntry { rbytes, wbytes: 2, rios: 3, wios: 4, ..Default::default() };
    let mut metrics = v2::Metrics {
        pids: v2::Pids { current: 2, limit: u64::MAX },
        io: v2::Io { usage: vec![io(10), io(20)], psi: psi(5, 6) },
        memory_events: Some(v2::MemoryEvents { oom_kill: 1, ..Default::default() }),
        ..Default::default()
    };
    metrics.cpu.stat.usage_usec = 7;
    metrics.cpu.psi = psi(8, 0);
    metrics.memory.usage = 100;
    metrics.memory.usage_limit = u64::MAX;
    metrics.memory.stat.inactive_file = 40;
    metrics.memory.psi = psi(9, 10);
    let usage = usage_v2(&metrics);
    assert_eq!((usage.cpu_total, usage.cpu_some), (7000, Some(8)));
    assert_eq!((usage.memory, usage.memory_working_set, usage.memory_limit), (100, 60, 0));
    let pressure = [usage.memory_some, usage.memory_full, usage.io_some, usage.io_full];
    assert_eq!(pressure, [9, 10, 5, 6].map(Some));
    assert_eq!((usage.pids, usage.pids_limit, usage.oom_kills), (2, 0, 1));
    assert_eq!((usage.io_read_bytes, usage.io_write_bytes, usage.io_reads, usage.io_writes), (30, 4, 6, 8));
}

#[test]
fn the_numbers_of_v1_are_in_our_units() {
    let entry = |op: &str, value| v1::BlkioEntry { op: op.to_owned(), value, ..Default::default() };
    let mut metrics = v1::Metrics::default();
    let memory = metrics.memory.insert(v1::Memory::default());
    memory.usage = v1::MemoryEntry { usage: 100, limit: 0x7fff_ffff_ffff_f000, ..Default::default() };
    memory.swap.usage = 130;
    memory.stat.total_inactive_file = 120;
    metrics.blkio = Some(v1::Blkio {
        io_service_bytes_recursive: vec![entry("Read", 10), entry("Write", 2), entry("Read", 20), entry("Total", 32)],
        io_serviced_recursive: vec![entry("Read", 1), entry("Write", 5)],
        ..Default::default()
    });
    let usage = usage_v1(&metrics);
    // The counters are not read at one moment: less than nothing is nothing.
    assert_eq!((usage.memory_working_set, usage.memory_limit, usage.memory_swap), (0, 0, 30));
    assert_eq!((usage.io_read_bytes, usage.io_write_bytes, usage.io_reads, usage.io_writes), (30, 2, 1, 5));
}

#[test]
fn how_fast_it_is() {
    let Some(busy) = Busy::start("speed") else { return };
    let usages = Usages::default();
    let (count, start) = (300, Instant::now());
    for _ in 0..count {
        usages.read("n", "c", &busy.dir()).unwrap();
    }
    println!("the usage of one container: {:?}", start.elapsed() / count);
}
