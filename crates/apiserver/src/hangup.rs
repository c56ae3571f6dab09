//! Sees that a client has left for good, and not only said its last word.
#![allow(
    unsafe_code,
    reason = "tokio leaves the promise that a descriptor stays the same to its caller"
)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Ready when the other end of a unix socket is closed for both directions.
///
/// Nothing is asked of the socket but urgent data, which nobody sends: the kernel tells of a hang-up unasked,
/// and of a mere end of input only those who ask for input.
///
/// # Errors
/// The socket cannot be watched.
pub(crate) async fn hung_up(socket: OwnedFd) -> io::Result<()> {
    // SAFETY: An `OwnedFd` stays open and the same until it is dropped, and `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::PRIORITY) };
    let socket = registered.map_err(|error| error.into_parts().1)?;
    loop {
        let mut ready = socket.ready(Interest::PRIORITY).await?;
        let mut set = [PollFd::new(ready.get_inner(), PollFlags::empty())];
        poll(&mut set, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if set[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(());
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use futures::FutureExt;

    use super::hung_up;

    #[tokio::test]
    async fn a_client_that_has_ended_its_input_has_not_left_until_it_closes_its_socket() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut gone = Box::pin(hung_up(server.try_clone().unwrap().into()));
        assert!((&mut gone).now_or_never().is_none());
        client.write_all(b"input").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        tokio::task::yield_now().await;
        assert!((&mut gone).now_or_never().is_none());
        drop(client);
        gone.await.unwrap();
    }
}
