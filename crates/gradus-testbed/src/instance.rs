//! A stand-in for the metadata service of a cloud's instances.
//!
//! Speaks IMDSv2 (a token by PUT, then what is asked for with it) for one role, and, at `/container`, what containers
//! are given; whoever trades a web identity (POST, as STS has it) is given the same. It tells how often credentials were
//! asked for, so that a test sees a renewal, and refuses requests as it is told.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// The name of the role.
const ROLE: &str = "testbed-role";

/// The token without which nothing is told.
const TOKEN: &str = "testbed-token";

/// Credentials that are given out.
#[derive(Debug, Clone)]
struct Given {
    access_key: String,
    secret_key: String,
    expiration: String,
    asked: u64,
    refusals: Refusals,
}

/// What is refused, and how.
#[derive(Debug, Clone, Default)]
struct Refusals {
    left: u64,
    status: u16,
    code: String,
}

/// A metadata service on a free port, until it is dropped.
pub struct InstanceMetadata {
    runtime: Option<Runtime>,
    address: SocketAddr,
    given: Arc<Mutex<Given>>,
}

impl InstanceMetadata {
    /// Gives out these keys; `expiration` is a time as in `2030-01-01T00:00:00Z`.
    ///
    /// # Errors
    /// The system's failure to listen or to start a thread.
    pub fn start(access_key: &str, secret_key: &str, expiration: &str) -> io::Result<Self> {
        let given = Arc::new(Mutex::new(Given {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            expiration: expiration.to_owned(),
            asked: 0,
            refusals: Refusals::default(),
        }));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, Arc::clone(&given)));
        Ok(Self { runtime: Some(runtime), address, given })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where a container would ask.
    pub fn container_uri(&self) -> String {
        format!("http://{}/container", self.address)
    }

    /// How often credentials were given out.
    pub fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// Gives out others from now on.
    pub fn set_keys(&self, access_key: &str, secret_key: &str, expiration: &str) {
        let mut given = self.lock();
        given.access_key = access_key.to_owned();
        given.secret_key = secret_key.to_owned();
        given.expiration = expiration.to_owned();
    }

    /// Refuses this many requests from now on, with a status and a code as in STS' `<Code>`.
    pub fn refuse_next(&self, count: u64, status: u16, code: &str) {
        self.lock().refusals = Refusals { left: count, status, code: code.to_owned() };
    }

    /// How many requests are yet to be refused.
    pub fn refusals_left(&self) -> u64 {
        self.lock().refusals.left
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InstanceMetadata {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, given: Arc<Mutex<Given>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let given = Arc::clone(&given);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &given);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(request: &Request<Incoming>, given: &Mutex<Given>) -> Response<Full<Bytes>> {
    let say = |status: u16, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
        response
    };
    if let Some((status, text)) = refused(given) {
        return say(status, text);
    }
    let token = request.headers().get("x-aws-ec2-metadata-token").is_some_and(|token| token == TOKEN);
    let roles = "/latest/meta-data/iam/security-credentials/";
    match (request.method(), request.uri().path()) {
        (&Method::PUT, "/latest/api/token") => {
            let lives = request.headers().contains_key("x-aws-ec2-metadata-token-ttl-seconds");
            if lives { say(200, TOKEN.to_owned()) } else { say(400, String::new()) }
        }
        (&Method::POST, "/") if is_web_identity(request) => say(200, traded(given)),
        (&Method::GET, "/container") => say(200, credentials(given)),
        (&Method::GET, _) if !token => say(401, String::new()),
        (&Method::GET, path) if path == roles => say(200, ROLE.to_owned()),
        (&Method::GET, path) if path.strip_prefix(roles) == Some(ROLE) => say(200, credentials(given)),
        _ => say(404, String::new()),
    }
}

/// The refusal of a request that is to be refused.
fn refused(given: &Mutex<Given>) -> Option<(u16, String)> {
    let refusals = &mut given.lock().unwrap_or_else(PoisonError::into_inner).refusals;
    refusals.left = refusals.left.checked_sub(1)?;
    let code = &refusals.code;
    Some((refusals.status, format!("<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>")))
}

fn is_web_identity(request: &Request<Incoming>) -> bool {
    request.uri().query().is_some_and(|query| query.contains("Action=AssumeRoleWithWebIdentity"))
}

/// Keys as STS words them.
fn traded(given: &Mutex<Given>) -> String {
    let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
    given.asked += 1;
    format!(
        "<Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken></SessionToken>\
         <Expiration>{}</Expiration></Credentials>",
        given.access_key, given.secret_key, given.expiration
    )
}

fn credentials(given: &Mutex<Given>) -> String {
    let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
    given.asked += 1;
    format!(
        "{{\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"AccessKeyId\":\"{}\",\"SecretAccessKey\":\"{}\",\"Token\":\"\",\"Expiration\":\"{}\"}}",
        given.access_key, given.secret_key, given.expiration
    )
}
