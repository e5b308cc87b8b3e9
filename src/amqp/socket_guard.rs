//! The socket under a connection, held from outside the client as well.
//!
//! The client has no way to let go of a socket. An attempt that is given up in the middle of its handshake, and a connection
//! that the broker has blocked, would keep a thread and a socket each until the peer ends them, which may be never: a
//! night of a half-dead broker would use up all that the process may open.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Ends the socket when it is dropped, and whatever the client dials for it afterwards.
#[derive(Debug)]
pub(super) struct SocketGuard(Socket);

/// Where the client leaves the socket that it has dialled.
#[derive(Debug, Clone, Default)]
pub(super) struct Socket(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    NotDialled,
    Open(OwnedFd),
    Ended,
}

impl Socket {
    /// Anyone who holds the line decides how long the socket lives.
    pub(super) fn socket_guard(&self) -> SocketGuard {
        SocketGuard(self.clone())
    }

    /// Keeps hold of a socket, beside the client.
    ///
    /// # Errors
    /// If the line is gone, or there is no room for another descriptor: then the client must not go on with it.
    pub(super) fn guard(&self, socket: impl AsFd) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Ended) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up"));
        }
        *state = State::Open(socket.as_fd().try_clone_to_owned()?);
        Ok(())
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(socket) = std::mem::replace(&mut *state, State::Ended) {
            // One that has ended by itself cannot be ended again.
            let _ = TcpStream::from(socket).shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_ends_with_its_line_and_none_is_held_afterwards() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dial = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, mut dialled) = (Socket::default(), dial());
        let line = socket.socket_guard();
        socket.guard(&dialled).unwrap();
        drop(line);
        assert_eq!(dialled.read(&mut [0]).unwrap(), 0, "an end, without the peer's doing");
        assert_eq!(socket.guard(dial()).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
