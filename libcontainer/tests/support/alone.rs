//! For tests of what must not reach the machine.

use std::process::Command;

/// True inside: the calling test runs again, alone, as the only one in a mount namespace of its own.
pub(crate) fn alone() -> bool {
    const INSIDE: &str = "DUNNAGE_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let test = std::thread::current().name().expect("a test has a name").to_owned();
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("ROOT_TESTS").is_none_or(|v| v != "must"), "{test} needs root");
        eprintln!("SKIPPED {test}: needs root");
        return false;
    }
    let out = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}
