//! TLS as a web configuration says it, for rustls.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, SupportedKxGroup, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use super::{
    clients::Clients,
    document::{ClientAuth, Pem, Source, Tls},
};
use crate::yaml::Mistake;

/// Bytes of the longest file of certificates.
const MAX_PEM: u64 = 4 * 1024 * 1024;

/// Returns the suites' names, as Go has them.
pub(super) fn cipher_suites() -> Vec<&'static str> {
    ring::ALL_CIPHER_SUITES.iter().filter_map(|suite| go_name(*suite)).collect()
}

/// Returns the curves' names, as Go has them.
pub(super) fn curves() -> Vec<&'static str> {
    CURVES.iter().map(|(name, _)| *name).collect()
}

const CURVES: &[(&str, &dyn SupportedKxGroup)] = &[
    ("X25519", ring::kx_group::X25519),
    ("CurveP256", ring::kx_group::SECP256R1),
    ("CurveP384", ring::kx_group::SECP384R1),
];

/// Go names the suites of TLS 1.3 as the standard does, and two of TLS 1.2 with the hash behind.
fn go_name(suite: SupportedCipherSuite) -> Option<&'static str> {
    let name = suite.suite().as_str()?;
    Some(match name {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        name => name,
    })
}

/// Makes what rustls serves with. Reads the files that it names.
pub(super) fn config(tls: &Tls) -> Result<ServerConfig, Mistake> {
    let certificates = certificates(&tls.certificate)?;
    let key_pem = text(&tls.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| wrong(&tls.key, &format!("no private key in PEM: {error}")))?;
    let provider = Arc::new(provider(tls));
    let versions: Vec<_> = [(tls.tls12, &TLS12), (tls.tls13, &TLS13)]
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, it)| it)
        .collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| wrong(&tls.certificate, &format!("can't be served: {error}")))?;
    let builder = match clients(tls, &provider)? {
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(certificates, key)
        .map_err(|error| wrong(&tls.key, &format!("does not go with the certificate: {error}")))?;
    config.ignore_client_order = tls.prefer_server;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider(tls: &Tls) -> CryptoProvider {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        // As in Go, the list is about TLS 1.2.
        let is_13 = |suite: &SupportedCipherSuite| suite.tls13().is_some();
        let mut suites: Vec<_> = provider.cipher_suites.iter().copied().filter(is_13).collect();
        let named = |name: &String| {
            provider.cipher_suites.iter().copied().find(|suite| go_name(*suite) == Some(name.as_str()))
        };
        suites.extend(tls.cipher_suites.iter().filter_map(named).filter(|suite| !is_13(suite)));
        provider.cipher_suites = suites;
    }
    if !tls.curves.is_empty() {
        let named = |name: &String| CURVES.iter().find(|(known, _)| known == name).map(|(_, group)| *group);
        provider.kx_groups = tls.curves.iter().filter_map(named).collect();
    }
    provider
}

/// Returns who checks the clients' certificates; `None` where they aren't asked for one.
fn clients(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<Option<Clients>, Mistake> {
    let (verifies, mandatory) = match tls.client_auth {
        ClientAuth::None => return Ok(None),
        ClientAuth::Request => (false, false),
        ClientAuth::RequireAny => (false, true),
        ClientAuth::VerifyIfGiven => (true, false),
        ClientAuth::RequireAndVerify => (true, true),
    };
    let mut chain = None;
    if let (true, Some(pem)) = (verifies, &tls.client_ca) {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem)? {
            roots
                .add(certificate)
                .map_err(|error| wrong(pem, &format!("not a CA's certificate: {error}")))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        chain = Some(verifier.map_err(|error| wrong(pem, &format!("can't be used: {error}")))?);
    }
    let algorithms = provider.signature_verification_algorithms;
    Ok(Some(Clients { chain, mandatory, allowed_sans: tls.allowed_sans.clone(), algorithms }))
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Mistake> {
    let text = text(pem)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = read.map_err(|error| wrong(pem, &format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(pem, "no certificate in PEM"));
    }
    Ok(certificates)
}

fn text(pem: &Pem) -> Result<Vec<u8>, Mistake> {
    match &pem.source {
        Source::Inline(text) => Ok(text.clone().into_bytes()),
        Source::File(path) => read(path).map_err(|what| wrong(pem, &what)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) => Err(format!("{shown}: {error}")),
        Ok(found) if !found.is_file() => Err(format!("{shown} is not a file")),
        Ok(found) if found.len() > MAX_PEM => Err(format!("{shown} is longer than {MAX_PEM} bytes")),
        Ok(_) => fs::read(path).map_err(|error| format!("{shown}: {error}")),
    }
}

fn wrong(pem: &Pem, what: &str) -> Mistake {
    Mistake { place: pem.place, message: format!("tls_server_config.{}: {what}", pem.key) }
}
