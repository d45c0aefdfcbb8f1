//! How ranks of one host hand each other the files of their shared memory: over Unix sockets, once.

use crate::circle::Circle;
use crate::dial;
use crate::mesh::Mesh;
use crate::rendezvous::Table;
use crate::stream::Stream;
use crate::trust::Trust;
use gradus_error::{Error, IoContext, Result};
use gradus_host::Clock;
use gradus_memory::Segment;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Connects to all ranks of a circle; the sockets by peer.
///
/// # Errors
/// `PeerLost` or `Unavailable` naming a rank that does not take part.
pub(crate) fn connect_sockets(
    trust: Trust,
    table: &mut Table,
    circle: &Circle,
    clock: &dyn Clock,
    until: Duration,
) -> Result<Vec<Vec<OwnedFd>>> {
    let rank = trust.rank;
    let Some(listener) = table.doors.local.take() else {
        return Err(Error::unavailable(format!("rank {rank} has no socket to hand out shared memory")));
    };
    let mesh = Mesh { rank, job: &table.job, trust, lines: circle.lines_inside(1), clock, until };
    let streams = mesh.connect(listener.into(), &|peer| {
        let socket = dial::reach_local(&table.members[peer].socket, until.saturating_sub(clock.now()));
        socket.map_err(|error| dial::unreachable(rank, peer, "on this host", error.into()))
    })?;
    let plain = |lines: Vec<Stream>| lines.into_iter().filter_map(Stream::into_plain).collect();
    Ok(streams.into_iter().map(plain).collect())
}

/// Sends the file of an inbox, and another one, along with one byte, which carries them.
pub(crate) fn hand_over(socket: &OwnedFd, inbox: &Segment, beside: BorrowedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [inbox.file(), beside];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)), "the space holds two files");
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&[1])], &mut ancillary, SendFlags::NOSIGNAL);
    sent.map(|_| ()).context(|| "cannot hand over shared memory".to_owned())
}

/// What a peer has handed over.
pub(crate) struct Handed {
    pub(crate) inbox: Segment,
    /// The other file.
    pub(crate) beside: OwnedFd,
}

/// Receives the files of a peer and maps its inbox.
pub(crate) fn take_over(socket: &OwnedFd, len: usize, clock: &dyn Clock, until: Duration) -> Result<Handed> {
    dial::wait_readable(socket, clock, until)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let received = received.context(|| "no shared memory arrived".to_owned())?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The kernel had no place for the descriptor and has dropped it.
        return Err(Error::io("shared memory arrived and could not be taken", Errno::MFILE.into()));
    }
    let files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let mut files = files.flatten();
    let (Some(inbox), Some(beside)) = (files.next(), files.next()) else {
        return Err(Error::unavailable("no shared memory arrived"));
    };
    Ok(Handed { inbox: Segment::open(inbox, len)?, beside })
}
