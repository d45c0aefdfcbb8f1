//! Speaks to a cluster: one call at a time, with whichever of its members answers.

use super::address::{EtcdAddress, User};
use super::wire::{
    Authenticate, Authenticated, Bytes, Compare, Done, Failure, Grant, KeyValue, Leased, Number, OfLease,
    Operation, Put, Range, Ranged, Streamed, Transacted, Transaction,
};
use crate::tls::{self, TlsSettings};
use gradus_error::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use zeroize::Zeroizing;

/// Bytes of the largest answer: the state of the largest coordinator takes 30 MB, and a third more as base64.
const LARGEST_ANSWER: u64 = 64 << 20;

/// How long a member of the cluster may take to answer, whatever its caller would wish: it writes to its disk first, and who
/// waits longer learns nothing.
const ONE_CALL: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(10);

/// Bytes of a reason that are passed on to a person.
const LONGEST_REASON: usize = 200;

/// What a member of the cluster says, each in its own version, when users were changed since it gave the token.
const OLD_TOKEN: [&str; 2] = ["revision of auth store is old", "revision in header is old"];

/// What it says when it has more to do than it can, for now.
const BUSY: &str = "too many requests";

/// Codes of gRPC (its `status.proto`).
const UNKNOWN: i64 = 2;
const DEADLINE_EXCEEDED: i64 = 4;
const NOT_FOUND: i64 = 5;
const PERMISSION_DENIED: i64 = 7;
const RESOURCE_EXHAUSTED: i64 = 8;
const UNAVAILABLE: i64 = 14;
const UNAUTHENTICATED: i64 = 16;

/// A lease, and for how long etcd granted it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    pub(crate) span: Duration,
}

/// A key that is ours now.
#[derive(Debug)]
pub(crate) struct Claim {
    /// In which revision it became ours; no other claim has the same.
    pub(crate) revision: i64,
    /// What another key held at that moment.
    pub(crate) read: Option<Vec<u8>>,
    /// In which revision that was written, 0 for never.
    pub(crate) read_revision: i64,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// The key holds it since that revision.
    In(i64),
    /// It was not written, for the key was in that revision, by somebody who has no claim.
    Changed(i64),
    /// It was not written, for the claim does not stand any more.
    Unclaimed,
}

/// A client. It keeps its connection from call to call.
pub(crate) struct Etcd {
    agent: Agent,
    urls: Vec<String>,
    /// The one that answered last.
    current: usize,
    user: Option<User>,
    token: Option<Zeroizing<String>>,
    shown: String,
}

/// Why a member of the cluster did not do what it was asked.
enum Refusal {
    /// Another member may.
    Elsewhere(Error),
    /// The token is too old.
    Stale,
    /// No member will.
    Final(Error),
}

impl Etcd {
    /// A client that has not spoken yet; each member of the cluster has `limit` to answer, within half a second
    /// and ten.
    ///
    /// # Errors
    /// `Invalid` or `Denied` for files of TLS that cannot be used.
    pub(crate) fn open(address: &EtcdAddress, limit: Duration) -> Result<Self> {
        let mut config = Agent::config_builder()
            .timeout_global(Some(limit.clamp(*ONE_CALL.start(), *ONE_CALL.end())))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent("gradus");
        if let Some(files) = &address.tls {
            config = config.tls_config(tls_config(files).map_err(|error| error.within("ETCDCTL_*"))?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            urls: address.urls(),
            current: 0,
            user: address.user.clone(),
            token: None,
            shown: address.to_string(),
        })
    }

    // What it is asked. Each blocks for the limit of every member of the cluster at most, and fails with `Unavailable`
    // when none answers, `Denied` when etcd does not let us, `Exhausted` when it is full, `Corrupt` when what answers
    // is no etcd.

