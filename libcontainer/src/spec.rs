//! config.json, read with the size and the errors of a file that a stranger may have written.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// More than any engine writes; less than would hurt us, in bytes.
const MOST: u64 = 16 << 20;

/// A config.json that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {why}", path.display())]
pub struct ReadError {
    path: PathBuf,
    why: String,
}

/// Reads `config.json` of `bundle`.
///
/// # Errors
/// When the file is missing, too large, or not a spec; then with line and column.
pub fn read(bundle: &Path) -> Result<Spec, ReadError> {
    let path = bundle.join("config.json");
    let error = |why: String| ReadError { path: path.clone(), why };
    let mut text = String::new();
    // A FIFO in its place would make us wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path);
    let file = file.map_err(|why| error(why.to_string()))?;
    let read = file.take(MOST + 1).read_to_string(&mut text).map_err(|why| error(why.to_string()))?;
    if read as u64 > MOST {
        return Err(error(format!("it is larger than {} MiB", MOST >> 20)));
    }
    decode(text.as_bytes(), "/process/capabilities").map_err(|why| error(why.to_string()))
}

/// Reads a `process` object, as engines send it to exec.
///
/// # Errors
/// When it is none; then with line and column.
pub fn process(text: &[u8]) -> Result<Process, serde_json::Error> {
    decode(text, "/capabilities")
}

/// What engines write, Go wrote, and Go's readers take more than `oci-spec` does. Where it refuses, this is mended and
/// read again; the ordinary spec is read once, straight into its types, with nothing built in between.
fn decode<T: DeserializeOwned>(text: &[u8], capabilities: &str) -> Result<T, serde_json::Error> {
    serde_json::from_slice(text).or_else(|first| {
        // Of a key given twice, the last counts here as there.
        let Ok(mut value) = serde_json::from_slice::<Value>(text) else { return Err(first) };
        without_nulls(&mut value);
        if let Some(Value::Object(sets)) = value.pointer_mut(capabilities) {
            only_known(sets);
        }
        let process = if capabilities == "/capabilities" { Some(&mut value) } else { value.get_mut("process") };
        if let Some(Value::Object(process)) = process {
            // Root, as Go's zero value is.
            process.entry("user").or_insert_with(|| Value::Object(Map::new()));
        }
        // The first error has the line and the column.
        serde_json::from_value(value).map_err(|_| first)
    })
}

/// `null` is how Go writes a list or a pointer that was never set; it reads as if the key were absent. The text's depth is
/// limited by serde_json, and with it this.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// A capability we have no name for is newer than we are: the specification wants a warning, not an error.
fn only_known(sets: &mut Map<String, Value>) {
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                log::warn!("process.capabilities: {name} is unknown and cannot be given");
            }
            known
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read() {
        let with = |process: &str, linux: &str| {
            format!(
                r#"{{"ociVersion": "1.0.2", "process": {{"args": ["a"], "cwd": "/" {process}}}, "linux": {{{linux}}}}}"#
            )
        };
        let user = r#", "user": {"uid": 1000, "gid": 5}"#;
        let specs = [
            with("", ""),
            with(r#", "user": null"#, r#""namespaces": null, "seccomp": null"#),
            with(&format!(r#"{user}, "capabilities": {{"bounding": ["CAP_OF_TOMORROW", "CAP_CHOWN"]}}"#), ""),
            with(&format!(r#"{user}, "env": null, "oomScoreAdj": null, "rlimits": null, "capabilities": null"#), ""),
            with(&format!("{user}{user}"), ""),
            with(user, r#""resources": {"memory": {"limit": -1, "swap": null}, "pids": null, "devices": null}"#),
            with(
                user,
                r#""rootfsPropagation": "", "mountLabel": "", "personality": {"domain": "LINUX", "flags": null}"#,
            ),
            with(
                &format!(
                    r#"{user}, "rlimits": [{{"type": "RLIMIT_CORE", "soft": 18446744073709551615, "hard": 18446744073709551615}}]"#
                ),
                "",
            ),
        ];
        for text in specs {
            let spec: Spec =
                decode(text.as_bytes(), "/process/capabilities").unwrap_or_else(|why| panic!("{why}: {text}"));
            assert_eq!(spec.process().as_ref().and_then(|process| process.args().clone()), Some(vec!["a".to_owned()]));
        }
        let exec =
            process(br#"{"args": ["a"], "cwd": "/", "capabilities": {"effective": ["CAP_OF_TOMORROW"]}}"#).unwrap();
        assert!(exec.capabilities().as_ref().unwrap().effective().as_ref().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let error = |text: &str| decode::<Spec>(text.as_bytes(), "/process/capabilities").unwrap_err().to_string();
        assert_eq!(
            error(r#"{"process": {"args": ["a"], "cwd": 5}}"#),
            "invalid type: integer `5`, expected path string at line 1 column 36"
        );
        // Passed over where nobody wants it, and no way to our stack where it must be looked at.
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(decode::<Spec>(format!(r#"{{"x": {deep}}}"#).as_bytes(), "/process/capabilities").is_ok());
        assert!(error(&format!(r#"{{"x": {deep}, "process": {{"cwd": "/"}}}}"#)).contains("missing field `user`"));
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join("config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().contains("EOF"));
    }

    #[test]
    fn a_broken_file_is_named_with_the_place_that_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().contains("config.json: No such file"));
        for (text, why) in [("{", "line 1 column 1"), ("{\"mounts\": 7}", "invalid type"), ("[1]", "line 1")] {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            let error = read(folder.path()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
