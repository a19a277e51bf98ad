//! Two things about overlay: its lower layers may need an id mapping, and there may be more of them than mount(2) takes.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, chdir, fchdir, mkdtemp, sysconf};

use crate::sys::mount::{MountAttr, attr, clone_tree, idmap, mount_setattr, move_mount_to_path};
use crate::sys::{Call, Failed};

const LOWER: &str = "lowerdir=";

/// The lower layers of an overlay, apart from its other options.
fn layers(data: &[String]) -> Option<(usize, Vec<PathBuf>)> {
    let at = data.iter().position(|word| word.starts_with(LOWER))?;
    Some((at, data[at].strip_prefix(LOWER)?.split(':').map(PathBuf::from).collect()))
}

/// The deepest directory that holds all `layers`, each below it.
fn parent_of(layers: &[PathBuf]) -> Option<PathBuf> {
    let mut parent = layers.first()?.parent()?.to_owned();
    while !layers.iter().all(|layer| layer.starts_with(&parent) && layer != &parent) {
        parent = parent.parent()?.to_owned();
    }
    (parent != Path::new("/") && parent.is_absolute()).then_some(parent)
}

fn lower(layers: impl Iterator<Item = PathBuf>) -> String {
    let names: Vec<String> = layers.map(|layer| layer.to_string_lossy().into_owned()).collect();
    format!("{LOWER}{}", names.join(":"))
}

/// A mount for as long as the overlay on it is made.
#[derive(Debug)]
pub(super) struct Scaffold(PathBuf);

impl Drop for Scaffold {
    fn drop(&mut self) {
        let gone = umount2(&self.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        if let Err(errno) = gone.map_err(std::io::Error::from).and_then(|()| std::fs::remove_dir(&self.0)) {
            log::warn!("remove {}: {errno}", self.0.display());
        }
    }
}

/// Puts an id mapped, read-only view of the lower layers in place of the layers. It is mounted beside `at`, as overlay
/// takes no mount that is nowhere; once the overlay is mounted it has its own hold on it. Linux 5.19.
pub(super) fn map_lower(data: &mut [String], ids: BorrowedFd<'_>, at: &Path) -> Result<Scaffold, Failed> {
    let invalid = |call: Call| move |_| call.failed()(Errno::EINVAL);
    let (index, layers) = layers(data).ok_or(Failed { call: Call::OpenTree, errno: Errno::EINVAL })?;
    let parent = parent_of(&layers).ok_or(Failed { call: Call::OpenTree, errno: Errno::EINVAL })?;
    let source = CString::new(parent.as_os_str().as_bytes()).map_err(invalid(Call::OpenTree))?;
    let view = clone_tree(AT_FDCWD, &source, false)?;
    mount_setattr(&view, false, &MountAttr { set: attr::RDONLY, ..MountAttr::default() })?;
    idmap(std::os::fd::AsFd::as_fd(&view), false, ids)?;
    let beside = at.parent().unwrap_or(at).join("lower-XXXXXX");
    let place = mkdtemp(&beside).map_err(Call::Mkdir.failed())?;
    let path = CString::new(place.as_os_str().as_bytes()).map_err(invalid(Call::MoveMount))?;
    if let Err(failed) = move_mount_to_path(&view, &path) {
        return std::fs::remove_dir(&place).map_err(crate::sys::io_failed(Call::Rmdir)).and(Err(failed));
    }
    let scaffold = Scaffold(place);
    data[index] = lower(layers.iter().filter_map(|l| Some(scaffold.0.join(l.strip_prefix(&parent).ok()?))));
    Ok(scaffold)
}

/// Calls `mount` with the options as one string. mount(2) takes a page of them; where the layers of an overlay need more
/// they are named relative to the directory they share, and that is where the process stands meanwhile. The shim has one
/// thread, so nobody else notices.
pub(super) fn with_short_data(
    kind: &str,
    data: &[String],
    mount: impl FnOnce(&str) -> Result<(), Failed>,
) -> Result<(), Failed> {
    /// What containerd leaves of the page for the rest.
    const SPARE: usize = 512;

    let too_long = Failed { call: Call::Mount, errno: Errno::E2BIG };
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| usize::try_from(n).ok()).unwrap_or(4096);
    let text = data.join(",");
    if text.len() < page - SPARE {
        return mount(&text);
    }
    let shared =
        layers(data).filter(|_| kind == "overlay").and_then(|(at, layers)| Some((at, parent_of(&layers)?, layers)));
    let Some((index, parent, layers)) = shared else {
        return if text.len() < page { mount(&text) } else { Err(too_long) };
    };
    let mut short = data.to_vec();
    short[index] = lower(layers.iter().filter_map(|l| Some(l.strip_prefix(&parent).ok()?.to_owned())));
    let text = short.join(",");
    if text.len() >= page {
        return Err(too_long);
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let here = nix::fcntl::open(".", flags, Mode::empty()).map_err(Call::Open.failed())?;
    chdir(&parent).map_err(Call::Chdir.failed())?;
    let mounted = mount(&text);
    fchdir(&here).map_err(Call::Fchdir.failed())?;
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_shared_parent_is_strictly_above_every_layer() {
        for (layers, parent) in [
            (&["/s/1/fs", "/s/2/fs"][..], Some("/s")),
            (&["/s/1/fs"], Some("/s/1")),
            (&["/s/1", "/s/1/fs"], Some("/s")),
            (&["/s/10/fs", "/s/1/fs"], Some("/s")),
            (&["/a/1", "/b/1"], None),
            (&["a/1", "a/2"], None),
        ] {
            assert_eq!(parent_of(&paths(layers)), parent.map(PathBuf::from), "{layers:?}");
        }
    }

    #[test]
    fn long_layers_become_relative_and_the_rest_stays() {
        let layers: Vec<String> = (0..100).map(|n| format!("/usr/share/../share/{n:030}/fs")).collect();
        let data = ["upperdir=/u".to_owned(), format!("lowerdir={}", layers.join(":"))];
        let here = std::env::current_dir().expect("a directory");
        let mut told = String::new();
        let done = with_short_data("overlay", &data, |text| {
            assert_eq!(std::env::current_dir().expect("a directory"), Path::new("/usr/share"));
            told = text.to_owned();
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!(std::env::current_dir().expect("a directory"), here);
        assert!(told.starts_with(&format!("upperdir=/u,lowerdir={:030}/fs:", 0)) && told.len() < 4096, "{told}");
        let tmpfs = with_short_data("tmpfs", &["x".repeat(5000)], |_| Ok(()));
        assert_eq!(tmpfs.map_err(|f| f.errno), Err(Errno::E2BIG));
    }
}
