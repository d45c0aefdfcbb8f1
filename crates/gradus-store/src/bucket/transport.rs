//! HTTP beneath `object_store`: one client, every request counted, every refusal kept as the store worded it.
//!
//! `object_store` signs requests and reads answers; what goes wrong is judged in one place of ours (`failure`), from the
//! status and the code that the store gave. So its own repeating is off, and refusals pass through it unseen.

use super::counters::{RequestKind, Tally};
use super::settings::BucketSettings;
use futures_util::future::BoxFuture;
use gradus_error::{Error, Result};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::Method;
use std::fmt;
use std::sync::{Arc, Once};

/// Most bytes of a refusal that are read.
const REFUSAL_BYTES: usize = 64 << 10;

/// Longest message of a store that is passed on.
const MESSAGE_BYTES: usize = 500;

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    /// As in `<Code>`; empty where there is none.
    pub(super) code: String,
    pub(super) message: String,
    /// The bucket's region, where the store tells it.
    pub(super) region: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        for text in [&self.code, &self.message] {
            if !text.is_empty() {
                write!(f, ", {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Sends requests; counts them.
#[derive(Clone)]
pub(super) struct Transport {
    client: reqwest::Client,
    tally: Arc<Tally>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    pub(super) fn new(client: reqwest::Client, tally: Arc<Tally>) -> Self {
        Self { client, tally }
    }
}

/// A client as the settings want it; `bundle` holds certificates to trust beside the system's.
///
/// # Errors
/// `Invalid` for certificates that cannot be read; `Unavailable` when the system's cannot.
pub(super) fn client(
    settings: &BucketSettings,
    endpoint: &str,
    bundle: Option<&str>,
) -> Result<reqwest::Client> {
    let mut builder = builder(bundle)?
        .tcp_nodelay(true)
        // A store that sends elsewhere means that the region is wrong; the signature would not hold there.
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(settings.connections)
        .read_timeout(settings.request_timeout())
        .connect_timeout(settings.connect_timeout())
        .user_agent(concat!("gradus/", env!("CARGO_PKG_VERSION")));
    if is_on_this_machine(endpoint) {
        builder = builder.no_proxy();
    }
    built(builder)
}

/// A client for services of this machine or next to it, to and from which keys go: past every proxy.
///
/// # Errors
/// As of [`client`].
pub(super) fn direct(bundle: Option<&str>) -> Result<reqwest::Client> {
    built(builder(bundle)?.no_proxy().redirect(reqwest::redirect::Policy::none()))
}

fn builder(bundle: Option<&str>) -> Result<reqwest::ClientBuilder> {
    static PROVIDER: Once = Once::new();
    // It fails only where a provider was installed before, which does as well.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let builder = reqwest::Client::builder().http1_only();
    Ok(match bundle {
        Some(path) => builder.tls_certs_merge(certificates(path)?),
        None => builder,
    })
}

fn built(builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
    builder.build().map_err(|error| Error::unavailable("cannot set up the HTTP client").with_source(error))
}

fn certificates(path: &str) -> Result<Vec<reqwest::Certificate>> {
    let pem = std::fs::read(path)
        .map_err(|error| Error::io(format!("cannot read the certificates {path} (AWS_CA_BUNDLE)"), error))?;
    reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
        Error::invalid(format!("{path} holds no certificates (AWS_CA_BUNDLE)")).with_source(error)
    })
}

/// Whether no proxy can help to get there.
fn is_on_this_machine(endpoint: &str) -> bool {
    let url = reqwest::Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn kind(request: &HttpRequest) -> RequestKind {
    let listing = || request.uri().query().is_some_and(|query| query.contains("list-type="));
    match *request.method() {
        Method::GET if listing() => RequestKind::List,
        Method::GET => RequestKind::Get,
        Method::HEAD => RequestKind::Head,
        Method::DELETE => RequestKind::Delete,
        _ => RequestKind::Put,
    }
}

impl HttpService for Transport {
    fn call<'s, 'a>(&'s self, request: HttpRequest) -> BoxFuture<'a, Result<HttpResponse, HttpError>>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            self.tally.request(kind(&request));
            let response = HttpService::call(&self.client, request).await?;
            if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
        })
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

async fn refusal(response: HttpResponse) -> HttpError {
    let status = response.status().as_u16();
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let region = header("x-amz-bucket-region");
    let declared = header("content-length").and_then(|length| length.parse::<usize>().ok());
    // A refusal of unknown length is taken as its first piece holds it.
    let text = match declared {
        Some(length) if length > REFUSAL_BYTES => String::new(),
        Some(_) => {
            let bytes = response.into_body().bytes().await.unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        None => first_piece(response).await,
    };
    let region = region.or_else(|| element(&text, "Region"));
    let code = element(&text, "Code").unwrap_or_default();
    let mut message = element(&text, "Message").unwrap_or_default();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    HttpError::new(HttpErrorKind::Unknown, Refused { status, code, message, region })
}

async fn first_piece(response: HttpResponse) -> String {
    use futures_util::StreamExt;
    let mut stream = response.into_body().bytes_stream();
    let piece = stream.next().await.and_then(Result::ok).unwrap_or_default();
    String::from_utf8_lossy(&piece[..piece.len().min(REFUSAL_BYTES)]).into_owned()
}

/// The text of the first element of this name, of XML as stores write it.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_and_unescaped() {
        let xml = "<Error><Code>NoSuchKey</Code><Message>a &amp;lt; b</Message></Error>";
        assert_eq!(element(xml, "Code").unwrap(), "NoSuchKey");
        assert_eq!(element(xml, "Message").unwrap(), "a &lt; b");
        assert_eq!(element(xml, "Region"), None);
        assert_eq!(element("<Code>cut", "Code"), None);
    }

    #[test]
    fn this_machine_is_known() {
        for here in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:80"] {
            assert!(is_on_this_machine(here), "{here}");
        }
        for there in ["http://10.0.0.1", "https://s3.amazonaws.com", "", "nonsense"] {
            assert!(!is_on_this_machine(there), "{there}");
        }
    }
}
