//! The runtime's options: what containerd was configured to tell us about how to run containers.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use runtime_v2_api::{Any, Payload, runc, runctypes, runtimeoptions, unpack};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the state of containers is kept unless `Root` says otherwise.
const DEFAULT_ROOT: &str = "/run/dunnage";
/// The copy of the options in the bundle, by the name that runc's shim gives it.
const FILE: &str = "options.json";
/// The programs that may be asked for by name: us.
const OURS: [&str; 2] = ["containerd-shim-dunnage-v2", "dunnage-oci"];

/// runc's options. As TOML they have Go's names, and other keys are errors; as JSON they have protobuf's.
///
/// What is only for other programs (CRIU, containerd itself) is accepted and has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "PascalCase"), default, deny_unknown_fields)]
pub(crate) struct Options {
    /// `MS_MOVE` the root filesystem instead of pivoting to it, for hosts that run from an initramfs.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) no_pivot_root: bool,
    /// Leave the container in our session keyring.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) no_new_keyring: bool,
    /// The existing cgroup that the shim itself moves to.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) shim_cgroup: String,
    /// Owner of the container's ends of its stdio pipes.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_uid: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_gid: u32,
    #[serde(skip_serializing_if = "is_default")]
    binary_name: String,
    #[serde(skip_serializing_if = "is_default")]
    root: String,
    /// systemd makes the container's cgroup.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) systemd_cgroup: bool,
    #[serde(skip_serializing_if = "is_default")]
    criu_path: String,
    #[serde(skip_serializing_if = "is_default")]
    criu_image_path: String,
    #[serde(skip_serializing_if = "is_default")]
    criu_work_path: String,
    #[serde(skip_serializing_if = "is_default")]
    task_api_address: String,
    #[serde(skip_serializing_if = "is_default")]
    task_api_version: u32,
}

/// An option that we do not know may be one that somebody relies on.
fn known<M: Payload>(options: &M) -> Result<(), OptionsError> {
    match options.unknown_fields().iter().next() {
        Some((number, _)) => Err(OptionsError::Field(M::TYPE_URL, number)),
        None => Ok(()),
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Options that we cannot follow.
#[derive(Debug, Error)]
pub(crate) enum OptionsError {
    #[error(
        "cannot run {0:?}: this shim is its own runtime and executes no other; remove BinaryName (ctr: --runc-binary), \
         or use the runtime io.containerd.runc.v2"
    )]
    ForeignRuntime(String),
    #[error("runtime options of the unknown type {0:?}")]
    Type(String),
    #[error("runtime options of type {0} with the unknown field {1}")]
    Field(&'static str, u32),
    #[error("decode runtime options: {0}")]
    Protobuf(#[from] protobuf::Error),
    #[error("runtime options in TOML: {0}")]
    Toml(String),
    #[error("read runtime options from {0}: {1}")]
    File(String, io::Error),
}

impl Options {
    /// The options that containerd sent, or the defaults if it sent none.
    pub(crate) fn read(any: &Any) -> Result<Self, OptionsError> {
        let options = if any.type_url.is_empty() && any.value.is_empty() {
            Self::default()
        } else if let Some(options) = unpack::<runc::Options>(any)? {
            Self::from_runc(options)?
        } else if let Some(options) = unpack::<runctypes::CreateOptions>(any)? {
            Self::from_runctypes(options)?
        } else if let Some(options) = unpack::<runtimeoptions::Options>(any)? {
            Self::from_toml(&options)?
        } else {
            return Err(OptionsError::Type(any.type_url.clone()));
        };
        options.check()
    }

    fn from_runc(options: runc::Options) -> Result<Self, OptionsError> {
        known(&options)?;
        Ok(Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_path: options.criu_path,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            task_api_address: options.task_api_address,
            task_api_version: options.task_api_version,
        })
    }

    /// What `ctr` of containerd 1.x sends for `--uidmap` and `--no-pivot` to a runtime that is not called runc.
    fn from_runctypes(options: runctypes::CreateOptions) -> Result<Self, OptionsError> {
        known(&options)?;
        Ok(Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            ..Self::default()
        })
    }

    /// What CRI, dockerd and `ctr --runtime-config-path` send to a runtime that is not runc: TOML, here or in a file.
    fn from_toml(options: &runtimeoptions::Options) -> Result<Self, OptionsError> {
        let path = &options.config_path;
        let toml = if options.config_body.is_empty() && !path.is_empty() {
            &fs::read(path).map_err(|error| OptionsError::File(path.clone(), error))?
        } else {
            &options.config_body
        };
        // Its own text shows the line, the place in it, and why.
        toml::from_slice(toml).map_err(|error| OptionsError::Toml(error.to_string().trim_end().to_owned()))
    }

    fn check(self) -> Result<Self, OptionsError> {
        let name = Path::new(&self.binary_name).file_name().unwrap_or_default();
        if !self.binary_name.is_empty() && !OURS.iter().any(|ours| name == *ours) {
            return Err(OptionsError::ForeignRuntime(self.binary_name));
        }
        Ok(self)
    }

    /// Where the states of the namespace's containers are.
    pub(crate) fn state_root(&self, namespace: &str) -> PathBuf {
        state_root(&self.root, namespace)
    }

    /// Leaves a copy in the bundle for `delete`, which nobody tells the options.
    pub(crate) fn save(&self, bundle: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(bundle.join(FILE))?;
        file.write_all(&json)
    }
}

