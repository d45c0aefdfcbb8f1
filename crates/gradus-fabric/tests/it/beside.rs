//! A coordinator beside a test.

use gradus_fabric::membership::{CoordinatorServer, CoordinatorSettings, Engine, Timeouts};
use gradus_fabric::{Secret, TlsSettings};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Runs `body`, which is told its address, beside a coordinator.
pub fn beside_a_coordinator<T>(
    engine: Engine,
    failure_detection: Duration,
    body: impl FnOnce(&str) -> T,
) -> T {
    let server = CoordinatorServer::open(CoordinatorSettings {
        listen: "127.0.0.1:0".into(),
        engine,
        timeouts: Timeouts::from(failure_detection).unwrap(),
        secret: Secret::default(),
        tls: TlsSettings::default(),
    })
    .unwrap();
    let address = server.address().to_string();
    let (stop, stopped) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || server.run(&stopped, |_| {}).unwrap());
        // Ends the coordinator however the body ends.
        let _stop = stop;
        body(&address)
    })
}
