//! The command line as people and scripts meet it: the real binary, on this host.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Output, Stdio};

use nix::libc;
use nix::pty::{OpenptyResult, openpty};
use serde_json::Value;

fn dunnage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dunnage")).args(args).output().unwrap()
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn doctor() -> (Value, Option<i32>) {
    let output = dunnage(&["doctor", "--format", "json"]);
    assert!(output.stderr.is_empty(), "{output:?}");
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

fn finding<'a>(report: &'a Value, subject: &str) -> Option<&'a Value> {
    report["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == subject)
}

#[test]
fn doctor_says_the_same_in_both_formats_and_by_its_exit_code() {
    let (table, (report, code)) = (dunnage(&["doctor"]), doctor());
    assert_eq!(code, Some(i32::from(report["verdict"] == "broken")), "{report:#}");
    assert_eq!(table.status.code(), code);
    assert!(!text(&table).contains('\x1b'), "colours are for terminals");
    let lines: Vec<&str> = text(&table).lines().collect();
    let mut worst = "ok";
    for finding in report["findings"].as_array().unwrap() {
        let [verdict, subject, found] = ["verdict", "subject", "found"].map(|field| finding[field].as_str().unwrap());
        worst = [verdict, worst]
            .into_iter()
            .max_by_key(|v| ["ok", "limited", "broken"].iter().position(|w| w == v))
            .unwrap();
        assert_eq!(finding.get("effect").is_some() && finding.get("fix").is_some(), verdict != "ok", "{finding}");
        // Another test's containerd may come or go between the two runs.
        if ["containerd", "shim"].contains(&subject) {
            continue;
        }
        let said = |line: &&&str| {
            let words = line.strip_prefix(verdict).map(str::trim_start);
            words.and_then(|rest| rest.strip_prefix(subject)).is_some_and(|rest| rest.trim_start() == found)
        };
        assert_eq!(lines.iter().filter(said).count(), 1, "{finding}");
    }
    assert_eq!(report["verdict"], worst);
}

/// On a terminal, and with nothing else in the environment.
#[test]
fn colours_are_for_terminals_that_know_them_and_whoever_wants_them() {
    let coloured = |environment: &[(&str, &str)]| {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunnage"));
        command.arg("doctor").env_clear().envs(environment.iter().copied());
        let mut child = command.stdin(Stdio::null()).stdout(slave).spawn().unwrap();
        // It holds our end of it.
        drop(command);
        let mut shown = Vec::new();
        let read = File::from(master).read_to_end(&mut shown);
        // How a terminal says that nobody has its other end.
        assert!(read.is_ok() || read.is_err_and(|error| error.raw_os_error() == Some(libc::EIO)));
        child.wait().unwrap();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("kernel"), "{shown}");
        shown.contains('\x1b')
    };
    let xterm = ("TERM", "xterm");
    assert!(coloured(&[xterm]) && coloured(&[xterm, ("NO_COLOR", "")]));
    for environment in [&[xterm, ("NO_COLOR", "1")][..], &[("TERM", "dumb")], &[]] {
        assert!(!coloured(environment), "{environment:?}");
    }
}

#[test]
fn doctor_knows_the_kernel_it_runs_on() {
    let output = dunnage(&["doctor"]);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(text(&output).contains(release.trim()), "{}", text(&output));
}

fn skip(why: &str) {
    assert!(std::env::var_os("ROOT_TESTS").is_none_or(|value| value != "must"), "may not be skipped: {why}");
    eprintln!("SKIPPED: {why}");
}

/// The kernel's version is still the same.
#[test]
fn doctor_asks_the_kernel_by_calling_it() {
    let in_namespace = |script: &str| Command::new("unshare").args(["-Ur", "sh", "-c", script]).output().unwrap();
    if !in_namespace("true").status.success() {
        return skip("no user namespace to set a limit in");
    }
    let doctor = concat!(env!("CARGO_BIN_EXE_dunnage"), " doctor --format=json");
    let output = in_namespace(&format!("echo 0 > /proc/sys/user/max_net_namespaces && {doctor}"));
    let report = serde_json::from_slice(&output.stdout).unwrap();
    let finding = finding(&report, "net namespaces").unwrap();
    assert!(finding["found"].as_str().unwrap().contains("ENOSPC"), "{finding}");
    assert!(finding["fix"].as_str().unwrap().contains("user.max_net_namespaces"), "{finding}");
}

