//! Our arms of `cargo x bench collective`: all-reduce of f32 sums in place between processes of this host, and the limit
//! that memory sets: `all_reduce_speed RANKS shared-memory|registered|tcp|nodes|nodes-tcp|limit BYTES,BYTES,...`.
//!
//! *Nodes* are logical ones of two ranks each, with shared memory inside and TCP across; *nodes-tcp* are the same with TCP
//! everywhere.
//!
//! Rank 0 prints a line of JSON for each size: `{"bytes", "us", "turns", "wrong"}`: the median time of one call, how many
//! turns it is the median of, and how many elements of its last result were wrong; and `"predicted_us"`, what was predicted
//! by the links as they were measured before anything else. The rules of a turn stand in
//! `benches/peers/mpi_all_reduce.c`; they are the same in every arm.
//!
//! The *limit* is two threads of one process, each of which sums its half of two buffers straight into both, and waits
//! for nobody: memory alone.

use gradus_collective::algorithm::Nodes;
use gradus_collective::{Communicator, Element};
use gradus_compute::reduce::{self, Combine};
use gradus_error::{Error, IoContext, Result};
use gradus_fabric::{Launch, NetworkSettings, RENDEZVOUS_FD, TransportKind, connect};
use gradus_host::{Clock, RealClock};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const RANK: &str = "GRADUS_SPEED_RANK";

const SMALL_BYTES: usize = 4096;
const SMALL_CALLS: usize = 64;
const WARM_UP: usize = 2;
const FEWEST_TURNS: usize = 7;
const MOST_TURNS: usize = 300;
const TOTAL_BYTES: usize = 256 << 20;

/// Elements that the limit sums before it copies them: they are still in the first-level cache then.
const LIMIT_BLOCK: usize = 4096;

