//! Who opened the other end of a Unix socket, as the kernel says (SO_PEERCRED, unix(7)).

use rustix::process::Pid;
use std::os::fd::{AsFd, AsRawFd};

/// The process and its user, when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// `None` for a process that has no number here: one outside this process' namespace of processes.
    pub(crate) process: Option<Pid>,
    pub(crate) user: u32,
}

impl Credentials {
    /// `None` where the system does not tell.
    ///
    /// Asked for by hand: a number of 0 is no [`Pid`], which a type that holds one must never have been filled with.
    pub(crate) fn behind(socket: impl AsFd) -> Option<Self> {
        let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = size_of_val(&found) as libc::socklen_t;
        // SAFETY: `found` takes as many bytes as `len` says, and any bits are a value of it.
        let status = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut len,
            )
        };
        let is_whole = status == 0 && len as usize == size_of_val(&found);
        let process = Some(found.pid).filter(|number| *number > 0).and_then(Pid::from_raw);
        is_whole.then_some(Self { process, user: found.uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn this_process_is_behind_its_own_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let expected = Credentials { process: Some(rustix::process::getpid()), user };
        assert_eq!(Credentials::behind(&ours), Some(expected));
    }

    #[test]
    fn nobody_is_known_behind_another_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(Credentials::behind(&stream).is_none_or(|found| found.process.is_none()));
    }
}
