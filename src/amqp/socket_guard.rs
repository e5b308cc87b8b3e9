//! The socket under a connection, held from outside the client as well.
//!
//! The client cannot close a socket early. A connection that is abandoned during its handshake, and one that the broker has
//! blocked, would keep a thread and a socket each until the peer closes it, which may be never: during a night of a
//! half-dead broker they would use up the descriptors of the process.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Shuts the socket down when it is dropped, and refuses any that the client dials afterwards.
#[derive(Debug)]
pub(super) struct SocketGuard(Socket);

/// The socket that the client has dialled.
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
    /// The socket lives as long as the guard.
    pub(super) fn socket_guard(&self) -> SocketGuard {
        SocketGuard(self.clone())
    }

    /// Keeps a descriptor of the socket, beside the client's.
    ///
    /// # Errors
    /// If the guard was dropped, or no descriptor can be duplicated; the client must not use the socket then.
    pub(super) fn guard(&self, socket: impl AsFd) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Ended) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was abandoned"));
        }
        *state = State::Open(socket.as_fd().try_clone_to_owned()?);
        Ok(())
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(socket) = std::mem::replace(&mut *state, State::Ended) {
            // It fails if the socket has ended by itself.
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
    fn socket_closes_when_its_guard_is_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dial = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, mut dialled) = (Socket::default(), dial());
        let guard = socket.socket_guard();
        socket.guard(&dialled).unwrap();
        drop(guard);
        assert_eq!(dialled.read(&mut [0]).unwrap(), 0, "an end, without the peer's doing");
        assert_eq!(socket.guard(dial()).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
