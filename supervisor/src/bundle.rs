//! A container's files and folders, made and removed: its bundle with config.json and the scratch space, and its log's
//! folder.
//!
//! Nothing is ever removed by descending: what may be mounted in a bundle is the user's.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use libcontainer::rootfs::{self, Unmounted};
use nix::mount::{MsFlags, mount};
use runtime_v2_api::{supervisor as wire, types};
use serde::Deserialize;

use crate::book::Name;

/// The folder for what a container writes to the machine's own root.
const SCRATCH: &str = "scratch";
/// Annotations by which a container asks for the shim of others.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// What of config.json concerns us. All else is the shim's to judge.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The group of the host that is 0 in the container's user namespace, if it has one.
    group: Option<u32>,
}

impl Spec {
    /// Reads it, and finds what is wrong as far as we must know.
    ///
    /// # Errors
    /// A text that names what.
    pub(crate) fn read(request: &wire::LaunchRequest) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Config {
            root: Option<Root>,
            annotations: Option<BTreeMap<String, String>>,
            linux: Option<Linux>,
        }
        #[derive(Deserialize)]
        struct Root {
            path: PathBuf,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Linux {
            gid_mappings: Option<Vec<Mapping>>,
        }
        #[derive(Deserialize)]
        struct Mapping {
            #[serde(rename = "containerID")]
            container: u32,
            #[serde(rename = "hostID")]
            host: u32,
        }
        let config: Config = serde_json::from_slice(&request.spec).map_err(|error| format!("spec: {error}"))?;
        let mounted = !request.rootfs.is_empty() || request.machine_root.is_some();
        match &config.root {
            _ if mounted => {}
            Some(root) if root.path.is_absolute() => {}
            Some(root) => return Err(format!("spec: root.path {:?} is not absolute", root.path.display())),
            None => return Err("spec: there is no root, nor a rootfs in the request".to_owned()),
        }
        if !request.rootfs.is_empty() && request.machine_root.is_some() {
            return Err("rootfs and machine_root exclude each other".to_owned());
        }
        let shared = config.annotations.iter().flatten();
        if let Some((name, group)) = shared.into_iter().find(|(name, _)| GROUPS.contains(&name.as_str()))
            && *group != request.id
        {
            return Err(format!("spec: containers that share a shim (annotation {name}) are not supported yet"));
        }
        let mappings = config.linux.and_then(|linux| linux.gid_mappings).unwrap_or_default();
        Ok(Self { group: mappings.iter().find(|mapping| mapping.container == 0).map(|mapping| mapping.host) })
    }
}

/// Names the unit of systemd that is to be the container's cgroup. A client that does not know that the configuration wants
/// one has named a folder; who has named a unit keeps it.
pub(crate) fn name_unit(config: &[u8], name: &Name) -> Result<Vec<u8>, String> {
    let failed = |error: serde_json::Error| format!("spec: {error}");
    let mut config: serde_json::Value = serde_json::from_slice(config).map_err(failed)?;
    if let Some(linux) = config.get_mut("linux").and_then(serde_json::Value::as_object_mut) {
        let named = linux.get("cgroupsPath").and_then(serde_json::Value::as_str).is_some_and(|path| path.contains(':'));
        if !named {
            linux.insert("cgroupsPath".to_owned(), format!(":dunnage:{}-{}", name.namespace, name.id).into());
        }
    }
    serde_json::to_vec(&config).map_err(failed)
}

/// Makes the bundle with `config` as its config.json.
pub(crate) fn make(bundle: &Path, spec: &Spec, config: &[u8]) -> io::Result<()> {
    // On the way to a root that a user namespace's root must be able to reach.
    DirBuilder::new().recursive(true).mode(0o711).create(bundle.parent().unwrap_or(bundle))?;
    DirBuilder::new().mode(0o700).create(bundle)?;
    if let Some(group) = spec.group {
        chown(bundle, None, Some(group))?;
        fs::set_permissions(bundle, fs::Permissions::from_mode(0o710))?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(bundle.join("config.json")).and_then(|mut file| file.write_all(config))
}

/// Makes an empty folder for the log. What an earlier container of that name left there is gone with the machine's last
/// boot, as we would know of it otherwise.
pub(crate) fn make_logs(folder: &Path) -> io::Result<()> {
    remove_folder(folder)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Mounts the scratch space and returns what the shim is to mount on the rootfs: the machine's own root below it.
pub(crate) fn make_scratch(bundle: &Path, size: u64) -> io::Result<types::Mount> {
    let scratch = bundle.join(SCRATCH);
    let (up, work) = (scratch.join("up"), scratch.join("work"));
    DirBuilder::new().mode(0o711).create(&scratch)?;
    let limit = if size == 0 { String::new() } else { format!(",size={size}") };
    let options = format!("mode=0711{limit}");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount(Some("dunnage-scratch"), &scratch, Some("tmpfs"), flags, Some(&*options))?;
    // The container's own root has the rights that the upper folder has.
    DirBuilder::new().mode(0o755).create(&up)?;
    DirBuilder::new().mode(0o700).create(&work)?;
    let mut options =
        vec!["lowerdir=/".to_owned(), format!("upperdir={}", up.display()), format!("workdir={}", work.display())];
    if in_user_namespace()? {
        options.push("userxattr".to_owned());
    }
    Ok(types::Mount { type_: "overlay".to_owned(), source: "overlay".to_owned(), options, ..Default::default() })
}

/// Overlay keeps its notes in `trusted.` attributes, which nobody may write outside the first user namespace.
fn in_user_namespace() -> io::Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_ascii_whitespace().ne(["0", "0", "4294967295"]))
}

