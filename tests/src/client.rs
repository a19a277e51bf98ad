//! `ctr`, run as a person runs it.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::{
    Case, Terminal,
    process::{self, Pidfd},
    wait::{Transcript, patience},
};

/// How a command went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// All that it wrote.
    pub stdout: String,
    /// All that it complained.
    pub stderr: String,
}

impl Outcome {
    /// The output, without the last newline, of a command that must have gone well.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n')
    }

    /// The complaint of a command that must have failed.
    #[track_caller]
    pub fn refused(&self) -> &str {
        assert_ne!(self.code, 0, "went well, with stdout: {}\nstderr: {}", self.stdout, self.stderr);
        &self.stderr
    }
}

/// A `ctr run` or `ctr task exec` in the making.
#[must_use]
pub struct Run<'a> {
    case: &'a Case,
    verb: &'static [&'static str],
    flags: Vec<OsString>,
    rest: Vec<OsString>,
    last_flags: &'static [&'static str],
}

impl<'a> Run<'a> {
    pub(crate) fn new(case: &'a Case, verb: &'static [&'static str], last_flags: &'static [&'static str]) -> Self {
        Self { case, verb, flags: Vec::new(), rest: Vec::new(), last_flags }
    }

    /// Flags of `ctr`, before its arguments.
    pub fn flags<S: Into<OsString>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    pub(crate) fn arguments<S: Into<OsString>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.rest.extend(words.into_iter().map(Into::into));
        self
    }

    /// Runs it in the foreground to its end.
    pub fn output(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it in the foreground, and returns while it goes on. Its stdin is a pipe.
    pub fn spawn(self) -> Foreground {
        let last = self.last_flags;
        self.start(last, |command, output| {
            command.stdin(Stdio::piped()).stdout(output("stdout")).stderr(output("stderr"));
        })
    }

    /// Runs it in the foreground with its stdout going to `stdout`.
    pub fn spawn_to(self, stdout: impl Into<Stdio>) -> Foreground {
        let last = self.last_flags;
        self.start(last, |command, output| {
            output("stdout");
            command.stdin(Stdio::piped()).stdout(stdout).stderr(output("stderr"));
        })
    }

    /// Runs it with `-t`, on `terminal`.
    pub fn on(mut self, terminal: &Terminal) -> Foreground {
        self.flags.push("-t".into());
        let last = self.last_flags;
        self.start(last, |command, output| {
            output("stdout");
            output("stderr");
            let side = || terminal.inner();
            command.stdin(side()).stdout(side()).stderr(side());
        })
    }

    /// Runs it with `-d`: returns when the process has started and `ctr` has ended.
    pub fn detached(self) -> Outcome {
        // A stdin that ends would make ctr close the container's, or not, as its start and its end fall.
        let running = self.start(&["--detach"], |command, output| {
            command.stdin(Stdio::piped()).stdout(output("stdout")).stderr(output("stderr"));
        });
        running.wait()
    }

    fn start(self, last: &[&str], connect: impl FnOnce(&mut Command, &dyn Fn(&str) -> Stdio)) -> Foreground {
        let mut command = self.case.client();
        command.args(self.verb).args(&self.flags).args(last).args(&self.rest);
        let place = self.case.scratch();
        let output = |name: &str| {
            let options = OpenOptions::new().write(true).create_new(true).to_owned();
            Stdio::from(options.open(place.join(name)).expect("make an output file"))
        };
        connect(&mut command, &output);
        let mut child = command.spawn().expect("start ctr");
        let stdin = child.stdin.take();
        Foreground { child, stdin, place }
    }
}

/// A `ctr` that runs.
pub struct Foreground {
    child: Child,
    stdin: Option<ChildStdin>,
    place: PathBuf,
}

impl Foreground {
    /// What it has written until now, and will write.
    pub fn stdout(&self) -> Transcript {
        Transcript::new(&self.place.join("stdout"))
    }

    /// What it complains.
    pub fn stderr(&self) -> Transcript {
        Transcript::new(&self.place.join("stderr"))
    }

    /// The writing end of its stdin; dropping it is the end of file.
    pub fn stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("stdin was taken")
    }

    /// The process id of this `ctr`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for it to end.
    pub fn wait(mut self) -> Outcome {
        let pidfd = Pidfd::open(self.child.id()).expect("a child that was not waited for");
        let ended = pidfd.ended_within(patience());
        assert!(ended, "ctr goes on; stdout: {}\nstderr: {}", self.stdout().text(), self.stderr().text());
        let status = self.child.wait().expect("wait for ctr");
        let code = status.code().unwrap_or(-1);
        Outcome { code, stdout: self.stdout().text(), stderr: self.stderr().text() }
    }

    /// Ends this `ctr` with SIGKILL; the container does not hear of it.
    pub fn kill(mut self) {
        process::kill_hard(self.child.id());
        self.child.wait().expect("wait for ctr");
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Both fail only where it has ended and been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs `command` to its end, with its output in `place`.
pub(crate) fn output(mut command: Command, place: PathBuf) -> Outcome {
    command.stdin(Stdio::null());
    spawn(command, place).wait()
}

/// Starts `command` with its output in `place`, and its stdin as it is set.
pub(crate) fn spawn(mut command: Command, place: PathBuf) -> Foreground {
    let file = |name: &str| fs::File::create_new(place.join(name)).expect("make an output file");
    let mut child = command.stdout(file("stdout")).stderr(file("stderr")).spawn().expect("start a command");
    let stdin = child.stdin.take();
    Foreground { child, stdin, place }
}

/// The namespaces of `pid` as a path for `--with-ns`.
pub fn namespace_of(pid: u32, kind: &str) -> String {
    Path::new("/proc").join(pid.to_string()).join("ns").join(kind).display().to_string()
}

/// Starts `command` on `terminal`.
pub(crate) fn spawn_on(mut command: Command, terminal: &Terminal, place: PathBuf) -> Foreground {
    for name in ["stdout", "stderr"] {
        fs::File::create_new(place.join(name)).expect("make an output file");
    }
    let side = || terminal.inner();
    let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("start a command");
    Foreground { child, stdin: None, place }
}
