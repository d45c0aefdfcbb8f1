//! TLS 1.3 with certificates on both sides, for connections that others could read or alter.
//!
//! The authority is the run's own: whoever holds a certificate that it signed is a member, wherever it runs, so a
//! certificate's names are not looked at, and one certificate may serve all ranks. Each side shows one, calling or
//! called; the run's secret is proven inside all the same. Sessions are neither kept nor resumed.

use crate::private;
use crate::stream::Stream;
use gradus_error::{Error, IoContext, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// No PEM file of a rank is larger: a bound on what is read on another's word.
const LARGEST_FILE: usize = 1 << 20;

/// Files of TLS between ranks; all three, or none for connections without TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM file of this rank's certificate, then those between it and the authority.
    pub certificate: String,
    /// PEM file of the certificate's private key, which only its owner may read.
    pub key: String,
    /// PEM file of the certificates of the authorities whose holders are members.
    pub authority: String,
}

impl TlsSettings {
    /// Whether connections go under TLS.
    pub fn is_used(&self) -> bool {
        *self != Self::default()
    }

    /// Whether all files are named, or none.
    ///
    /// # Errors
    /// `Invalid`, naming the key that is missing.
    pub fn check(&self) -> Result<()> {
        let files = [("certificate", &self.certificate), ("key", &self.key), ("authority", &self.authority)];
        match files.iter().find(|(_, file)| file.is_empty()) {
            Some((missing, _)) if self.is_used() => Err(Error::invalid(format!(
                "network.tls.{missing} is not set: give certificate, key and authority, or none of them"
            ))),
            _ => Ok(()),
        }
    }
}

/// How this rank calls, and is called, under TLS.
#[derive(Clone)]
pub(crate) struct Identity {
    calling: Arc<ClientConfig>,
    called: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the files that the settings name; `None` where they name none.
    ///
    /// # Errors
    /// `Invalid` when a file is missing, is not what it should be, or key and certificate do not belong together;
    /// `Denied` when others can read the key.
    pub(crate) fn read(settings: &TlsSettings) -> Result<Option<Self>> {
        settings.check()?;
        if !settings.is_used() {
            return Ok(None);
        }
        let chain = certificates(&settings.certificate, "network.tls.certificate")?;
        let key = private_key(&settings.key)?;
        let roots = Arc::new(authority(&settings.authority)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let identity = Self {
            calling: Arc::new(calling(&provider, &roots, chain.clone(), key.clone_key())?),
            called: Arc::new(called(&provider, &roots, chain, key)?),
        };
        Ok(Some(identity))
    }

    /// The caller's side of a connection.
    ///
    /// # Errors
    /// The system's failure.
    pub(crate) fn call(&self, socket: OwnedFd) -> Result<Stream> {
        // Never sent nor compared: members are told by their authority.
        let name = ServerName::try_from("gradus.invalid").expect("this is a name");
        let connection = ClientConnection::new(Arc::clone(&self.calling), name).map_err(|e| refusal(&e))?;
        Stream::tls(socket, connection.into())
    }

    /// The other side.
    ///
    /// # Errors
    /// The system's failure.
    pub(crate) fn answer(&self, socket: OwnedFd) -> Result<Stream> {
        let connection = ServerConnection::new(Arc::clone(&self.called)).map_err(|error| refusal(&error))?;
        Stream::tls(socket, connection.into())
    }
}

fn calling(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig> {
    let members = Members { roots: Arc::clone(roots), provider: Arc::clone(provider) };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unfit(&error))?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(members))
        .with_client_auth_cert(chain, key)
        .map_err(|error| unfit(&error))?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

fn called(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig> {
    let members =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build();
    let members = members.map_err(|error| {
        Error::invalid("network.tls.authority names no usable authority").with_source(error)
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unfit(&error))?
        .with_client_cert_verifier(members)
        .with_single_cert(chain, key)
        .map_err(|error| unfit(&error))?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn unfit(error: &rustls::Error) -> Error {
    Error::invalid("network.tls.certificate and network.tls.key do not make a pair that TLS 1.3 can use")
        .with_source(error.clone())
}

/// The certificates in the PEM file that `setting` names.
///
/// # Errors
/// `Invalid` when it is not there or holds none.
pub(crate) fn certificates(path: &str, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let mut pem = Vec::new();
    let describe = || format!("cannot read {setting} {path}");
    File::open(Path::new(path))
        .and_then(|file| file.take(LARGEST_FILE as u64).read_to_end(&mut pem))
        .context(describe)?;
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let read = read.map_err(|error| {
        Error::invalid(format!("{setting} {path} is no PEM file of certificates")).with_source(error)
    })?;
    if read.is_empty() {
        return Err(Error::invalid(format!("{setting} {path} holds no certificate in PEM")));
    }
    Ok(read)
}

/// The PEM file of a private key that `setting` names.
///
/// # Errors
/// `Invalid` when it is not there, `Denied` when others can read it.
pub(crate) fn private_pem(path: &str, setting: &str) -> Result<Zeroizing<Vec<u8>>> {
    let pem = private::read(Path::new(path), LARGEST_FILE).map_err(|error| error.within(setting))?;
    Ok(Zeroizing::new(pem))
}

/// What is said of a file without a key. The reason is left out: it might show what it could not read.
pub(crate) fn no_private_key(path: &str, setting: &str) -> Error {
    Error::invalid(format!("{setting} {path} holds no private key in PEM"))
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>> {
    const SETTING: &str = "network.tls.key";
    PrivateKeyDer::from_pem_slice(&private_pem(path, SETTING)?).map_err(|_| no_private_key(path, SETTING))
}

fn authority(path: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "network.tls.authority")? {
        roots.add(certificate).map_err(|error| {
            Error::invalid(format!("network.tls.authority {path} holds a certificate that is no authority's"))
                .with_source(error)
        })?;
    }
    Ok(roots)
}

/// What TLS found wrong with the other side, or it with us.
pub(crate) fn refusal(error: &rustls::Error) -> Error {
    use rustls::Error as Tls;
    let alike = "give all ranks certificates of one authority that are valid now (network.tls.*)";
    let error_of = match error {
        Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented => {
            Error::denied(format!("its certificate is not accepted: {alike}"))
        }
        Tls::AlertReceived(_) => Error::denied(format!("it does not accept our certificate: {alike}")),
        Tls::InvalidMessage(_) => {
            Error::invalid("it does not speak TLS: set network.tls.* on all ranks or on none")
        }
        _ => Error::denied("TLS cannot be spoken with it"),
    };
    error_of.with_source(error.clone())
}

/// Who belongs to an authority, whatever the name.
#[derive(Debug)]
struct Members {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
