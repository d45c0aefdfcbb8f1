//! Times all-reduce between processes of this host: `cargo run --release -p gradus-collective --example
//! all_reduce_speed -- [RANKS]`.
//!
//! Buffers are rewritten before each call, outside the time; the figure is the median of rank 0's calls. The ceiling on
//! one host is the memory: each rank reads and writes every byte at least once.

use gradus_collective::Communicator;
use gradus_error::{IoContext, Result};
use gradus_fabric::{Launch, NetworkSettings, RENDEZVOUS_FD, TransportKind, connect};
use gradus_host::{Clock, RealClock};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

const KIND: &str = "GRADUS_SPEED_KIND";

fn main() -> Result<()> {
    match std::env::var(KIND) {
        Ok(kind) => rank(if kind == "tcp" { TransportKind::Tcp } else { TransportKind::SharedMemory }),
        Err(_) => {
            let ranks = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
            ["shared-memory", "tcp"].iter().try_for_each(|kind| launch(ranks, kind))
        }
    }
}

fn launch(world_size: usize, kind: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context(|| "cannot listen".into())?;
    let port = listener.local_addr().context(|| "cannot listen".into())?.port();
    let program = std::env::current_exe().context(|| "cannot find this program".into())?;
    let mut ranks = Vec::new();
    for rank in 0..world_size {
        let mut command = Command::new(&program);
        command.env(KIND, kind).env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
        command.env("MASTER_PORT", port.to_string()).env_remove("MASTER_ADDR");
        if rank == 0 {
            let socket = listener.try_clone().context(|| "cannot hand on the listener".into())?;
            command.stdin(Stdio::from(OwnedFd::from(socket))).env(RENDEZVOUS_FD, "0");
        }
        ranks.push(command.spawn().context(|| "cannot start a rank".into())?);
    }
    for mut rank in ranks {
        rank.wait().context(|| "cannot wait for a rank".into())?;
    }
    Ok(())
}

fn rank(kind: TransportKind) -> Result<()> {
    let launch = Launch::from_environment(&|name| std::env::var(name).ok())?.unwrap_or_else(Launch::alone);
    let transport = connect(&launch, kind, &NetworkSettings::default(), "all_reduce_speed")?;
    let mut communicator = Communicator::new(transport, Duration::from_secs(60));
    if launch.rank == 0 {
        println!("{} ranks over {}", launch.world_size, communicator.transport_name());
        println!("{:>12} {:>12} {:>10}", "bytes", "median us", "GB/s");
    }
    for bytes in [4, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20] {
        // As many calls as move a quarter of a gigabyte, within bounds that make medians worth something.
        let calls = (256 << 20) / bytes.max(64 << 10);
        let median_us = time(&mut communicator, bytes / 4, calls.clamp(7, 2000))?;
        if launch.rank == 0 {
            println!("{bytes:>12} {median_us:>12.2} {:>10.2}", bytes as f64 / median_us / 1000.0);
        }
    }
    communicator.barrier()
}

fn time(communicator: &mut Communicator, len: usize, calls: usize) -> Result<f64> {
    let clock = RealClock::new();
    let world_size = communicator.world_size() as f32;
    let mut data = vec![0.0f32; len];
    let mut times = Vec::new();
    for _ in 0..calls {
        data.fill(1.0);
        communicator.barrier()?;
        let start = clock.now();
        communicator.all_reduce(&mut data)?;
        times.push((clock.now() - start).as_secs_f64() * 1e6);
        assert!(data.iter().all(|x| *x == world_size), "every element is the sum");
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