    /// What a key holds.
    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found: Ranged = self.call("/v3/kv/range", &range(key))?;
        Ok(value(found))
    }

    /// Makes `key`, unless it exists, for as long as a lease runs, and reads `other` in the same moment.
    pub(crate) fn claim(
        &mut self,
        key: &[u8],
        content: &[u8],
        lease: Lease,
        other: &[u8],
    ) -> Result<Option<Claim>> {
        let success = vec![put(key, content, lease.id), Operation::Range(range(other))];
        Ok(claimed(self.transact(vec![Compare::created(key, 0)], success, Vec::new())?))
    }

    /// Puts `content` into `key` if a claim still stands and the key was written last in the revision `last`. So a write that
    /// etcd carries out late, when it was long given up and repeated, undoes nothing that was written since.
    pub(crate) fn put_under(
        &mut self,
        (claimed, claim): (&[u8], i64),
        (key, last): (&[u8], i64),
        content: &[u8],
    ) -> Result<Written> {
        let compare = vec![Compare::created(claimed, claim), Compare::written(key, last)];
        let look = [claimed, key].map(|key| Operation::Range(range(key)));
        let done = self.transact(compare, vec![put(key, content, 0)], look.into())?;
        Ok(written(done, claim, content))
    }

    /// Whether a claim still stands.
    pub(crate) fn stands(&mut self, claimed: &[u8], claim: i64) -> Result<bool> {
        Ok(self.transact(vec![Compare::created(claimed, claim)], Vec::new(), Vec::new())?.succeeded)
    }

    /// A new lease; etcd may grant a longer one than was asked for.
    pub(crate) fn grant(&mut self, span: Duration) -> Result<Lease> {
        let whole = span.as_secs() + u64::from(span.subsec_nanos() > 0);
        let ttl_s = Number(i64::try_from(whole.max(1)).unwrap_or(i64::MAX));
        let leased: Leased = self.call("/v3/lease/grant", &Grant { ttl_s })?;
        Ok(Lease { id: leased.id.0, span: span_of(&leased) })
    }

    /// Prolongs a lease; for how long from now, or `None` when it has ended.
    pub(crate) fn prolong(&mut self, lease: Lease) -> Result<Option<Duration>> {
        let prolonged: Streamed<Leased> =
            self.call("/v3/lease/keepalive", &OfLease { id: Number(lease.id) })?;
        let span = span_of(&prolonged.result);
        Ok((span > Duration::ZERO).then_some(span))
    }

    /// Ends a lease, and with it what was made for as long as it runs.
    pub(crate) fn revoke(&mut self, lease: Lease) -> Result<()> {
        let Done { .. } = self.call("/v3/lease/revoke", &OfLease { id: Number(lease.id) })?;
        Ok(())
    }

    fn transact(
        &mut self,
        compare: Vec<Compare>,
        success: Vec<Operation>,
        failure: Vec<Operation>,
    ) -> Result<Transacted> {
        self.call("/v3/kv/txn", &Transaction { compare, success, failure })
    }

    // How.

    /// Asks one member after the other, beginning with the one that answered last.
    fn call<A: DeserializeOwned>(&mut self, path: &str, asked: &impl Serialize) -> Result<A> {
        let body = serde_json::to_vec(asked)
            .map_err(|error| Error::internal("a request to etcd is always JSON").with_source(error))?;
        let mut last = None;
        for _ in 0..self.urls.len() {
            match self.ask(path, &body) {
                Ok(answer) => return self.read(path, &answer),
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Elsewhere(error)) => last = Some(error),
                Err(Refusal::Stale) => {
                    last = Some(Error::denied(format!("{} gives tokens that it refuses", self.shown)));
                }
            }
            self.current = (self.current + 1) % self.urls.len();
        }
        Err(last.unwrap_or_else(|| Error::internal("an address of etcd has an endpoint")))
    }

    /// Asks the current member, as a user where there is one, and once more with a fresh token.
    fn ask(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let fresh = self.token.is_none();
        self.authenticate()?;
        match self.post(path, body) {
            Err(Refusal::Stale) if !fresh => {
                self.token = None;
                self.authenticate()?;
                self.post(path, body)
            }
            answered => answered,
        }
    }

    fn authenticate(&mut self) -> Result<(), Refusal> {
        let Some(user) = self.user.as_ref().filter(|_| self.token.is_none()) else { return Ok(()) };
        let asked = Authenticate { name: &user.name, password: &user.password };
        let body = serde_json::to_vec(&asked).map(Zeroizing::new).unwrap_or_default();
        let answer = match self.post("/v3/auth/authenticate", &body) {
            Err(Refusal::Final(error)) if *error.kind() == Kind::Invalid => {
                let denied =
                    Error::denied(format!("{} refuses user {}", self.shown, user.name)).with_source(error);
                return Err(Refusal::Final(denied));
            }
            answered => answered?,
        };
        let Authenticated { token } = self.read("/v3/auth/authenticate", &answer).map_err(Refusal::Final)?;
        self.token = Some(Zeroizing::new(token));
        Ok(())
    }

    fn post(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let url = &self.urls[self.current];
        let mut request = self.agent.post(format!("{url}{path}")).content_type("application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", token.as_str());
        }
        let failed = |error| Refusal::Elsewhere(unreachable(url, error));
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status();
        let answer = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        let answer = answer.map_err(failed)?;
        if status.is_success() { Ok(answer) } else { Err(refusal(url, status.as_u16(), &answer)) }
    }

    fn read<A: DeserializeOwned>(&self, path: &str, answer: &[u8]) -> Result<A> {
        read(&self.urls[self.current], path, answer)
    }
}

