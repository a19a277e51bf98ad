//! What a one-threaded ttrpc server stands on, be it the shim or the supervisor: a unix socket for its owner alone, the
//! connections it admits, and signals as bytes that an event loop reads. What is served, and who is admitted, is theirs to
//! say.

mod connection;
mod signal;
mod socket;

pub use self::{
    connection::{Connection, connections},
    signal::{next_signal, signals},
    socket::{Listener, listen, listener},
};
