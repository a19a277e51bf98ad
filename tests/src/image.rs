//! The image every container runs: busybox, written as an OCI layout in a tar file. No network, no tool.

use std::{fs, path::Path, process::Command, sync::OnceLock};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::subject::find_program;

/// The name the image has in containerd.
pub const IMAGE: &str = "docker.io/library/dunnage-test:1";

/// The image as `ctr image import` takes it.
pub(crate) fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let layer = layer();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        })
        .to_string();
        let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        listed["annotations"] = json!({ "io.containerd.image.name": IMAGE });
        let index = json!({ "schemaVersion": 2, "manifests": [listed] }).to_string();

        let mut tar = Tar::default();
        tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        tar.file("index.json", 0o644, index.as_bytes());
        for blob in [config.as_bytes(), manifest.as_bytes(), layer] {
            tar.file(&format!("blobs/sha256/{:x}", Sha256::digest(blob)), 0o644, blob);
        }
        tar.finish()
    })
}

/// Unpacks the image's files into `dir`, for containers whose root is a plain folder.
pub(crate) fn unpack(dir: &Path) {
    let tar = dir.with_extension("tar");
    fs::write(&tar, layer()).expect("write the layer");
    fs::create_dir(dir).expect("make the root");
    let busybox = find_program("busybox").expect("busybox");
    let status = Command::new(busybox).args(["tar", "-xf"]).arg(&tar).arg("-C").arg(dir).status();
    assert!(status.expect("run busybox tar").success(), "unpack the image");
    fs::remove_file(&tar).expect("remove the layer");
}

/// busybox under all its names, the folders a container wants, and two users.
fn layer() -> &'static [u8] {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    LAYER.get_or_init(|| {
        let busybox = find_program("busybox").expect("busybox");
        let names = Command::new(&busybox).arg("--list").output().expect("busybox --list").stdout;
        let mut tar = Tar::default();
        for dir in ["bin", "dev", "etc", "home", "home/porter", "mnt", "proc", "root", "run", "sys"] {
            tar.dir(dir, 0o755);
        }
        tar.dir("tmp", 0o1777);
        tar.file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nporter:x:1000:1000::/home/porter:/bin/sh\n");
        tar.file("etc/group", 0o644, b"root:x:0:\nporter:x:1000:\ncrane:x:2000:porter\n");
        tar.file("bin/busybox", 0o755, &fs::read(&busybox).expect("read busybox"));
        for name in String::from_utf8_lossy(&names).lines().filter(|name| *name != "busybox") {
            tar.symlink(&format!("bin/{name}"), "busybox");
        }
        tar.finish()
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(blob))
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

/// A tar archive in the making: the `ustar` format of POSIX.1-1988, which is all the image needs.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    const BLOCK: usize = 512;

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.header(path, mode, b'0', "", content.len());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(Self::BLOCK), 0);
    }

    fn dir(&mut self, path: &str, mode: u32) {
        self.header(path, mode, b'5', "", 0);
    }

    fn symlink(&mut self, path: &str, target: &str) {
        self.header(path, 0o777, b'2', target, 0);
    }

    fn header(&mut self, path: &str, mode: u32, kind: u8, target: &str, size: usize) {
        let mut block = [0; Self::BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000"); // uid
        put(116, "0000000"); // gid
        put(124, &format!("{size:011o}"));
        put(136, "00000000000"); // the time of last change
        put(148, "        "); // the checksum counts as blanks in its own sum
        put(157, target);
        put(257, "ustar\x0000");
        block[156] = kind;
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * Self::BLOCK, 0);
        self.0
    }
}