/// Where the state of the container is whose bundle this is, by the options that were saved there.
///
/// The bundle may be another shim's work, older or newer than us, so unknown options are not ours to judge here.
pub(crate) fn saved_state_root(bundle: &Path, namespace: &str) -> io::Result<PathBuf> {
    #[derive(Default, Deserialize)]
    struct Saved {
        #[serde(default)]
        root: String,
    }
    let saved = match fs::read(bundle.join(FILE)) {
        Ok(json) => serde_json::from_slice::<Saved>(&json)?,
        // Create did not get that far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
        Err(error) => return Err(error),
    };
    Ok(state_root(&saved.root, namespace))
}

fn state_root(root: &str, namespace: &str) -> PathBuf {
    Path::new(if root.is_empty() { DEFAULT_ROOT } else { root }).join(namespace)
}

#[cfg(test)]
mod tests {
    use runtime_v2_api::pack;

    use super::*;

    fn runc(options: runc::Options) -> Result<Options, String> {
        Options::read(&pack(&options).unwrap()).map_err(|error| error.to_string())
    }

    fn toml(body: &str) -> Result<Options, String> {
        let options = runtimeoptions::Options { config_body: body.into(), ..Default::default() };
        Options::read(&pack(&options).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_means_the_defaults() {
        assert_eq!(Options::read(&Any::new()).unwrap(), Options::default());
        assert_eq!(runc(runc::Options::new()), Ok(Options::default()));
        assert_eq!(toml(""), Ok(Options::default()));
        assert_eq!(Options::default().state_root("k8s.io"), Path::new("/run/dunnage/k8s.io"));
    }

    #[test]
    fn both_messages_say_the_same() {
        let expected = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shims".into(),
            io_uid: 1000,
            io_gid: 1001,
            binary_name: "/usr/bin/containerd-shim-dunnage-v2".into(),
            root: "/run/x".into(),
            systemd_cgroup: true,
            ..Options::default()
        };
        let sent = runc::Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shims".into(),
            io_uid: 1000,
            io_gid: 1001,
            binary_name: "/usr/bin/containerd-shim-dunnage-v2".into(),
            root: "/run/x".into(),
            systemd_cgroup: true,
            ..Default::default()
        };
        assert_eq!(runc(sent), Ok(expected.clone()));
        let from_ctr = runctypes::CreateOptions {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shims".into(),
            io_uid: 1000,
            io_gid: 1001,
            ..Default::default()
        };
        let without =
            Options { binary_name: String::new(), root: String::new(), systemd_cgroup: false, ..expected.clone() };
        assert_eq!(Options::read(&pack(&from_ctr).unwrap()).unwrap(), without);
        let body = "NoPivotRoot = true\nNoNewKeyring = true\nShimCgroup = '/shims'\nIoUid = 1000\nIoGid = 1001\n\
                    BinaryName = '/usr/bin/containerd-shim-dunnage-v2'\nRoot = '/run/x'\nSystemdCgroup = true\n";
        assert_eq!(toml(body), Ok(expected.clone()));
        assert_eq!(expected.state_root("default"), Path::new("/run/x/default"));
    }

