//! The test server as a process of its own, for benchmarks that give it a core.

use gradus_testbed::{ACCESS_KEY, S3Server, SECRET_KEY};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: gradus-testbed serve --root DIR [--address 127.0.0.1:0] [--latency-ms N] \
                     [--bandwidth BYTES_PER_S] [--refused SHARE] [--threads N] [--cpu N] [--anonymous]";

/// What the command line asks for.
struct Wanted {
    root: PathBuf,
    address: SocketAddr,
    latency: Duration,
    bandwidth: Option<u64>,
    refused: f64,
    threads: usize,
    cpu: Option<usize>,
    anonymous: bool,
}

fn main() -> ExitCode {
    match wanted(std::env::args().skip(1)).and_then(|wanted| serve(&wanted)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn wanted(mut words: impl Iterator<Item = String>) -> Result<Wanted, String> {
    if words.next().as_deref() != Some("serve") {
        return Err(USAGE.to_owned());
    }
    let mut wanted = Wanted {
        root: PathBuf::new(),
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        latency: Duration::ZERO,
        bandwidth: None,
        refused: 0.0,
        threads: 1,
        cpu: None,
        anonymous: false,
    };
    while let Some(option) = words.next() {
        if option == "--anonymous" {
            wanted.anonymous = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} lacks its value\n{USAGE}"))?;
        match option.as_str() {
            "--root" => wanted.root = PathBuf::from(value),
            "--address" => wanted.address = number(&option, &value)?,
            "--latency-ms" => wanted.latency = Duration::from_millis(number(&option, &value)?),
            "--bandwidth" => wanted.bandwidth = Some(number(&option, &value)?),
            "--refused" => wanted.refused = number(&option, &value)?,
            "--threads" => wanted.threads = number(&option, &value)?,
            "--cpu" => wanted.cpu = Some(number(&option, &value)?),
            _ => return Err(format!("{option} is not known\n{USAGE}")),
        }
    }
    if wanted.root.as_os_str().is_empty() { Err(format!("--root is missing\n{USAGE}")) } else { Ok(wanted) }
}

fn number<T: std::str::FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{option} {value}: that is none\n{USAGE}"))
}

/// Serves until standard input is closed, so that the server ends with whoever started it.
fn serve(wanted: &Wanted) -> Result<(), String> {
    if let Some(cpu) = wanted.cpu {
        let mut only = rustix::thread::CpuSet::new();
        only.set(cpu);
        // Threads that are started later inherit it.
        rustix::thread::sched_setaffinity(None, &only).map_err(|error| format!("--cpu {cpu}: {error}"))?;
    }
    let keys = (!wanted.anonymous).then_some((ACCESS_KEY, SECRET_KEY));
    let server = S3Server::start_at(&wanted.root, wanted.address, keys, wanted.threads)
        .map_err(|error| format!("cannot serve {} at {}: {error}", wanted.root.display(), wanted.address))?;
    server.faults().set(|plan| {
        (plan.latency, plan.bandwidth, plan.refused) = (wanted.latency, wanted.bandwidth, wanted.refused);
    });
    println!("{}", server.endpoint());
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).map_err(|error| error.to_string())?;
    Ok(())
}
