//! Certificates made for a test.

use gradus_fabric::TlsSettings;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// Who signs.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A member's files, as long as it lives.
pub struct Member {
    pub settings: TlsSettings,
    _folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub fn member(&self) -> Member {
        self.member_until(2100)
    }

    /// One whose certificate was valid from 1990 until the beginning of `year`.
    pub fn member_until(&self, year: i32) -> Member {
        self.sign("somewhere.invalid", year)
    }

    /// One for a server that is called by its address.
    pub fn loopback(&self) -> Member {
        self.sign("127.0.0.1", 2100)
    }

    fn sign(&self, name: &str, year: i32) -> Member {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(1990, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        let settings = TlsSettings {
            certificate: write(folder.path(), "certificate.pem", &certificate),
            key: write(folder.path(), "key.pem", &key.serialize_pem()),
            authority: write(folder.path(), "authority.pem", &self.certificate),
        };
        Member { settings, _folder: folder }
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}
