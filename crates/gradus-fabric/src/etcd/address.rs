//! Where an etcd cluster is, under which keys a run's lie, and as whom it is spoken to.

use crate::tls::TlsSettings;
use gradus_error::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use zeroize::Zeroizing;

/// The port of etcd's clients, where none is given.
const PORT: u16 = 2379;

/// The prefix where none is given.
const PREFIX: &str = "gradus";

/// Endpoints of a cluster; etcd itself advises seven members at most.
const MOST_ENDPOINTS: usize = 16;

/// Bytes of a prefix, a host, a name or a password.
const LONGEST: usize = 128;

const PLAIN: &str = "etcd://";
const SECURE: &str = "etcds://";

/// The variables of etcd's own client, which count here too.
const USER: &str = "ETCDCTL_USER";
const PASSWORD: &str = "ETCDCTL_PASSWORD";
const AUTHORITY: &str = "ETCDCTL_CACERT";
const CERTIFICATE: &str = "ETCDCTL_CERT";
const KEY: &str = "ETCDCTL_KEY";

/// How variables of the environment are looked up.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A name and its password; `Debug` shows neither password nor its length.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Zeroizing<String>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({})", self.name)
    }
}

/// An etcd cluster and a prefix of its keys: `etcd://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...][/PREFIX]`, or `etcds://`
/// for TLS. `Display` leaves the password out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    endpoints: Vec<String>,
    prefix: String,
    pub(super) user: Option<User>,
    pub(super) tls: Option<TlsSettings>,
}

impl EtcdAddress {
    /// Whether a text means to be such an address.
    pub fn is_meant(text: &str) -> bool {
        [PLAIN, SECURE].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Reads an address. What it does not say is taken from the variables of etcd's own client: `ETCDCTL_USER` (`name:password`,
    /// or the name, with `ETCDCTL_PASSWORD`), and for TLS the PEM files `ETCDCTL_CACERT`, `ETCDCTL_CERT` and `ETCDCTL_KEY`.
    ///
    /// # Errors
    /// `Invalid`, naming the part that cannot be; a password is never shown.
    pub fn parse(text: &str, lookup: Lookup) -> Result<Self> {
        let (rest, secure) = match (text.strip_prefix(PLAIN), text.strip_prefix(SECURE)) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(Error::invalid("an address of etcd begins with etcd:// or etcds://")),
        };
        // Before all else: what is not percent-encoded in a password must not be taken for something that may be shown.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(decode(user)?), rest),
            None => (None, rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = Self {
            endpoints: endpoints(hosts)?,
            prefix: prefix(path)?,
            user: credentials(user, lookup)?,
            tls: secure.then(|| tls(lookup)).transpose()?,
        };
        address.check_discretion()?;
        Ok(address)
    }

    /// A password goes nowhere that others could read it on its way.
    fn check_discretion(&self) -> Result<()> {
        let exposed = self.endpoints.iter().find(|endpoint| !is_loopback(endpoint));
        match (&self.user, &self.tls, exposed) {
            (Some(_), None, Some(endpoint)) => Err(Error::invalid(format!(
                "{PLAIN} would send the password in clear to {endpoint}, which is beyond loopback: give {SECURE}, or no user"
            ))),
            _ => Ok(()),
        }
    }

    /// The key of a name under the prefix.
    pub(crate) fn key(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.prefix).into_bytes()
    }

    /// Where each member of the cluster is spoken to.
    pub(super) fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect()
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { SECURE } else { PLAIN };
        write!(f, "{scheme}{}/{}", self.endpoints.join(","), self.prefix)
    }
}

fn endpoints(hosts: &str) -> Result<Vec<String>> {
    let endpoints: Vec<String> = hosts.split(',').map(endpoint).collect::<Result<_>>()?;
    match endpoints.len() {
        1..=MOST_ENDPOINTS => Ok(endpoints),
        many => Err(Error::invalid(format!("{many} endpoints of etcd: give at most {MOST_ENDPOINTS}"))),
    }
}