fn read<A: DeserializeOwned>(url: &str, path: &str, answer: &[u8]) -> Result<A> {
    serde_json::from_slice(answer).map_err(|error| {
        Error::corrupt(format!("{url}{path} answers what no etcd would: is another program there?"))
            .with_source(error)
    })
}

/// Takes bytes for an answer to each of our questions, and for a refusal; whether they are any.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_answer(bytes: &[u8]) -> bool {
    let failure = serde_json::from_slice::<Failure>(bytes).is_ok_and(|failure| failure.code != 0);
    drop(refusal("http://a", 500, bytes));
    let answers = [
        read("http://a", "/", bytes).map(value).is_ok(),
        read("http://a", "/", bytes).map(claimed).is_ok(),
        read("http://a", "/", bytes).map(|done| written(done, 1, b"")).is_ok(),
        read("http://a", "/", bytes).map(|leased| span_of(&leased)).is_ok(),
        read("http://a", "/", bytes).map(|prolonged: Streamed<Leased>| span_of(&prolonged.result)).is_ok(),
        read::<Done>("http://a", "/", bytes).is_ok(),
        read::<Authenticated>("http://a", "/", bytes).is_ok(),
    ];
    failure || answers.contains(&true)
}

fn range(key: &[u8]) -> Range {
    Range { key: Bytes(key.to_vec()) }
}

fn put(key: &[u8], content: &[u8], lease: i64) -> Operation {
    Operation::Put(Put { key: Bytes(key.to_vec()), value: Bytes(content.to_vec()), lease: Number(lease) })
}

/// What came of claiming a key.
fn claimed(done: Transacted) -> Option<Claim> {
    let (succeeded, revision) = (done.succeeded, done.header.revision.0);
    let read = ranges(done).next().flatten();
    let read_revision = written_in(read.as_ref());
    succeeded.then(|| Claim { revision, read: read.map(|pair| pair.value.0), read_revision })
}

/// What came of writing a key under a claim.
fn written(done: Transacted, claim: i64, content: &[u8]) -> Written {
    if done.succeeded {
        return Written::In(done.header.revision.0);
    }
    let mut found = ranges(done);
    let (holder, found) = (found.next().flatten(), found.next().flatten());
    let revision = written_in(found.as_ref());
    match found {
        _ if holder.is_none_or(|holder| holder.create_revision.0 != claim) => Written::Unclaimed,
        // An earlier try has come through, and its answer was lost.
        Some(pair) if pair.value.0 == content => Written::In(revision),
        _ => Written::Changed(revision),
    }
}

fn value(found: Ranged) -> Option<Vec<u8>> {
    found.kvs.into_iter().next().map(|pair| pair.value.0)
}

