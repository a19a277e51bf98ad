//! A config.json that is broken or means harm: the reason is given, and nothing is done.
//!
//! containerd writes config.json itself and would refuse these; a shim must not rely on that, so it is driven by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use dunnage_tests::{Case, case, shim::Shim};
use serde_json::json;

/// Starts a shim as containerd does, in a bundle with the given config.json, or none.
fn start(c: &Case, id: &str, config: Option<&[u8]>) -> (PathBuf, fs::File, Result<Shim, String>) {
    let bundle = c.path(format!("bundles/{id}"));
    fs::create_dir_all(bundle.join("rootfs")).expect("make a bundle");
    if let Some(config) = config {
        fs::write(bundle.join("config.json"), config).expect("write config.json");
    }
    let log = bundle.join("log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).expect("make the log");
    // containerd holds it open both ways, so that no shim waits for a reader.
    let log = fs::OpenOptions::new().read(true).write(true).open(log).expect("open the log");
    c.may_leave_socket(id);
    let address = c.path("c.sock");
    let output = Command::new(c.subject.shim())
        .args(["-namespace", &c.name, "-address", &address.to_string_lossy(), "-publish-binary", "containerd"])
        .args(["-id", id, "start"])
        .current_dir(&bundle)
        .env("TTRPC_ADDRESS", c.events_address())
        .env("PATH", c.path("bin"))
        .output()
        .expect("run the shim");
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let shim = if output.status.success() { Ok(Shim::at(&text(&output.stdout))) } else { Err(text(&output.stderr)) };
    (bundle, log, shim)
}

/// Tries to create a container from `config`; the message of the error it must give. Nothing may be left of it.
fn refused(c: &Case, id: &str, config: Option<&[u8]>) -> String {
    let (bundle, _log, shim) = start(c, id, config);
    let message = match shim {
        Err(message) => message,
        Ok(shim) => {
            let error = shim.create(id, &bundle).expect_err("a container from a broken config.json").to_string();
            // It goes on serving, and goes when told to.
            assert_eq!(dunnage_tests::shim::code(shim.state(id, "")), ttrpc::Code::NOT_FOUND);
            let pid = shim.identify(id).expect("connect").shim_pid;
            shim.shutdown(id);
            dunnage_tests::process::wait_for_end(pid);
            error
        }
    };
    delete(c, id, &bundle);
    message
}

/// The `delete` command, which containerd runs when a shim is gone.
fn delete(c: &Case, id: &str, bundle: &Path) {
    let status = Command::new(c.subject.shim())
        .args(["-namespace", &c.name, "-address", &c.path("c.sock").to_string_lossy(), "-id", id])
        .args(["-bundle", &bundle.to_string_lossy(), "delete"])
        .current_dir(bundle)
        .env("PATH", c.path("bin"))
        .output()
        .expect("run the shim");
    // The reference wants files that a failed Create did not make.
    assert!(status.status.success() || !c.subject.is_ours(), "{status:?}");
}

#[test]
fn a_broken_config_json_is_refused_with_the_reason() {
    case(|c| {
        let whole = c.spec("whole", Path::new("rootfs"), &["true"]).to_string();
        let deep = "[".repeat(100_000);
        let spoiled = |spoil: fn(&mut serde_json::Value)| {
            let mut spec = c.spec("spoiled", Path::new("rootfs"), &["true"]);
            spoil(&mut spec);
            spec.to_string().into_bytes()
        };
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("empty", Vec::new()),
            ("no-json", b"ahoy".to_vec()),
            ("half", whole.as_bytes()[..whole.len() / 2].to_vec()),
            ("deep", deep.into_bytes()),
            ("list", b"[]".to_vec()),
            ("not-utf-8", b"{\"ociVersion\":\"\xff\xfe".to_vec()),
            ("args-number", spoiled(|spec| spec["process"]["args"] = json!(5))),
            ("args-nested", spoiled(|spec| spec["process"]["args"] = json!([["true"]]))),
            ("uid-negative", spoiled(|spec| spec["process"]["user"]["uid"] = json!(-1))),
            ("uid-large", spoiled(|spec| spec["process"]["user"]["uid"] = json!(1_u64 << 40))),
            ("arg-with-nul", spoiled(|spec| spec["process"]["args"] = json!(["/bin/true\u{0}x"]))),
            ("limit-text", spoiled(|spec| spec["linux"]["resources"] = json!({ "memory": { "limit": "much" } }))),
        ];
        let mut faults = Vec::new();
        for (id, config) in cases {
            let message = refused(c, id, Some(&config));
            if message.len() < 10 {
                faults.push(format!("{id}: {message:?} is no reason"));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(c.residue().is_empty(), "{:?}", c.residue());
    });
}

#[test]
fn a_missing_config_json_is_named() {
    case(|c| {
        let message = refused(c, "bare", None);
        assert!(message.contains("config.json"), "{message}");
        assert!(c.residue().is_empty(), "{:?}", c.residue());
    });
}

#[test]
fn links_in_the_root_lead_nowhere_outside_it() {
    case(|c| {
        let root = c.root_folder("root");
        let outside = c.path("outside");
        fs::create_dir(&outside).expect("make a folder");
        fs::write(outside.join("file"), "untouched").expect("write");
        // Where mounts, masks, devices and the working directory would go, there are links to the outside.
        for name in ["mnt", "dev", "proc", "sys", "tmp"] {
            fs::remove_dir_all(root.join(name)).expect("remove a folder");
            std::os::unix::fs::symlink(&outside, root.join(name)).expect("link");
        }
        let mut spec = c.spec("linked", &root, &["sh", "-c", "ls /mnt"]);
        spec["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(json!({ "destination": "/mnt/deep/er", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] }));
        spec["process"]["cwd"] = "/tmp/cwd".into();
        // Whether it starts is the runtime's choice; that nothing happens outside is not.
        c.run_spec("linked", &spec).output();
        let found: Vec<_> = fs::read_dir(&outside).expect("read").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(found, ["file"]);
        assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "untouched");
    });
}