/// Root without a capability is a host that lacks something, made on the spot.
#[test]
fn doctor_notices_a_capability_that_was_taken_away() {
    const CAP_SETPCAP: u64 = 1 << 8;
    const CAP_MKNOD: u64 = 1 << 27;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(held, 16).unwrap() & (CAP_SETPCAP | CAP_MKNOD) != CAP_SETPCAP | CAP_MKNOD {
        return skip("only root has capabilities to lose");
    }
    assert_eq!(finding(&doctor().0, "CAP_MKNOD"), None);
    let args = ["--bounding-set=-mknod", "--", env!("CARGO_BIN_EXE_dunnage"), "doctor", "--format=json"];
    let output = Command::new("setpriv").args(args).output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(finding(&report, "CAP_MKNOD").unwrap()["verdict"], "limited");
    assert_ne!(report["verdict"], "ok");
}

#[test]
fn version_is_this_packages() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(text(&dunnage(&["version"])).starts_with(&format!("dunnage {version} ")));
    let json: Value = serde_json::from_slice(&dunnage(&["version", "--format", "json"]).stdout).unwrap();
    assert_eq!(json["version"], version);
}

/// The commands as `dunnage help` lists them.
fn commands() -> Vec<String> {
    let help = dunnage(&["help"]);
    let lines = text(&help).lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).filter(|command| command != "help").collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    assert!(dunnage(&["man", "--dir", folder.to_str().unwrap()]).status.success());
    let mut expected: Vec<String> = commands().iter().map(|command| format!("dunnage-{command}.1")).collect();
    expected.push("dunnage.1".to_owned());
    let mut written: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    expected.sort();
    written.sort();
    assert_eq!(written, expected);
    let page = dunnage(&["man", "trace"]);
    assert!(text(&page).contains(".TH") && text(&page).contains("perfetto"), "{}", text(&page));
    assert_eq!(dunnage(&["man", "nothing"]).status.code(), Some(1));

    let page = std::fs::read_to_string(dir.path().join("man8/dunnaged.8")).unwrap();
    assert_eq!(text(&dunnage(&["man", "dunnaged"])), page);
    for part in [".TH dunnaged 8", "\\-\\-check", "\n\\&#max_size = \"64MiB\"\n", "/etc/dunnage/dunnaged.toml"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_dunnaged")).arg("--help").output().unwrap();
    for part in ["/etc/dunnage/dunnaged.toml", "journal.max_age", "runtime.systemd_cgroup"] {
        assert!(text(&help).contains(part), "{part}: {}", text(&help));
    }
}

#[test]
fn a_supervisor_that_does_not_run_is_said_to_and_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let output = dunnage(&["--state", state.to_str().unwrap(), "version"]);
    assert!(output.status.success() && text(&output).contains("dunnaged does not run"), "{output:?}");
    let output = dunnage(&["--state", state.to_str().unwrap(), "version", "--format", "json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["supervisor"], Value::Null);
    assert!(!state.exists());
}

#[test]
fn what_is_done_to_each_of_several_containers_is_told_by_one_rule() {
    for command in ["stop", "kill", "pause", "resume", "rm", "update"] {
        let help = dunnage(&[command, "--help"]);
        let words = text(&help).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("the names of the containers that it was done to"), "{command}: {words}");
    }
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = dunnage(&["completion", shell]);
        assert!(output.status.success());
        for command in ["doctor", "version", "completion"] {
            assert!(text(&output).contains(command), "{shell} {command}");
        }
        let help = dunnage(&["completion", "--help"]);
        assert!(text(&help).contains(&format!("dunnage completion {shell}")), "where {shell}'s belongs: {help:?}");
    }
}

#[test]
fn mistakes_end_with_dockers_code_and_a_hint() {
    for (words, parts) in [
        (&["docter"][..], ["docter", "'doctor'"]),
        (&["ps", "--al"], ["--al", "--all"]),
        (&["exec", "--no-such-flag", "x", "true"], ["--no-such-flag", "--help"]),
        (&["stop"], ["CONTAINER", "--help"]),
        // The name of a command as the value of an option.
        (&["--namespace", "run", "ps", "--bad"], ["--bad", "Usage: dunnage ps"]),
    ] {
        let output = dunnage(words);
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(parts.iter().all(|part| told.contains(part)), "{words:?}: {told}");
    }
    for words in [&["--help"][..], &["--version"], &["ps", "--help"], &["help", "run"]] {
        assert_eq!(dunnage(words).status.code(), Some(0), "{words:?}");
    }
}

#[test]
fn a_word_that_is_not_utf8_is_a_mistake_like_others() {
    let word = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    let word: &std::ffi::OsStr = word;
    for words in [&[word][..], &["ps".as_ref(), word], &["run".as_ref(), "--name".as_ref(), word, "true".as_ref()]] {
        let output = Command::new(env!("CARGO_BIN_EXE_dunnage")).args(words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {told}");
        assert!(told.contains("error:") && !told.contains("panicked"), "{words:?}: {told}");
    }
}
