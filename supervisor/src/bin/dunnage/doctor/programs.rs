//! The programs around us: which are there, where, and which version.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{AccessFlags, access};

use super::elf::{Linkage, linkage};

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// What it says of itself, in one line, or why it could not be asked.
    pub(super) version: Result<String, String>,
}

/// A containerd that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Daemon {
    pub(super) pid: i32,
    /// Its executable.
    pub(super) program: PathBuf,
    /// The PATH it looks for shims on.
    pub(super) path: OsString,
}

/// Our shim, as containerd would find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shim {
    pub(super) program: Program,
    pub(super) executable: bool,
    pub(super) linkage: Linkage,
}

/// The first file `name` on `path`, executable or not.
fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    // An empty element means the working directory, which is not the one of whoever will look.
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn is_executable(file: &Path) -> bool {
    access(file, AccessFlags::X_OK).is_ok()
}

/// Our own PATH, with the folders for administration that an ordinary user's PATH lacks.
pub(super) fn own_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// The first file `name` on `path`, if it can be executed.
pub(super) fn executable(name: &str, path: &OsStr) -> Option<PathBuf> {
    find(name, path).filter(|file| is_executable(file))
}

impl Program {
    /// The program `name` on `path`, if it can be executed.
    pub(super) fn find(name: &str, path: &OsStr) -> Option<Program> {
        executable(name, path).map(|path| Program::ask(path, "--version"))
    }

    /// `flag` makes it print its version.
    pub(super) fn ask(path: PathBuf, flag: &str) -> Program {
        let version = match Command::new(&path).arg(flag).output() {
            Err(error) => Err(error.to_string()),
            Ok(output) if !output.status.success() => Err(format!("{flag}: {}", output.status)),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                let line = text.lines().next().unwrap_or_default().trim();
                if line.is_empty() { Err(format!("{flag} prints nothing")) } else { Ok(line.to_owned()) }
            }
        };
        Program { path, version }
    }
}

impl Daemon {
    /// A containerd that runs and sees the files we see; of several the one with the lowest pid. `None` also where its
    /// environment is not for us to read.
    pub(super) fn find() -> Option<Daemon> {
        let entries = fs::read_dir("/proc").ok()?;
        let mut pids: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let ours = fs::read_link("/proc/self/ns/mnt").ok()?;
        pids.into_iter().find_map(|pid| {
            let file = |name| format!("/proc/{pid}/{name}");
            fs::read(file("comm")).ok().filter(|name| name == b"containerd\n")?;
            fs::read_link(file("ns/mnt")).ok().filter(|namespace| *namespace == ours)?;
            let environment = fs::read(file("environ")).ok()?;
            let path = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"PATH="))?;
            let program = fs::read_link(file("exe")).ok()?;
            Some(Daemon { pid, program, path: OsString::from_vec(path.to_vec()) })
        })
    }
}

impl Shim {
    pub(super) const NAME: &str = "containerd-shim-dunnage-v2";

    /// Where containerd looks: on its PATH, then beside itself.
    pub(super) fn find(path: &OsStr, containerd: Option<&Path>) -> Option<Shim> {
        let beside = || containerd.and_then(Path::parent).map(|dir| dir.join(Shim::NAME)).filter(|file| file.is_file());
        let path = find(Shim::NAME, path).or_else(beside)?;
        let (executable, linkage) = (is_executable(&path), file_linkage(&path));
        let program = match executable {
            true => Program::ask(path, "-v"),
            false => Program { path, version: Err("not executable".to_owned()) },
        };
        Some(Shim { program, executable, linkage })
    }
}

fn file_linkage(path: &Path) -> Linkage {
    /// Program headers stand at the beginning.
    const BEGINNING: u64 = 64 * 1024;
    let mut beginning = Vec::new();
    match File::open(path).and_then(|file| file.take(BEGINNING).read_to_end(&mut beginning)) {
        Ok(_) => linkage(&beginning),
        Err(_) => Linkage::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn programs_are_found_on_a_path_and_asked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tool");
        fs::write(&file, "#!/bin/sh\necho tool 1.2\necho more\n").unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), folder.path()]).unwrap();
        assert_eq!(Program::find("tool", &path), None, "not executable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Program::find("tool", &path), Some(Program { path: file, version: Ok("tool 1.2".to_owned()) }));
        assert_eq!(Program::find("other", &path), None);
    }

    #[test]
    fn a_shim_that_cannot_be_executed_is_found_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(Shim::NAME);
        fs::write(&file, "text").unwrap();
        let beside = Shim::find(OsStr::new(""), Some(&folder.path().join("containerd"))).unwrap();
        assert!(!beside.executable && beside.program.version.is_err() && beside.linkage == Linkage::Foreign);
        assert_eq!(beside.program.path, file);
    }
}
