//! A network between hosts that takes its time and loses some of what it carries.
//!
//! Kernels without netem have no delay of their own. So each host's namespace gets a TUN device, whose packets a thread
//! of this process reads; it holds each for the delay, or forgets it, and writes it into the device of the host that it is
//! addressed to. What is lost follows from a seed and the order of packets.

use crate::namespaces::{Namespaces, address, tool};
use gradus_host::random::Stream;
use gradus_host::{Clock, RealClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// `TUNSETIFF` and its flags (linux/if_tun.h), and `O_NONBLOCK`.
const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
const TUN_WITHOUT_PACKET_INFORMATION: u16 = 0x0001 | 0x1000;
const NONBLOCK: i32 = 0o4000;

/// Bytes of the longest packet: the device's MTU is Ethernet's.
const LONGEST_PACKET: usize = 1500;

/// Packets on their way to one host at most, as a router's queue holds; the next are lost.
const QUEUE: usize = 4096;

/// `struct ifreq` as `TUNSETIFF` reads it: a name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A line between hosts; it ends when this is dropped.
pub struct DelayLine {
    stop: Arc<AtomicBool>,
    /// The host that nothing comes from or gets to, one more than its number; 0 for none.
    cut: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    carrier: Option<JoinHandle<()>>,
}

impl DelayLine {
    /// Joins hosts that nothing joins yet; each packet takes `delay`, and one in `loss` is lost (0: none).
    pub fn between(hosts: &Namespaces, count: usize, delay: Duration, loss: u64) -> Self {
        let devices: Vec<File> = (0..count).map(|host| device(hosts, host)).collect();
        let mut line =
            Self { stop: Arc::default(), cut: Arc::default(), lost: Arc::default(), carrier: None };
        let carrier = Carrier {
            ways: devices.into_iter().map(|device| Way { device, packets: VecDeque::new() }).collect(),
            delay,
            loss,
            chance: Stream::new(1, 1),
            clock: RealClock::new(),
            cut: Arc::clone(&line.cut),
            lost: Arc::clone(&line.lost),
        };
        let stop = Arc::clone(&line.stop);
        line.carrier = Some(std::thread::spawn(move || carrier.carry(&stop)));
        line
    }

    /// Cuts a host off from all others.
    pub fn cut(&self, host: usize) {
        self.cut.store(host as u64 + 1, SeqCst);
    }

    /// Packets that were lost by chance.
    pub fn lost(&self) -> u64 {
        self.lost.load(SeqCst)
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(carrier) = self.carrier.take() {
            let ended = carrier.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the line has broken");
        }
    }
}

/// Makes the device of a host, up and with its address.
fn device(hosts: &Namespaces, host: usize) -> File {
    let name = hosts.name(host);
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    // A device belongs to the namespace of the thread that makes it: this one's life ends with that.
    let make = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let mut options = OpenOptions::new();
        let tun = options.read(true).write(true).custom_flags(NONBLOCK).open("/dev/net/tun").unwrap();
        let mut request =
            InterfaceRequest { name: [0; 16], flags: TUN_WITHOUT_PACKET_INFORMATION, rest: [0; 22] };
        request.name[..3].copy_from_slice(b"way");
        // SAFETY: the kernel reads a whole `struct ifreq`, which this is, though the code names an int.
        unsafe { ioctl(&tun, Setter::<SET_INTERFACE, InterfaceRequest>::new(request)) }.unwrap();
        tun
    };
    let tun = std::thread::spawn(make).join().unwrap();
    tool(&format!("ip -n {name} addr add {}/24 dev way", address(host)));
    tool(&format!("ip -n {name} link set way up mtu {LONGEST_PACKET}"));
    tun
}

/// The way to one host: packets, each with the time at which it gets there.
struct Way {
    device: File,
    packets: VecDeque<(Duration, Vec<u8>)>,
}

struct Carrier {
    ways: Vec<Way>,
    delay: Duration,
    loss: u64,
    chance: Stream,
    clock: RealClock,
    cut: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
}

impl Carrier {
    fn carry(mut self, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            self.await_packets();
            for from in 0..self.ways.len() {
                self.take(from);
            }
            self.deliver();
        }
    }

    /// Waits for a packet to take or to deliver, some milliseconds at most.
    fn await_packets(&self) {
        let now = self.clock.now();
        let due = self.ways.iter().filter_map(|way| way.packets.front()).map(|(at, _)| *at).min();
        let limit = due.map_or(Duration::from_millis(10), |at| at.saturating_sub(now));
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos().min(10_000_000)) };
        let mut sockets: Vec<PollFd> =
            self.ways.iter().map(|way| PollFd::new(&way.device, PollFlags::IN)).collect();
        let _ = poll(&mut sockets, Some(&limit));
    }

    /// Takes what a host has sent.
    fn take(&mut self, from: usize) {
        let mut packet = [0; LONGEST_PACKET];
        while let Ok(count) = self.ways[from].device.read(&mut packet) {
            // The receiver's address stands at byte 16 (RFC 791, section 3.1); other protocols are not carried.
            let is_version_4 = count >= 20 && packet[0] >> 4 == 4;
            let to = usize::from(packet[19]).wrapping_sub(1);
            if is_version_4 && to < self.ways.len() && to != from && self.gets_through(from, to) {
                let at = self.clock.now() + self.delay;
                self.ways[to].packets.push_back((at, packet[..count].to_vec()));
            }
        }
    }

    fn gets_through(&mut self, from: usize, to: usize) -> bool {
        let cut = self.cut.load(SeqCst);
        if [from, to].iter().any(|host| *host as u64 + 1 == cut) {
            return false;
        }
        if self.loss > 0 && self.chance.next_below(self.loss) == 0 {
            self.lost.fetch_add(1, SeqCst);
            return false;
        }
        self.ways[to].packets.len() < QUEUE
    }

    fn deliver(&mut self) {
        let now = self.clock.now();
        for way in &mut self.ways {
            while let Some((_, packet)) = way.packets.pop_front_if(|(at, _)| *at <= now) {
                // What a device does not take is lost, as on any network.
                let _ = way.device.write(&packet);
            }
        }
    }
}
