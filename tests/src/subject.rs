//! What is under test: the runtime's name, and where the programs are that a containerd needs to find it.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The runtime whose shim the tests drive.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name that containerd is given, as `io.containerd.dunnage.v2`.
    pub runtime: String,
    /// Programs to put on containerd's PATH, by the name they have there.
    pub programs: Vec<(String, PathBuf)>,
}

impl Subject {
    /// What the environment asks for. The text of the error says what is missing and how to get it.
    pub fn from_environment() -> Result<Self, String> {
        let runtime = env::var("DUNNAGE_TEST_RUNTIME").unwrap_or_else(|_| "io.containerd.dunnage.v2".to_owned());
        let binary = binary_name(&runtime).ok_or_else(|| format!("{runtime:?} is not the name of a runtime"))?;
        if runtime == "io.containerd.runc.v2" {
            let programs = [binary.as_str(), "runc"].map(|name| Ok((name.to_owned(), find_program(name)?)));
            return Ok(Self { runtime, programs: programs.into_iter().collect::<Result<_, String>>()? });
        }
        let shim = env::var_os("DUNNAGE_TEST_SHIM").map_or_else(|| released(&binary), PathBuf::from);
        if !shim.is_file() {
            return Err(format!("no shim at {}: build it with scripts/test", shim.display()));
        }
        // Nothing else: no runc that something could fall back to.
        Ok(Self { runtime, programs: vec![(binary, shim)] })
    }

    /// Whether this is our shim, which the promises about numbers and wording are made for, or a reference.
    pub fn is_ours(&self) -> bool {
        self.runtime == "io.containerd.dunnage.v2"
    }

    /// The shim's binary.
    pub fn shim(&self) -> &Path {
        &self.programs[0].1
    }
}

/// `io.containerd.dunnage.v2` is run by `containerd-shim-dunnage-v2`.
fn binary_name(runtime: &str) -> Option<String> {
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(format!("containerd-shim-{name}-{version}"))
}

/// The release build beside the one this test belongs to: `target/<triple>/debug/deps/e2e-…` is ours.
fn released(binary: &str) -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    test.ancestors().nth(3).unwrap_or(Path::new("/")).join("release").join(binary)
}

/// A program on the PATH; sbin is searched too, for users who do not have it there.
pub(crate) fn find_program(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{name} is not installed: run scripts/setup"))
}
