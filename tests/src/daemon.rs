//! A private containerd: its own root, state, sockets and configuration, and a PATH that holds the shim alone.

use std::{
    fs::{self, OpenOptions},
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    process::{self, Pidfd},
    subject::{Subject, find_program},
    wait::{Transcript, slowly},
};

/// The folder of a case, and what is where in it.
#[derive(Clone)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn address(&self) -> PathBuf {
        self.dir.join("c.sock")
    }
    /// Where shims send their events. containerd makes this name from [`Self::address`].
    pub(crate) fn events_address(&self) -> PathBuf {
        self.dir.join("c.sock.ttrpc")
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("lib")
    }
    pub(crate) fn fifos(&self) -> PathBuf {
        self.dir.join("fifo")
    }
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }
    pub(crate) fn events(&self) -> PathBuf {
        self.dir.join("events")
    }
}

/// A running containerd and the recorder of its events.
pub(crate) struct Daemon {
    layout: Layout,
    containerd: Child,
    recorder: Option<Child>,
    marks: u32,
}

impl Daemon {
    /// Makes the folders and the configuration, and starts containerd for the first time.
    pub(crate) fn new(layout: Layout, subject: &Subject) -> Self {
        let bin = layout.dir.join("bin");
        for dir in [&bin, &layout.state(), &layout.root(), &layout.fifos()] {
            fs::create_dir(dir).expect("make a folder of the case");
        }
        for (name, program) in &subject.programs {
            symlink(program, bin.join(name)).expect("put a program on containerd's PATH");
        }
        fs::write(layout.dir.join("config.toml"), configuration(&layout)).expect("write config.toml");
        for file in [layout.log(), layout.events()] {
            fs::write(file, "").expect("make a transcript");
        }
        let containerd = boot(&layout);
        let mut daemon = Self { layout, containerd, recorder: None, marks: 0 };
        daemon.ctr(&["namespaces", "create", "mark"]);
        daemon.record();
        daemon
    }

    pub(crate) fn pid(&self) -> u32 {
        self.containerd.id()
    }

    /// The processes that belong to the harness, not to the test.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.recorder.iter().map(Child::id).chain([self.pid()]).collect()
    }

    /// Ends containerd with SIGKILL. What it started goes on.
    pub(crate) fn kill(&mut self) {
        self.containerd.kill().expect("kill containerd");
        self.containerd.wait().expect("wait for containerd");
        self.end_recorder();
    }

    /// Starts a new containerd over the state of the one that was killed.
    pub(crate) fn start(&mut self) {
        self.containerd = boot(&self.layout);
        self.record();
    }

    /// Ends containerd as an operator does.
    pub(crate) fn stop(&mut self) {
        let pidfd = Pidfd::open(self.pid()).expect("containerd runs");
        process::terminate(self.pid());
        let ended = pidfd.ended_within(slowly(Duration::from_secs(20)));
        if !ended {
            self.containerd.kill().expect("kill containerd");
        }
        self.containerd.wait().expect("wait for containerd");
        self.end_recorder();
        assert!(ended, "containerd did not end on SIGTERM");
    }

    fn end_recorder(&mut self) {
        if let Some(mut recorder) = self.recorder.take() {
            recorder.kill().expect("kill the recorder");
            recorder.wait().expect("wait for the recorder");
        }
    }

    /// Starts `ctr events`, and returns when it hears.
    fn record(&mut self) {
        let out = OpenOptions::new().append(true).open(self.layout.events()).expect("open the events");
        let mut command = Command::new(find_program("ctr").expect("ctr"));
        command.arg("--address").arg(self.layout.address()).arg("events").stdin(Stdio::null()).stdout(out);
        self.recorder = Some(command.stderr(Stdio::null()).spawn().expect("start ctr events"));
        // It says nothing when it has subscribed, so it is told something until it repeats it.
        let events = Transcript::new(&self.layout.events());
        for _ in 0..500 {
            let mark = self.mark();
            if events.find_within(Duration::from_millis(20), |text| text.contains(&mark).then_some(())).is_ok() {
                return;
            }
        }
        panic!("ctr events never heard anything");
    }

    /// Waits until the recorder has written all events that containerd published before this call.
    pub(crate) fn drain_events(&mut self) {
        let mark = self.mark();
        Transcript::new(&self.layout.events()).line(&mark);
    }

    /// Makes containerd publish an event of ours; the text is what it looks like in the record.
    fn mark(&mut self) -> String {
        self.marks += 1;
        let value = format!("mark-{}-", self.marks);
        self.ctr(&["namespaces", "label", "mark", &format!("n={value}")]);
        value
    }

    fn ctr(&self, args: &[&str]) {
        let mut command = Command::new(find_program("ctr").expect("ctr"));
        let output = command.arg("--address").arg(self.layout.address()).args(args).output().expect("run ctr");
        assert!(output.status.success(), "ctr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in self.recorder.iter_mut().chain([&mut self.containerd]) {
            // Both fail only where the child has been waited for.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn configuration(layout: &Layout) -> String {
    let seconds = |limit| slowly(Duration::from_secs(limit)).as_secs();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{address}"
[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "1h"
[timeouts]
"io.containerd.timeout.shim.cleanup" = "{cleanup}s"
"io.containerd.timeout.shim.load" = "{load}s"
"io.containerd.timeout.shim.shutdown" = "{shutdown}s"
"io.containerd.timeout.task.state" = "{state_answer}s"
"#,
        // Its own defaults, here.
        cleanup = seconds(5),
        load = seconds(5),
        shutdown = seconds(3),
        state_answer = seconds(2),
        root = layout.root().display(),
        state = layout.state().display(),
        address = layout.address().display(),
    )
}

fn boot(layout: &Layout) -> Child {
    let log = OpenOptions::new().append(true).open(layout.log()).expect("open the log");
    let transcript = Transcript::new(&layout.log());
    let before = transcript.text().len();
    let mut command = Command::new(find_program("containerd").expect("containerd"));
    command.arg("--config").arg(layout.dir.join("config.toml"));
    command.env_clear().env("PATH", layout.dir.join("bin"));
    // A group of its own: an interrupt from the keyboard ends the test, which then ends containerd.
    command.process_group(0).current_dir(Path::new("/"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn().expect("start containerd");
    transcript.find("containerd to boot", |text| text[before..].contains("successfully booted").then_some(()));
    child
}
