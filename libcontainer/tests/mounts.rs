//! Root filesystems as containerd describes them, really mounted; each test in a mount namespace of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libcontainer::rootfs::{RootfsMount, Unmounted, mount_all, unmount_all};
use nix::mount::{MsFlags, mount};

#[path = "support/alone.rs"]
mod alone;

use self::alone::alone;

/// A tmpfs with what an overlay needs.
struct Stage {
    top: PathBuf,
    _keep: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let keep = tempfile::tempdir().expect("a folder");
        let top = keep.path().to_owned();
        mount(Some("stage"), &top, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
        for name in ["upper", "work", "bundle"] {
            fs::create_dir(top.join(name)).expect("folder");
        }
        Self { top, _keep: keep }
    }

    /// Makes a lower layer with one file, named as the layer.
    fn layer(&self, name: &str) -> String {
        let dir = self.top.join("layers").join(name).join("fs");
        fs::create_dir_all(&dir).expect("folder");
        fs::write(dir.join(name), name).expect("file");
        dir.to_str().expect("UTF-8").to_owned()
    }

    fn rootfs(&self) -> PathBuf {
        self.top.join("bundle/rootfs")
    }

    fn overlay(&self, layers: &[String], more: &[&str]) -> RootfsMount {
        let dir = |name: &str| self.top.join(name).to_str().expect("UTF-8").to_owned();
        let mut options = vec![
            format!("workdir={}", dir("work")),
            format!("upperdir={}", dir("upper")),
            format!("lowerdir={}", layers.join(":")),
        ];
        options.extend(more.iter().map(ToString::to_string));
        RootfsMount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }
}

fn bind(source: &Path, options: &[&str]) -> RootfsMount {
    RootfsMount {
        kind: "bind".into(),
        source: source.to_str().expect("UTF-8").into(),
        target: String::new(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

fn mounts_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("table");
    table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|path| Path::new(path).starts_with(dir))).count()
}

fn children() -> usize {
    let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
    fs::read_to_string(path).expect("children").split_whitespace().count()
}

#[test]
fn an_overlay_is_mounted_and_unmounted() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let overlay = stage.overlay(&[stage.layer("a"), stage.layer("b")], &["index=off"]);
    mount_all(&[overlay], &stage.rootfs()).expect("mounted").keep();
    assert_eq!(fs::read(stage.rootfs().join("a")).expect("a"), b"a");
    fs::write(stage.rootfs().join("c"), "c").expect("writable");
    assert_eq!(fs::read(stage.top.join("upper/c")).expect("c"), b"c");
    assert_eq!(unmount_all(&stage.rootfs()).expect("unmounted"), Unmounted::Done);
    assert_eq!(mounts_below(&stage.rootfs()), 0);
    assert_eq!(unmount_all(&stage.rootfs()).expect("again"), Unmounted::Done);
    assert_eq!(unmount_all(&stage.top.join("never")).expect("missing"), Unmounted::Done);
}

#[test]
fn more_layers_than_a_page_holds() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layers: Vec<String> = (0..100).map(|n| stage.layer(&format!("{n:04}-layer-of-some-length"))).collect();
    assert!(layers.join(":").len() > 4096);
    let here = std::env::current_dir().expect("a directory");
    mount_all(&[stage.overlay(&layers, &[])], &stage.rootfs()).expect("mounted").keep();
    assert_eq!(fs::read_dir(stage.rootfs()).expect("root").count(), 100);
    assert_eq!(std::env::current_dir().expect("a directory"), here);
}

#[test]
fn an_overlay_with_an_id_map_shows_mapped_owners_and_leaves_no_scaffold() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    // tmpfs takes id mappings since Linux 6.3.
    let layers = [stage.layer("a"), stage.layer("b")];
    let overlay = stage.overlay(&layers, &["uidmap=0:100000:65536", "gidmap=0:200000:65536"]);
    mount_all(&[overlay], &stage.rootfs()).expect("mounted").keep();
    let owner = fs::metadata(stage.rootfs().join("a")).expect("a");
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
    assert_eq!(mounts_below(&stage.top.join("bundle")), 1);
    assert_eq!(fs::read_dir(stage.top.join("bundle")).expect("bundle").count(), 1, "rootfs alone");
    assert_eq!(children(), 0, "the id map's process is reaped");
}

#[test]
fn a_read_only_bind_mount_is_read_only_and_an_id_mapped_one_mapped() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layer = PathBuf::from(stage.layer("a"));
    mount_all(&[bind(&layer, &["rbind", "ro"])], &stage.rootfs()).expect("mounted").keep();
    assert!(fs::write(stage.rootfs().join("x"), "").is_err());
    fs::write(layer.join("x"), "").expect("the source stays writable");
    assert_eq!(unmount_all(&stage.rootfs()).expect("unmounted"), Unmounted::Done);
    let mapped = bind(&layer, &["rbind", "uidmap=0:7000:10", "gidmap=0:8000:10"]);
    mount_all(&[mapped], &stage.rootfs()).expect("mounted").keep();
    let owner = fs::metadata(stage.rootfs().join("a")).expect("a");
    assert_eq!((owner.uid(), owner.gid()), (7000, 8000));
    assert_eq!(mounts_below(&stage.rootfs()), 1);
}

