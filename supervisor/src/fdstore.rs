//! Descriptors that others park here, so that they stay open whatever becomes of who made them: pidfds, the masters of
//! terminals, the ends of pipes. They go over the supervisor's own upgrade too, and end with it.
//!
//! ttrpc carries no descriptors. Each side fetches its own from the other's process instead, by `pidfd_getfd(2)` (Linux
//! 5.6), for which the kernel asks the rights of a debugger: root's, or the same user's.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libcontainer::sys::{
    Failed,
    process::{pidfd_getfd, pidfd_open},
};
use nix::unistd::Pid;
use runtime_v2_api::supervisor::{ParkRequest, Parked, TakeRequest, TakeResponse};

/// What one owner may park. A container has a handful.
const MOST: usize = 64;

/// The descriptors, by owner and name. Copies share them.
#[derive(Clone, Debug, Default)]
pub struct FdStore(Arc<Mutex<BTreeMap<String, BTreeMap<String, OwnedFd>>>>);

/// Why descriptors could not be parked or taken.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// The request makes no sense.
    #[error("{0}")]
    Refused(&'static str),
    /// More than is reasonable.
    #[error("{0} parks more than {MOST} descriptors")]
    TooMany(String),
    /// There is nothing.
    #[error("{0} has parked nothing")]
    Nothing(String),
    /// The kernel does not hand it over.
    #[error("fetch descriptor {fd} ({name}) of process {pid}: {source}")]
    Fetch {
        /// Of the caller.
        pid: u32,
        /// Its number there.
        fd: i32,
        /// What the caller calls it.
        name: String,
        /// The kernel's answer.
        source: Failed,
    },
    /// The caller is gone.
    #[error("find process {0}: {1}")]
    Process(u32, Failed),
}

impl FdStore {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<String, OwnedFd>>> {
        // Whoever panicked held only whole descriptors.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the caller's descriptors: all of them or none.
    ///
    /// # Errors
    /// Names the descriptor that could not be fetched.
    pub fn park(&self, request: &ParkRequest) -> Result<(), FdStoreError> {
        if request.owner.is_empty() || request.fds.iter().any(|parked| parked.name.is_empty()) {
            return Err(FdStoreError::Refused("an owner and the descriptors have names"));
        }
        let caller = pidfd_open(pid(request.pid)).map_err(|failed| FdStoreError::Process(request.pid, failed))?;
        let fetched: BTreeMap<String, OwnedFd> =
            request.fds.iter().map(|parked| fetch(request.pid, caller.as_fd(), parked)).collect::<Result<_, _>>()?;
        let mut store = self.lock();
        let names = store.get(&request.owner).into_iter().flat_map(BTreeMap::keys);
        if names.filter(|name| !fetched.contains_key(*name)).count() + fetched.len() > MOST {
            return Err(FdStoreError::TooMany(request.owner.clone()));
        }
        store.entry(request.owner.clone()).or_default().extend(fetched);
        Ok(())
    }

    /// Names our own numbers of an owner's descriptors; or, when it has fetched them, closes ours.
    ///
    /// # Errors
    /// When it has parked nothing.
    pub fn take(&self, request: &TakeRequest) -> Result<TakeResponse, FdStoreError> {
        let mut store = self.lock();
        let nothing = || FdStoreError::Nothing(request.owner.clone());
        let mut response = TakeResponse { pid: std::process::id(), ..Default::default() };
        if request.done {
            store.remove(&request.owner).ok_or_else(nothing)?;
            return Ok(response);
        }
        let parked =
            |(name, fd): (&String, &OwnedFd)| Parked { name: name.clone(), fd: fd.as_raw_fd(), ..Default::default() };
        response.fds = store.get(&request.owner).ok_or_else(nothing)?.iter().map(parked).collect();
        Ok(response)
    }

    /// Lends all of them, as `(owner, name, descriptor)`.
    pub(crate) fn with_all<T>(&self, look: impl FnOnce(&[(&str, &str, BorrowedFd<'_>)]) -> T) -> T {
        let store = self.lock();
        let all = store.iter().flat_map(|(owner, fds)| fds.iter().map(|(name, fd)| (&**owner, &**name, fd.as_fd())));
        look(&all.collect::<Vec<_>>())
    }

    /// One that our former self held.
    pub(crate) fn insert(&self, owner: String, name: String, fd: OwnedFd) {
        self.lock().entry(owner).or_default().insert(name, fd);
    }
}

fn fetch(pid: u32, caller: BorrowedFd<'_>, parked: &Parked) -> Result<(String, OwnedFd), FdStoreError> {
    let fd = pidfd_getfd(caller, parked.fd);
    let failed = |source| FdStoreError::Fetch { pid, fd: parked.fd, name: parked.name.clone(), source };
    fd.map(|fd| (parked.name.clone(), fd)).map_err(failed)
}

/// A number that no process has is for the kernel to refuse.
fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
    };

    use super::*;

    fn park(store: &FdStore, owner: &str, name: &str, fd: i32) -> Result<(), FdStoreError> {
        let fds = vec![Parked { name: name.into(), fd, ..Default::default() }];
        store.park(&ParkRequest { owner: owner.into(), pid: std::process::id(), fds, ..Default::default() })
    }

    fn take(store: &FdStore, owner: &str, done: bool) -> Result<TakeResponse, FdStoreError> {
        store.take(&TakeRequest { owner: owner.into(), done, ..Default::default() })
    }

    #[test]
    fn a_parked_descriptor_outlives_the_one_it_was_made_from() {
        let store = FdStore::default();
        let (read_end, write_end) = nix::unistd::pipe().unwrap();
        park(&store, "web", "stdout", write_end.as_raw_fd()).unwrap();
        drop(write_end);
        let taken = take(&store, "web", false).unwrap();
        let us = pidfd_open(pid(taken.pid)).unwrap();
        let mut fetched = File::from(pidfd_getfd(us.as_fd(), taken.fds[0].fd).unwrap());
        take(&store, "web", true).unwrap();
        fetched.write_all(b"still there").unwrap();
        drop(fetched);
        let mut text = String::new();
        // To the end: nothing else holds it any more.
        File::from(read_end).read_to_string(&mut text).unwrap();
        assert_eq!(text, "still there");
        assert!(matches!(take(&store, "web", false), Err(FdStoreError::Nothing(_))));
    }

    #[test]
    fn what_cannot_be_fetched_is_named_and_nothing_is_kept() {
        let store = FdStore::default();
        let error = park(&store, "web", "master", 99_999).unwrap_err().to_string();
        assert!(error.starts_with("fetch descriptor 99999 (master) of process"), "{error}");
        assert!(store.with_all(|all| all.is_empty()));
        assert!(matches!(park(&store, "", "master", 0), Err(FdStoreError::Refused(_))));
        let nobody = ParkRequest { owner: "web".into(), pid: u32::MAX, ..Default::default() };
        assert!(matches!(store.park(&nobody), Err(FdStoreError::Process(..))));
    }

    #[test]
    fn an_owner_may_not_park_without_bounds() {
        let store = FdStore::default();
        for number in 0..MOST {
            park(&store, "web", &number.to_string(), 0).unwrap();
        }
        assert!(matches!(park(&store, "web", "more", 0), Err(FdStoreError::TooMany(_))));
        park(&store, "web", "0", 0).unwrap();
    }
}
