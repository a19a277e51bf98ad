//! An OCI spec in, a running container out. Knows nothing of ttrpc, tokio or containerd.
//!
//! A container is read ([`spec`]), decided ([`plan`]), done ([`run`]) and remembered ([`state`], [`container`]).
//!
//! Deciding is pure. [`plan::Plan::create`] takes the spec and the facts about this machine ([`host::Host`]) and returns one
//! list: everything that will happen, in its order, each entry with who does it: the runtime before the child exists,
//! the runtime beside it, the child, or both where they meet. What is wrong with a spec is found here, all of it at
//! once, before anything is touched. A plan can be printed.
//!
//! Doing is [`run::Launch`]. It makes the child by `clone3(2)`, with all namespaces in one call, and goes through its part
//! of the list while the child goes through its own (`run/child.rs`). They talk over a socket pair in messages of
//! eight bytes. A step that fails is named by its place in the list, with the call and the errno; what was made before it
//! is undone. Nothing in a launch waits: it names what it waits for ([`run::Wants`]), and an event loop or a poll loop
//! wakes it. The same machine runs an exec, whose plan is shorter.
//!
//! The process that makes containers has one thread. So the child, a copy of it, may do what any process may, allocate
//! for one; a launch counts the threads and refuses otherwise.
//!
//! The child trusts nothing in the root filesystem: every path in it is resolved by `openat2(2)` from a descriptor of the
//! container's root and acted on by descriptor (`sys/in_root.rs`, `step/mount.rs`).
//!
//! Around this stand [`cgroup`] (one face for v1, v2 and hybrid, made by us or by systemd), [`seccomp`] (profiles compiled to BPF), [`hooks`],
//! [`rootfs`] (the mounts an engine passes for the root), [`sealed`] (our own binary, out of a container's reach), [`probe`]
//! and [`features`] (what a host, and what this build, can do). Every `unsafe` is in [`sys`].

pub mod cgroup;
pub mod container;
mod facts;
pub mod features;
pub mod gate;
pub mod hooks;
pub mod host;
pub mod plan;
pub mod probe;
pub mod rootfs;
pub mod run;
pub mod sealed;
pub mod seccomp;
pub mod spec;
pub mod state;
mod step;
pub mod sys;

pub use facts::OCI_VERSION;