/// Whether an endpoint is surely on this host; any other name may be anywhere by the time it is called.
fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// `host:port`, with the usual port where none is given.
fn endpoint(text: &str) -> Result<String> {
    let wrong = || {
        Error::invalid(format!(
            "{text:?} is no endpoint of etcd: give HOST or HOST:PORT, an IPv6 address in brackets"
        ))
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (text, PORT),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let possible = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    if !possible || port == 0 || !(1..=LONGEST).contains(&host.len()) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

fn prefix(path: &str) -> Result<String> {
    let path = path.trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    match path {
        "" => Ok(PREFIX.to_owned()),
        path if path.len() <= LONGEST && path.bytes().all(plain) => Ok(path.to_owned()),
        path => Err(Error::invalid(format!(
            "{path:?} is no prefix of etcd's keys: give at most {LONGEST} letters, digits and -._~/"
        ))),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<Zeroizing<String>> {
    let wrong = || Error::invalid("name and password before the @ of etcd's address are not percent-encoded");
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if b"/@".contains(&byte) {
            return Err(wrong());
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(wrong);
        bytes.push(if byte == b'%' { (digit()? * 16 + digit()?) as u8 } else { byte });
    }
    String::from_utf8(bytes.to_vec()).map(Zeroizing::new).map_err(|_| wrong())
}

fn credentials(given: Option<Zeroizing<String>>, lookup: Lookup) -> Result<Option<User>> {
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(Zeroizing::new);
    let Some(text) = given.or_else(|| set(USER)) else { return Ok(None) };
    let (name, password) = match text.split_once(':') {
        Some((name, password)) => (name, Zeroizing::new(password.to_owned())),
        None => (text.as_str(), set(PASSWORD).unwrap_or_default()),
    };
    if name.is_empty() || password.is_empty() || name.len().max(password.len()) > LONGEST {
        return Err(Error::invalid(format!(
            "etcd is to be spoken to by name, but name or password is empty or longer than {LONGEST} bytes: give \
             USER:PASSWORD@ in its address, or {USER} and {PASSWORD}"
        )));
    }
    Ok(Some(User { name: name.to_owned(), password }))
}

fn tls(lookup: Lookup) -> Result<TlsSettings> {
    let set = |name: &str| lookup(name).unwrap_or_default();
    let files = TlsSettings { certificate: set(CERTIFICATE), key: set(KEY), authority: set(AUTHORITY) };
    if files.authority.is_empty() || files.certificate.is_empty() != files.key.is_empty() {
        return Err(Error::invalid(format!(
            "{SECURE} wants to know whom to believe: name the PEM file of etcd's authority in {AUTHORITY}, and where \
             etcd asks for a certificate also {CERTIFICATE} and {KEY}"
        )));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<EtcdAddress> {
        EtcdAddress::parse(text, &|_| None)
    }

    #[test]
    fn hosts_ports_and_prefix_are_found() {
        let address = parse("etcd://one,two:1234,[::1]:99,[fe80::2]/runs/a/").unwrap();
        let urls = ["http://one:2379", "http://two:1234", "http://[::1]:99", "http://[fe80::2]:2379"];
        assert_eq!(address.urls(), urls);
        assert_eq!(address.key("leader"), b"runs/a/leader");
        assert_eq!(parse("etcd://one").unwrap().key("state"), b"gradus/state");
        assert_eq!(address.to_string(), "etcd://one:2379,two:1234,[::1]:99,[fe80::2]:2379/runs/a");
    }

    #[test]
    fn who_speaks_comes_from_the_address_or_the_environment_and_is_not_shown() {
        let environment = |name: &str| match name {
            USER => Some("other".to_owned()),
            PASSWORD => Some("hunter3".to_owned()),
            AUTHORITY => Some("/ca.pem".to_owned()),
            _ => None,
        };
        let inside =
            EtcdAddress::parse("etcd://me:hunter2%3a%40@localhost,127.0.0.1,[::1]:9/p", &environment)
                .unwrap();
        let user = inside.user.clone().unwrap();
        assert_eq!((user.name.as_str(), user.password.as_str()), ("me", "hunter2:@"));
        assert!(!format!("{inside:?} {inside}").contains("hunter"));
        let outside = EtcdAddress::parse("etcds://host", &environment).unwrap();
        assert_eq!(outside.user.unwrap().password.as_str(), "hunter3");
        assert_eq!(outside.tls.unwrap().authority, "/ca.pem");
    }

    #[test]
    fn what_cannot_be_is_named_without_passwords() {
        for wrong in [
            "etcd://",
            "etcd:///prefix",
            "etcd://a,,b",
            "etcd://host:0",
            "etcd://host:99999",
            "etcd://ho st",
            "etcd://::1",
            "etcd://[::1",
            "etcd://host/a b",
            "etcd://:hunter2@host",
            "etcd://hunter2%zz:x@host",
            "etcd://name:@host",
            "etcd://user:hunter2/ss@localhost",
            "etcd://user:pa/hunter2@localhost",
            "etcd://user:hunter2@ss@localhost",
            "etcd://user:hunter2@10.0.0.5",
            "etcd://user:hunter2@localhost,[::2]:1",
            "etcd://user:hunter2@localhost.example",
            "etcds://host",
            "http://host",
        ] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid, "{wrong}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "etcds?://[a-z:@%/,\\[\\]0-9é]{0,30}") {
            let _ = parse(&text);
        }
    }
}
