//! Signals as bytes.

use std::io;

use signal_hook::low_level::pipe;
use tokio::{io::AsyncReadExt as _, net::UnixStream};

/// A stream that carries a byte whenever one of `numbers` came, and surely one after the last.
///
/// # Errors
/// When there is no descriptor left, or one of `numbers` cannot be caught.
pub fn signals(numbers: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let write = write.into_std()?;
    for &number in numbers {
        pipe::register(number, write.try_clone()?)?;
    }
    Ok(read)
}

/// Waits for a signal, and takes all that came so far as one.
pub async fn next_signal(stream: &mut UnixStream) {
    if let Err(error) = stream.read(&mut [0; 64]).await {
        log::warn!("read signals: {error}");
    }
}
