//! The coordinator of the ranks' group, beside the launcher that started them.
//!
//! It ends with the launcher, as the ranks do, and so keeps no state. It finds out which rank is dead, stopped or cut off
//! also where no connection closes, and tells all others.

use gradus_error::{IoContext, Result};
use gradus_fabric::membership::{CoordinatorServer, CoordinatorSettings, Engine, Timeouts};
use gradus_fabric::{Secret, TlsSettings};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A coordinator in a thread; dropping it ends it.
#[derive(Debug)]
pub(super) struct Coordinator {
    address: SocketAddr,
    /// Open as long as it is to serve.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Coordinator {
    /// Starts one on the loopback interface, at a port that the system chooses.
    ///
    /// # Errors
    /// The system's failure to listen or to start a thread.
    pub(super) fn start(timeouts: Timeouts, secret: &Secret) -> Result<Self> {
        let describe = || "cannot start the ranks' coordinator".to_owned();
        let server = CoordinatorServer::open(CoordinatorSettings {
            listen: "127.0.0.1:0".to_owned(),
            engine: Engine::Nothing,
            timeouts,
            secret: secret.clone(),
            tls: TlsSettings::default(),
        })?;
        let address = server.address();
        let (stop, stopped) = UnixStream::pair().context(describe)?;
        let serve = move || {
            let served = server.run(&stopped, |note| tracing::debug!("{note:?}"));
            if let Err(error) = served {
                tracing::error!("the ranks' coordinator has ended: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("gradus-coordinator".into());
        let thread = Some(thread.spawn(serve).context(describe)?);
        Ok(Self { address, stop: Some(stop), thread })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // What it failed with was logged; a panic was shown.
            let _ = thread.join();
        }
    }
}
