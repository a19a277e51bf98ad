//! The system and library calls that nix has no safe face for; every `unsafe` of the shim is here.

pub(crate) mod memory;
pub(crate) mod ready;
pub(crate) mod spawn;