/// What is measured.
struct Request {
    ranks: usize,
    transport: String,
    sizes: Vec<usize>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let request = parse(&arguments).ok_or_else(|| {
        Error::invalid(
            "usage: all_reduce_speed RANKS shared-memory|registered|tcp|nodes|nodes-tcp|limit BYTES,...",
        )
    })?;
    match (std::env::var_os(RANK), request.transport.as_str()) {
        (_, "limit") => request.sizes.iter().for_each(|bytes| limit(*bytes)),
        (None, _) => launch(&request, &arguments)?,
        (Some(_), "tcp" | "nodes-tcp") => rank(&request, TransportKind::Tcp)?,
        (Some(_), "nodes") => rank(&request, TransportKind::Auto)?,
        (Some(_), _) => rank(&request, TransportKind::SharedMemory)?,
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Option<Request> {
    let [ranks, transport, sizes] = arguments else { return None };
    let sizes = sizes.split(',').map(|size| size.parse().ok()).collect::<Option<_>>()?;
    let known = ["shared-memory", "registered", "tcp", "nodes", "nodes-tcp", "limit"];
    let known = known.contains(&transport.as_str());
    known.then_some(Request { ranks: ranks.parse().ok()?, transport: transport.clone(), sizes })
}

fn launch(request: &Request, arguments: &[String]) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context(|| "cannot listen".into())?;
    let port = listener.local_addr().context(|| "cannot listen".into())?.port();
    let program = std::env::current_exe().context(|| "cannot find this program".into())?;
    let mut ranks = Vec::new();
    for rank in 0..request.ranks {
        let mut command = Command::new(&program);
        command.args(arguments).env(RANK, "").env("RANK", rank.to_string());
        command.env("WORLD_SIZE", request.ranks.to_string());
        command.env("MASTER_PORT", port.to_string()).env_remove("MASTER_ADDR");
        if rank == 0 {
            let socket = listener.try_clone().context(|| "cannot hand on the listener".into())?;
            command.stdin(Stdio::from(OwnedFd::from(socket))).env(RENDEZVOUS_FD, "0");
        }
        ranks.push(command.spawn().context(|| "cannot start a rank".into())?);
    }
    for (number, mut rank) in ranks.into_iter().enumerate() {
        let status = rank.wait().context(|| "cannot wait for a rank".into())?;
        if !status.success() {
            return Err(Error::unavailable(format!("rank {number}: {status}")));
        }
    }
    Ok(())
}

fn rank(request: &Request, kind: TransportKind) -> Result<()> {
    let launch = Launch::from_environment(&|name| std::env::var(name).ok())?.unwrap_or_else(Launch::alone);
    take_a_processor(launch.rank);
    let of_a_node = if request.transport.starts_with("nodes") { 2 } else { request.ranks };
    let node_id = launch.node_id("", request.ranks.div_ceil(of_a_node))?;
    let settings = NetworkSettings { node_id, ..NetworkSettings::default() };
    let transport = connect(&launch, kind, &settings, "all_reduce_speed")?;
    let mut communicator = Communicator::new(transport, Duration::from_secs(60));
    communicator.measure_links(&Nodes::even(request.ranks, of_a_node))?;
    for bytes in &request.sizes {
        if request.transport == "registered" {
            measure_registered(&mut communicator, *bytes)?;
        } else {
            measure(&mut communicator, &mut vec![0.0; bytes / 4], false)?;
        }
    }
    communicator.barrier()
}

/// A processor for each rank, in turns where there are fewer: what launchers of MPI do.
fn take_a_processor(rank: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let mut processors = (0..rustix::thread::CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let turn = rank % (allowed.count() as usize).max(1);
    if let Some(processor) = processors.nth(turn) {
        let mut own = rustix::thread::CpuSet::new();
        own.set(processor);
        // A refusal leaves the rank where the system puts it.
        let _ = rustix::thread::sched_setaffinity(None, &own);
    }
}

fn measure_registered(communicator: &mut Communicator, bytes: usize) -> Result<()> {
    let heap = communicator.heap().ok_or_else(|| Error::internal("ranks of one host share memory"))?;
    let range = heap.allocate(bytes)?;
    // SAFETY: zeros, aligned to a page, as long as `range` lives; peers write there within collectives only, which borrow
    // the slice.
    let data = unsafe { std::slice::from_raw_parts_mut(range.start().as_ptr().cast::<f32>(), bytes / 4) };
    measure(communicator, data, true)
}

fn measure(communicator: &mut Communicator, data: &mut [f32], registered: bool) -> Result<()> {
    let (rank, ranks, bytes) = (communicator.rank(), communicator.world_size(), size_of_val(data));
    let mut times = Vec::new();
    for number in 0..WARM_UP + turns(bytes) {
        let us = turn(communicator, data, calls(bytes))?;
        if number >= WARM_UP {
            times.push(us);
        }
    }
    if rank == 0 {
        let choice = communicator.choice_for_all_reduce(data.len(), Element::F32, registered);
        report(bytes, times, data, ranks, choice.map(|choice| choice.chosen.price.seconds * 1e6));
    }
    Ok(())
}

fn turn(communicator: &mut Communicator, data: &mut [f32], calls: usize) -> Result<f64> {
    let (clock, rank) = (RealClock::new(), communicator.rank());
    if calls == 1 {
        rewrite(data, rank);
    }
    communicator.barrier()?;
    let start = clock.now();
    for _ in 0..calls {
        if calls > 1 {
            rewrite(data, rank);
        }
        communicator.all_reduce(data)?;
    }
    Ok((clock.now() - start).as_secs_f64() * 1e6 / calls as f64)
}

/// Calls of one turn.
fn calls(bytes: usize) -> usize {
    if bytes <= SMALL_BYTES { SMALL_CALLS } else { 1 }
}

fn turns(bytes: usize) -> usize {
    (TOTAL_BYTES / (bytes * calls(bytes))).clamp(FEWEST_TURNS, MOST_TURNS)
}

/// In runs of eight: as fast as the compilers of the other arms make it, whatever stands around.
#[inline(never)]
fn rewrite(data: &mut [f32], rank: usize) {
    let pattern: [f32; 8] = std::array::from_fn(|i| ((rank + 1) * (1 + i)) as f32);
    let (chunks, rest) = data.as_chunks_mut();
    chunks.fill(pattern);
    rest.copy_from_slice(&pattern[..rest.len()]);
}

fn report(bytes: usize, mut times: Vec<f64>, data: &[f32], ranks: usize, predicted_us: Option<f64>) {
    let sum = ranks * (ranks + 1) / 2;
    let wrong = data.iter().enumerate().filter(|(i, x)| **x != (sum * (1 + (i & 7))) as f32).count();
    times.sort_by(f64::total_cmp);
    let (us, turns) = (times[times.len() / 2], times.len());
    let predicted = predicted_us.map(|us| format!(", \"predicted_us\": {us:.3}")).unwrap_or_default();
    println!("{{\"bytes\": {bytes}, \"us\": {us:.3}, \"turns\": {turns}, \"wrong\": {wrong}{predicted}}}");
}

/// Lets two threads go on at the same moment: one that has to be woken would find the memory idle.
#[derive(Default)]
struct SpinBarrier(AtomicUsize);

impl SpinBarrier {
    fn wait(&self) {
        let round = self.0.fetch_add(1, Ordering::AcqRel) / 2;
        while self.0.load(Ordering::Acquire) / 2 == round {
            std::hint::spin_loop();
        }
    }
}

const PAGE_LEN: usize = 1024;

/// Registered memory begins at a page, and so does this.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([f32; PAGE_LEN]);

/// A buffer that two threads write, each its half.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the threads touch it in turns that a barrier parts, and between barriers each its own part.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn limit(bytes: usize) {
    let len = bytes / 4;
    let buffer = || vec![Page([0.0; PAGE_LEN]); len.div_ceil(PAGE_LEN)];
    let mut buffers = [buffer(), buffer()];
    let shared = buffers.each_mut().map(|buffer| Shared(buffer.as_mut_ptr().cast()));
    let barrier = SpinBarrier::default();
    let times = std::thread::scope(|scope| {
        let other = scope.spawn(|| limit_of_rank(shared, len, 1, &barrier));
        let times = limit_of_rank(shared, len, 0, &barrier);
        other.join().expect("the other half does not panic");
        times
    });
    let data: Vec<f32> = buffers[0].iter().flat_map(|page| page.0).take(len).collect();
    report(bytes, times, &data, 2, None);
}

fn limit_of_rank(buffers: [Shared; 2], len: usize, rank: usize, barrier: &SpinBarrier) -> Vec<f64> {
    take_a_processor(rank);
    let clock = RealClock::new();
    let calls = calls(len * 4);
    let half = Half::of(rank, len);
    let mut times = Vec::new();
    for number in 0..WARM_UP + turns(len * 4) {
        // SAFETY: each thread writes its own buffer here, `len` elements long, between two barriers.
        rewrite(unsafe { std::slice::from_raw_parts_mut(buffers[rank].0, len) }, rank);
        barrier.wait();
        let begin = clock.now();
        for call in 0..calls {
            // SAFETY: between these barriers each thread touches its own half of both buffers only.
            unsafe {
                if call > 0 {
                    half.rewrite(buffers);
                }
                half.reduce(buffers[rank], buffers[1 - rank]);
            }
        }
        let us = (clock.now() - begin).as_secs_f64() * 1e6 / calls as f64;
        barrier.wait();
        if number >= WARM_UP {
            times.push(us);
        }
    }
    times
}

/// The elements that one thread sums.
struct Half {
    start: usize,
    len: usize,
}

impl Half {
    fn of(rank: usize, len: usize) -> Self {
        let middle = len.div_ceil(2).next_multiple_of(8).min(len);
        if rank == 0 { Self { start: 0, len: middle } } else { Self { start: middle, len: len - middle } }
    }

    /// # Safety
    /// Both buffers have these elements, and nobody else touches them.
    unsafe fn rewrite(&self, buffers: [Shared; 2]) {
        for (rank, buffer) in buffers.into_iter().enumerate() {
            // SAFETY: these elements, by the caller's word.
            rewrite(unsafe { std::slice::from_raw_parts_mut(buffer.0.add(self.start), self.len) }, rank);
        }
    }

    /// # Safety
    /// As for [`Half::rewrite`].
    unsafe fn reduce(&self, ours: Shared, theirs: Shared) {
        for start in (self.start..self.start + self.len).step_by(LIMIT_BLOCK) {
            let len = LIMIT_BLOCK.min(self.start + self.len - start);
            // SAFETY: by the caller's word; the two buffers are apart.
            unsafe {
                let (ours, theirs) = (ours.0.add(start), theirs.0.add(start));
                reduce::combine::<f32>(Combine::Add, ours, theirs.cast(), len);
                std::ptr::copy_nonoverlapping(ours, theirs, len);
            }
        }
    }
}
