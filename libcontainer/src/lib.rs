//! An OCI spec in, a running container out. Knows nothing of ttrpc, tokio or containerd.

pub mod cgroup;
pub mod seccomp;
pub mod sys;

