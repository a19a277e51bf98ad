//! The harness of the end-to-end tests.
//!
//! Each test is a [`case`]: it has a containerd of its own (Debian's, private root, state and socket), an image made on
//! the spot from busybox-static, and a recorder of every event. The test says what it does through [`Case`]; when it is
//! done, the harness takes away what containers are left, the ordinary way, and then asks what DESIGN calls the oracle:
//!
//! - is anything left behind: a process, a mount, a cgroup, a socket, a file, a descriptor in containerd ([`residue`]);
//! - did each container's events come in the order of the grammar ([`events`]).
//!
//! A containerd starts in some 50 ms, so nothing is shared and all tests may run at the same time: everything of a case
//! carries the case's own name, and nothing else is looked at. Waiting is for a pidfd, an inotify watch or a reply, or,
//! where nothing announces what is waited for, [`eventually`]; it gives up after [`patience`] with what was seen until
//! then. No test asserts how long something took.
//!
//! What the environment may say:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DUNNAGE_TEST_RUNTIME` | the runtime under test; `io.containerd.runc.v2` runs the tests against the reference | `io.containerd.dunnage.v2` |
//! | `DUNNAGE_TEST_SHIM` | the shim's binary | `containerd-shim-dunnage-v2` of the release build in this target folder |
//! | `DUNNAGE_TEST_SLOW` | how many times longer to wait before something counts as lost | 1 |
//! | `ROOT_TESTS` | `must`: a test that cannot run here fails | skip, and say so |

pub mod alone;
mod case;
pub mod cgroup;
mod client;
mod daemon;
pub mod events;
mod image;
pub mod process;
pub mod residue;
pub mod shim;
mod subject;
mod terminal;
mod wait;

pub use alone::{Alone, Cli, User, alone, alone_as};
pub use case::{Case, case, case_of_ours, case_under_systemd, under_systemd};
pub use client::{Foreground, Outcome, Run, namespace_of};
pub use events::Event;
pub use image::IMAGE;
pub use subject::Subject;
pub use terminal::Terminal;
pub use wait::{Transcript, eventually, patience, readable};
