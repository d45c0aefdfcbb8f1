//! The S3 server: a port, threads of its own, and an end.

use crate::faults::Faults;
use crate::service::FaultyService;
use crate::store::{Marks, Store};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// The access key that servers here accept unless told otherwise.
pub const ACCESS_KEY: &str = "AKIDTESTBED";

/// The secret key that goes with it.
pub const SECRET_KEY: &str = "testbed/secret+key";

/// An S3 server over a folder, until it is dropped. Its threads are its own.
pub struct S3Server {
    runtime: Option<Runtime>,
    address: SocketAddr,
    root: PathBuf,
    faults: Faults,
    marks: Marks,
    /// The folder that it serves, if it made it itself: goes with it.
    _own: Option<TempDir>,
}

impl S3Server {
    /// Serves the folders of `root` as buckets, to [`ACCESS_KEY`] with [`SECRET_KEY`], on a free port.
    ///
    /// # Errors
    /// The system's failure to listen, to read `root`, or to start threads.
    pub fn start(root: &Path) -> io::Result<Self> {
        Self::start_at(root, SocketAddr::from(([127, 0, 0, 1], 0)), Some((ACCESS_KEY, SECRET_KEY)), 2)
    }

    /// As [`S3Server::start`], of a folder of its own with one empty bucket.
    ///
    /// # Errors
    /// As [`S3Server::start`]; the system's failure to make the folder.
    pub fn with_bucket(name: &str) -> io::Result<Self> {
        let own = tempfile::tempdir()?;
        let mut server = Self::start(own.path())?;
        server.make_bucket(name)?;
        server._own = Some(own);
        Ok(server)
    }

    /// Serves `root` at `address`, to these keys (or, without, to whoever does not sign), with this many threads.
    ///
    /// # Errors
    /// As [`S3Server::start`].
    pub fn start_at(
        root: &Path,
        address: SocketAddr,
        keys: Option<(&str, &str)>,
        threads: usize,
    ) -> io::Result<Self> {
        let marks = Marks::default();
        let mut builder = S3ServiceBuilder::new(Store::new(root, Arc::clone(&marks))?);
        if let Some((access, secret)) = keys {
            builder.set_auth(SimpleAuth::from_single(access, secret));
        }
        let faults = Faults::default();
        let service = FaultyService { s3: builder.build(), faults: faults.clone() };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("s3-server")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, service));
        Ok(Self { runtime: Some(runtime), address, root: root.to_owned(), faults, marks, _own: None })
    }

    /// Where it listens, as clients want it: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The folder that it serves.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What stands before it.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// The system's failure to make its folder.
    pub fn make_bucket(&self, name: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.root.join(name))
    }

    /// Puts an object there without a request; an object of that key gets another ETag.
    ///
    /// # Errors
    /// The system's failure to write.
    pub fn put(&self, bucket: &str, key: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.root.join(bucket).join(key);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // A file of its own, so that who reads the old one is not given bytes of the new one.
        let new = self.root.join(format!(".new-{}", std::process::id()));
        std::fs::write(&new, bytes)?;
        std::fs::rename(&new, path)
    }

    /// Makes the mark of a folder, as consoles do: an empty object `key/`, which listings show from now on.
    pub fn mark_folder(&self, bucket: &str, key: &str) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{bucket}/{key}/"));
    }

    /// Ends the server: connections are closed where they are.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, service: FaultyService) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free: some will be.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        // Answers are written whole; waiting for an acknowledgement costs each one 40 ms.
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // A client that goes away, and a connection that is cut on purpose, end here.
            let _ = connection.await;
        });
    }
}