    #[test]
    fn a_file_may_hold_the_options() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dunnage.toml");
        fs::write(&path, "Root = '/run/x'").unwrap();
        let options = runtimeoptions::Options { config_path: path.to_str().unwrap().into(), ..Default::default() };
        assert_eq!(Options::read(&pack(&options).unwrap()).unwrap().root, "/run/x");
        fs::remove_file(&path).unwrap();
        let error = Options::read(&pack(&options).unwrap()).unwrap_err().to_string();
        assert!(error.contains("dunnage.toml: No such file"), "{error}");
    }

    #[test]
    fn what_we_cannot_follow_is_refused_by_name() {
        let foreign = runc(runc::Options { binary_name: "no-runc".into(), ..Default::default() }).unwrap_err();
        assert!(foreign.starts_with("cannot run \"no-runc\": "), "{foreign}");
        let foreign = toml("BinaryName = '/usr/bin/crun'").unwrap_err();
        assert!(foreign.starts_with("cannot run \"/usr/bin/crun\": "), "{foreign}");
        let unknown = toml("Root = '/x'\nRooot = '/y'").unwrap_err();
        assert!(unknown.contains("unknown field `Rooot`") && unknown.contains("line 2"), "{unknown}");
        let unknown = toml("root = '/x'").unwrap_err();
        assert!(unknown.contains("unknown field `root`"), "{unknown}");
        let unknown = Any { type_url: runc::Options::TYPE_URL.into(), value: vec![0xa0, 1, 7], ..Any::default() };
        let unknown = Options::read(&unknown).unwrap_err().to_string();
        assert_eq!(unknown, "runtime options of type containerd.runc.v1.Options with the unknown field 20");
        let unknown = Any { type_url: "io.containerd.runhcs.v1.Options".into(), ..Any::default() };
        let unknown = Options::read(&unknown).unwrap_err().to_string();
        assert_eq!(unknown, "runtime options of the unknown type \"io.containerd.runhcs.v1.Options\"");
        let broken = Any { type_url: runc::Options::TYPE_URL.into(), value: vec![0x1a, 200], ..Any::default() };
        assert!(matches!(Options::read(&broken), Err(OptionsError::Protobuf(_))));
    }

    #[test]
    fn the_saved_copy_has_runcs_form_and_anybodys_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        let root = || saved_state_root(bundle.path(), "default");
        assert_eq!(root().unwrap(), Path::new("/run/dunnage/default"));

        let options = Options { root: "/run/x".into(), io_uid: 7, no_pivot_root: true, ..Options::default() };
        options.save(bundle.path()).unwrap();
        let json = fs::read_to_string(bundle.path().join(FILE)).unwrap();
        assert_eq!(json, r#"{"no_pivot_root":true,"io_uid":7,"root":"/run/x"}"#);
        assert_eq!(root().unwrap(), Path::new("/run/x/default"));

        fs::write(bundle.path().join(FILE), r#"{"binary_name":"runc","a_new_one":[1],"root":"/run/y"}"#).unwrap();
        assert_eq!(root().unwrap(), Path::new("/run/y/default"));
        fs::write(bundle.path().join(FILE), "{").unwrap();
        assert_eq!(root().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