/// Unmounts what is in the bundle and removes it.
pub(crate) fn remove(bundle: &Path) -> io::Result<()> {
    for mounted in [bundle.join("rootfs"), bundle.join(SCRATCH)] {
        match rootfs::unmount_all(&mounted).map_err(io::Error::other)? {
            Unmounted::Done => {}
            Unmounted::Busy => {
                let why = format!("unmount {}: something still uses it", mounted.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
        }
    }
    remove_folder(bundle)
}

/// Removes a folder whose own folders are empty; and the one that it is in, if it was the last one there.
pub(crate) fn remove_folder(folder: &Path) -> io::Result<()> {
    let named =
        |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("remove {}: {error}", path.display()));
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::read_dir(folder) {
        // We may have been killed before we came to the one around it.
        Err(error) if missing(&error) => {}
        Err(error) => return Err(named(folder, error)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                let remove = if entry.file_type()?.is_dir() { fs::remove_dir } else { fs::remove_file };
                remove(&path).map_err(|error| named(&path, error))?;
            }
            fs::remove_dir(folder).map_err(|error| named(folder, error))?;
        }
    }
    match folder.parent().map_or(Ok(()), fs::remove_dir) {
        // There are others.
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty && !missing(&error) => Err(named(folder, error)),
        _ => Ok(()),
    }
}

/// Removes a file that may be gone already.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(spec: &str) -> wire::LaunchRequest {
        wire::LaunchRequest { id: "web-1".into(), spec: spec.as_bytes().to_vec(), ..Default::default() }
    }

    #[test]
    fn the_last_folder_takes_the_one_around_it_along_also_at_the_second_attempt() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (root.path().join("ns/one"), root.path().join("ns/other"));
        fs::create_dir_all(one.join("empty")).unwrap();
        fs::create_dir(&other).unwrap();
        remove_folder(&one).unwrap();
        assert!(other.exists());
        // As one leaves it that is killed in between.
        fs::remove_dir(&other).unwrap();
        remove_folder(&other).unwrap();
        assert!(!root.path().join("ns").exists() && root.path().exists());
        fs::write(root.path().join("x"), "").unwrap();
        remove_folder(&other).unwrap();
    }

    #[test]
    fn what_we_must_know_of_a_spec_is_checked() {
        for (spec, part) in [
            ("", "spec: EOF"),
            ("[]", "spec: "),
            ("{}", "there is no root"),
            (r#"{"root":{"path":"rootfs"}}"#, "root.path \"rootfs\" is not absolute"),
            (r#"{"root":{"path":"/"},"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, "share a shim"),
        ] {
            let error = Spec::read(&request(spec)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let group = r#""annotations":{"io.containerd.runc.v2.group":"web-1"}"#;
        let spec = Spec::read(&request(&format!(r#"{{"root":{{"path":"/"}},{group}}}"#))).unwrap();
        assert_eq!(spec, Spec { group: None });
        let mapped =
            r#"{"root":{"path":"/"},"linux":{"gidMappings":[{"containerID":0,"hostID":100000,"size":65536}]}}"#;
        assert_eq!(Spec::read(&request(mapped)).unwrap(), Spec { group: Some(100_000) });

        let mut both = request("{}");
        both.machine_root = protobuf::MessageField::some(wire::MachineRoot::default());
        assert_eq!(Spec::read(&both).unwrap(), Spec::default());
        both.rootfs = vec![types::Mount::default()];
        assert!(Spec::read(&both).unwrap_err().contains("exclude each other"));
    }

    #[test]
    fn a_bundle_is_made_once_and_nothing_is_removed_by_descending() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundles/default/web-1");
        make(&bundle, &Spec::default(), b"{}").unwrap();
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(bundle.join("config.json")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(make(&bundle, &Spec::default(), b"{}").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::create_dir_all(bundle.join("rootfs/precious")).unwrap();
        let error = remove(&bundle).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(error.to_string().contains("rootfs"), "{error}");
        fs::remove_dir(bundle.join("rootfs/precious")).unwrap();
        remove(&bundle).unwrap();
        remove(&bundle).unwrap();
        assert!(!folder.path().join("bundles/default").exists());
    }
}
