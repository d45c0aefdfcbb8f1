//! Ranks as threads of this process.

use crate::certificates::Authority;
use gradus_error::Result;
use gradus_fabric::simulated::{self, Conditions};
use gradus_fabric::{Direction, Interest, Lane, Launch, NetworkSettings, Transport, TransportKind, connect};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A way for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    SharedMemory,
    Tcp,
    Tls,
    /// Shared memory inside nodes of two ranks and TCP across; the first node lacks so many. Worlds that are one node, or of nodes
    /// of one rank, have shared memory or TCP only.
    Nodes {
        lacking: usize,
    },
    /// In virtual time, on a network in order.
    Simulated,
}

pub const WAYS: [Way; 6] = [
    Way::SharedMemory,
    Way::Tcp,
    Way::Tls,
    Way::Nodes { lacking: 0 },
    Way::Nodes { lacking: 1 },
    Way::Simulated,
];

/// What a rank starts with; tests change it.
pub struct Start {
    pub launch: Launch,
    pub kind: TransportKind,
    pub settings: NetworkSettings,
    pub fingerprint: String,
}

/// Starts ranks as threads; `change` sees what each starts with, `body` runs with what it comes to.
pub fn run<T: Send>(
    world_size: usize,
    change: impl Fn(usize, &mut Start) + Sync,
    body: impl Fn(usize, Result<Box<dyn Transport>>) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let start = |rank: usize| {
            let mut launch = Launch::local(rank, world_size, port);
            launch.rendezvous_fd = (rank == 0).then(|| listener.as_raw_fd());
            let mut start = Start {
                launch,
                kind: TransportKind::Auto,
                settings: NetworkSettings::default(),
                fingerprint: "same".into(),
            };
            change(rank, &mut start);
            let (change_done, body) = (start, &body);
            scope.spawn(move || {
                let Start { launch, kind, settings, fingerprint } = change_done;
                body(rank, connect(&launch, kind, &settings, &fingerprint))
            })
        };
        let ranks: Vec<_> = (0..world_size).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Runs ranks that go one way, with shared memory or simulated streams of some bytes between every two (0: as it comes).
pub fn run_on<T: Send>(
    way: Way,
    world_size: usize,
    stream_bytes: usize,
    body: impl Fn(usize, Box<dyn Transport>) -> T + Sync,
) -> Vec<T> {
    run_on_levels(way, (world_size, 1), stream_bytes, body)
}

/// As [`run_on`], with some levels of priority.
pub fn run_on_levels<T: Send>(
    way: Way,
    (world_size, priority_levels): (usize, usize),
    stream_bytes: usize,
    body: impl Fn(usize, Box<dyn Transport>) -> T + Sync,
) -> Vec<T> {
    if way == Way::Simulated {
        let default = Conditions::default();
        let stream_bytes = if stream_bytes == 0 { default.stream_bytes } else { stream_bytes };
        let conditions = Conditions { stream_bytes, priority_levels, ..default };
        let finish =
            simulated::run(world_size, &conditions, |transport, _| body(transport.rank(), transport));
        return finish.results;
    }
    let on_way = on(way);
    let change = |rank: usize, start: &mut Start| {
        on_way(rank, start);
        start.settings.ring_bytes = stream_bytes;
        start.settings.priority_levels = priority_levels;
    };
    run(world_size, change, |rank, transport| body(rank, transport.unwrap()))
}

/// Ranks that go one way, a real one.
pub fn on(way: Way) -> impl Fn(usize, &mut Start) + Sync {
    let files = (way == Way::Tls).then(|| Authority::new().member());
    move |rank, start| {
        start.kind = match way {
            Way::SharedMemory => TransportKind::SharedMemory,
            Way::Nodes { .. } => TransportKind::Auto,
            _ => TransportKind::Tcp,
        };
        if let Way::Nodes { lacking } = way {
            start.settings.node_id = format!("node-{}", (rank + lacking) / 2);
        }
        if let Some(files) = &files {
            start.settings.tls = files.settings.clone();
        }
    }
}

pub fn send_all(transport: &mut dyn Transport, peer: usize, bytes: &[u8]) -> Result<()> {
    send_all_on(transport, Lane::lowest(peer), bytes)
}

pub fn send_all_on(transport: &mut dyn Transport, lane: Lane, bytes: &[u8]) -> Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += transport.try_send(lane, &bytes[sent..])?;
        if sent < bytes.len() {
            transport.wait(&[Interest { lane, direction: Direction::Send }], Duration::from_secs(1))?;
        }
    }
    Ok(())
}

pub fn receive(transport: &mut dyn Transport, peer: usize, len: usize) -> Result<Vec<u8>> {
    receive_on(transport, Lane::lowest(peer), len)
}

pub fn receive_on(transport: &mut dyn Transport, lane: Lane, len: usize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        transport.try_receive(lane, &mut |from, available| {
            let count = available.min(len - out.len());
            // SAFETY: the transport hands out `available` valid bytes.
            out.extend((0..count).map(|i| unsafe { from.add(i).read() }));
            count
        })?;
        if out.len() == len {
            return Ok(out);
        }
        transport.wait(&[Interest { lane, direction: Direction::Receive }], Duration::from_secs(1))?;
    }
}

pub fn pattern(from: usize, to: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + from * 7 + to * 13) as u8).collect()
}