#[test]
fn a_target_is_found_inside_the_rootfs_whatever_links_say() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layer = PathBuf::from(stage.layer("a"));
    fs::create_dir(layer.join("place")).expect("folder");
    symlink("/place", layer.join("link")).expect("link");
    symlink("/../../../../etc", layer.join("out")).expect("link");
    let data = stage.layer("data");
    let below = |target: &str| RootfsMount { target: target.into(), ..bind(Path::new(&data), &["bind"]) };
    mount_all(&[bind(&layer, &["rbind"]), below("link")], &stage.rootfs()).expect("mounted").keep();
    assert_eq!(fs::read(stage.rootfs().join("place/data")).expect("data"), b"data");
    assert_eq!(unmount_all(&stage.rootfs()).expect("unmounted"), Unmounted::Done, "both");
    assert_eq!(mounts_below(&stage.rootfs()), 0);
    let error = mount_all(&[bind(&layer, &["rbind"]), below("out")], &stage.rootfs()).expect_err("no such place");
    assert!(error.to_string().contains("openat2: ENOENT"), "{error}");
    assert_eq!(mounts_below(&stage.rootfs()), 0, "the first mount is undone");
}

#[test]
fn a_failure_names_the_mount_and_undoes_the_ones_before() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layer = PathBuf::from(stage.layer("a"));
    let missing = bind(Path::new("/nowhere/at/all"), &["rbind"]);
    let error = mount_all(&[bind(&layer, &["rbind"]), missing], &stage.rootfs()).expect_err("missing");
    let at = stage.rootfs();
    let expected = format!("mount bind /nowhere/at/all at {}: mount: ENOENT: No such file or directory", at.display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(mounts_below(&at), 0);
    for (kind, option, says) in [
        ("overlay", "X-containerd.mkdir.path=/x", "X-containerd.mkdir.path=/x"),
        ("fuse3.sshfs", "ro", "mount helper"),
        ("overlay", "uidmap=0:1:1", "together"),
    ] {
        let wanted = RootfsMount { kind: kind.into(), options: vec![option.into()], ..RootfsMount::default() };
        let error = mount_all(&[wanted], &at).expect_err("refused").to_string();
        assert!(error.starts_with("rootfs mount 0: ") && error.contains(says), "{error}");
    }
}

#[test]
fn what_is_busy_is_said_to_be_and_stays_mounted() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let layer = PathBuf::from(stage.layer("a"));
    mount_all(&[bind(&layer, &["rbind"])], &stage.rootfs()).expect("mounted").keep();
    mount(Some("x"), &stage.rootfs(), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("on top");
    let user = fs::File::create_new(stage.rootfs().join("user")).expect("file");
    assert_eq!(unmount_all(&stage.rootfs()).expect("an answer"), Unmounted::Busy);
    assert_eq!(mounts_below(&stage.rootfs()), 2);
    drop(user);
    assert_eq!(unmount_all(&stage.rootfs()).expect("an answer"), Unmounted::Done);
    assert_eq!(mounts_below(&stage.rootfs()), 0);
}

#[test]
fn an_image_file_is_mounted_through_a_loop_device_that_goes_with_it() {
    if !alone() {
        return;
    }
    let stage = Stage::new();
    let image = stage.top.join("image");
    fs::File::create_new(&image).and_then(|file| file.set_len(4 << 20)).expect("image");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().expect("mkfs.ext4 runs");
    assert!(made.success());
    let wanted = RootfsMount {
        kind: "ext4".into(),
        source: image.to_str().expect("UTF-8").into(),
        target: String::new(),
        options: vec!["loop".into(), "ro".into()],
    };
    mount_all(&[wanted], &stage.rootfs()).expect("mounted").keep();
    assert!(stage.rootfs().join("lost+found").is_dir());
    assert!(fs::write(stage.rootfs().join("x"), "").is_err(), "read-only");
    let uses = || {
        let devices = fs::read_dir("/sys/block").expect("block devices").map(|entry| entry.expect("entry").path());
        let files = devices.filter_map(|path| fs::read_to_string(path.join("loop/backing_file")).ok());
        files.filter(|file| file.trim() == image.to_str().expect("UTF-8")).count()
    };
    assert_eq!(uses(), 1);
    assert_eq!(unmount_all(&stage.rootfs()).expect("unmounted"), Unmounted::Done);
    // udev may be looking at the device.
    let deadline = Instant::now() + Duration::from_secs(60);
    while uses() > 0 {
        assert!(Instant::now() < deadline, "a loop device is left");
        std::thread::yield_now();
    }
}