/// What was found under each key that a transaction has looked at.
fn ranges(done: Transacted) -> impl Iterator<Item = Option<KeyValue>> {
    let ranges = done.responses.into_iter().filter_map(|response| response.response_range);
    ranges.map(|found| found.kvs.into_iter().next())
}

fn written_in(found: Option<&KeyValue>) -> i64 {
    found.map_or(0, |pair| pair.mod_revision.0)
}

fn span_of(leased: &Leased) -> Duration {
    Duration::from_secs(u64::try_from(leased.ttl_s.0).unwrap_or(0))
}

/// Why nothing came back.
fn unreachable(url: &str, error: ureq::Error) -> Error {
    let denied = match &error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        ureq::Error::Io(error) => error.kind() == ErrorKind::InvalidData,
        _ => false,
    };
    let told = match error {
        ureq::Error::BodyExceedsLimit(_) => Error::corrupt(format!("{url} answers without end: is it etcd?")),
        _ if denied => Error::denied(format!(
            "TLS cannot be spoken with {url}: give the authority that signed its certificate, and one that it accepts \
             (ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY)"
        )),
        _ => Error::unavailable(format!("cannot reach etcd at {url}: is it running there?")),
    };
    told.with_source(error)
}

/// What a status other than success means.
fn refusal(url: &str, status: u16, answer: &[u8]) -> Refusal {
    let Ok(failure) = serde_json::from_slice::<Failure>(answer) else {
        // A proxy before it speaks for itself.
        if status >= 500 {
            let told = format!("{url} answers with status {status}: is etcd running there?");
            return Refusal::Elsewhere(Error::unavailable(told));
        }
        return Refusal::Final(Error::corrupt(format!(
            "{url} answers with status {status}: is it etcd 3.4 or later, and does it want etcds://?"
        )));
    };
    let words = if failure.message.is_empty() { failure.error } else { failure.message };
    let words: String = words.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect();
    let told = |kind| Error::new(kind, format!("etcd at {url} refuses: {words}"));
    match failure.code {
        UNAVAILABLE | DEADLINE_EXCEEDED => Refusal::Elsewhere(told(Kind::Unavailable)),
        UNAUTHENTICATED => Refusal::Stale,
        _ if OLD_TOKEN.iter().any(|sign| words.contains(sign)) => Refusal::Stale,
        _ if words.contains(BUSY) => Refusal::Elsewhere(told(Kind::Unavailable)),
        // A request that is larger than etcd takes has the code of a wrong one.
        _ if words.contains("too large") => Refusal::Final(told(Kind::Exhausted).within(
            "the state of the coordinator is larger than etcd takes at once (raise its --max-request-bytes)",
        )),
        RESOURCE_EXHAUSTED => Refusal::Final(told(Kind::Exhausted)),
        PERMISSION_DENIED => Refusal::Final(told(Kind::Denied)),
        NOT_FOUND => Refusal::Final(told(Kind::Closed)),
        // "User name is empty": it wants to be spoken to by name.
        _ if words.contains("user name is empty") => {
            Refusal::Final(told(Kind::Denied).within("etcd wants a user (USER:PASSWORD@ or ETCDCTL_USER)"))
        }
        // What has no code of its own passes, as far as one can tell.
        UNKNOWN => Refusal::Elsewhere(told(Kind::Unavailable)),
        _ => Refusal::Final(told(Kind::Invalid)),
    }
}

fn tls_config(files: &TlsSettings) -> Result<TlsConfig> {
    let authority = tls::certificates(&files.authority, "ETCDCTL_CACERT")?;
    let roots: Vec<Certificate<'static>> =
        authority.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let own = if files.certificate.is_empty() { None } else { Some(client_certificate(files)?) };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .client_cert(own)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn client_certificate(files: &TlsSettings) -> Result<ClientCert> {
    let chain = tls::certificates(&files.certificate, "ETCDCTL_CERT")?;
    let chain: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    const KEY: &str = "ETCDCTL_KEY";
    let pem = tls::private_pem(&files.key, KEY)?;
    let key = PrivateKey::from_pem(&pem).map_err(|_| tls::no_private_key(&files.key, KEY))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
