use std::{path::Path, time::Duration};

use super::{ClientAuth, Document, Rate, Source, read};

const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

fn mistakes(text: &str) -> Vec<String> {
    let list = read(text, Path::new("/etc")).unwrap_err();
    list.iter().map(|it| format!("{}:{}: {}", it.place.line, it.place.column, it.message)).collect()
}

#[test]
fn nothing_is_plain_http_for_everybody() {
    for text in ["", "# a comment\n", "{}", "tls_server_config:\nbasic_auth_users: {}\n"] {
        assert_eq!(read(text, Path::new("/")), Ok(Document::default()), "{text}");
    }
}

#[test]
fn every_key_is_read() {
    let text = format!(
        "tls_server_config:\n  cert_file: a.pem\n  key: |\n    inline\n  client_auth_type: RequireAndVerifyClientCert\n  \
         client_ca_file: /ca.pem\n  client_allowed_sans: [host.example]\n  min_version: TLS13\n  max_version: TLS13\n  \
         cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n  prefer_server_cipher_suites: no\n  \
         curve_preferences:\n    - X25519\nrate_limit:\n  interval: 1m30s\n  burst: 7\nhttp_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n\
         basic_auth_users:\n  alice: {HASH}\n"
    );
    let document = read(&text, Path::new("/etc")).unwrap();
    let tls = document.tls.unwrap();
    assert_eq!(tls.certificate.source, Source::File("/etc/a.pem".into()));
    assert_eq!(tls.key.source, Source::Inline("inline\n".to_owned()));
    assert_eq!(tls.client_ca.unwrap().source, Source::File("/ca.pem".into()));
    assert_eq!(tls.client_auth, ClientAuth::RequireAndVerify);
    assert_eq!(tls.allowed_sans.unwrap(), ["host.example"]);
    assert_eq!((tls.tls12, tls.tls13, tls.prefer_server), (false, true, false));
    assert_eq!((tls.cipher_suites.len(), tls.curves), (1, vec!["X25519".to_owned()]));
    assert_eq!(document.rate, Some(Rate { interval: Duration::from_secs(90), burst: 7 }));
    assert_eq!(document.headers["x-frame-options"], "deny");
    assert_eq!(document.users, [("alice".to_owned(), HASH.to_owned())]);
}

#[test]
fn each_mistake_has_its_line_and_key() {
    let text = "tls_server_config:\n  cert_fil: a\n  max_version: TLS11\n  cipher_suites: [TLS_FOO]\n\
                http_server_config:\n  http2: maybe\n  headers:\n    X-Frame-Options: allow\n    Server: x\n\
                basic_auth_users:\n  alice: secret\n  alice: secret\nrate: 1\n";
    let found = mistakes(text);
    let begins = [
        "2:3: tls_server_config.cert_fil: unknown key; known are: cert, ",
        "2:3: tls_server_config: cert_file is missing",
        "2:3: tls_server_config: key_file is missing",
        "3:16: tls_server_config.max_version: TLS before 1.2",
        "4:18: tls_server_config.cipher_suites: TLS_FOO is not one of TLS_",
        "6:10: http_server_config.http2: expected true or false",
        "8:22: http_server_config.headers.X-Frame-Options: allow is not one of deny, sameorigin",
        "9:5: http_server_config.headers.Server: unknown key",
        "11:10: basic_auth_users.alice: is not a bcrypt hash",
        "12:3: basic_auth_users.alice: is set twice",
        "13:1: rate: unknown key; known are: tls_server_config, ",
    ];
    assert_eq!(found.len(), begins.len(), "{found:#?}");
    for (found, begin) in found.iter().zip(begins) {
        assert!(found.starts_with(begin), "{found}\n instead of {begin}");
    }
}

#[test]
fn what_would_not_protect_is_a_mistake() {
    let tls = "tls_server_config: {cert_file: a, key_file: b, ";
    for (text, expected) in [
        (format!("{tls}client_ca_file: c}}"), "client_ca_file says nothing without a client_auth_type"),
        (format!("{tls}client_auth_type: RequireAndVerifyClientCert}}"), "needs client_ca_file"),
        (format!("{tls}client_auth_type: Require}}"), "Require is not one of NoClientCert"),
        (format!("{tls}client_allowed_sans: [a]}}"), "needs client_auth_type RequireAnyClientCert"),
        (format!("{tls}min_version: TLS13, max_version: TLS12}}"), "is less than min_version"),
        (format!("{tls}cert: inline}}"), "is set beside cert_file"),
        ("tls_server_config: {min_version: TLS13}".to_owned(), "cert_file is missing"),
        ("tls_server_config: [1]".to_owned(), "expected a map, found a list"),
        (
            "rate_limit: {interval: 1}".to_owned(),
            "rate_limit.interval: 1 is not a time, expected one such as 1s",
        ),
        ("rate_limit: {burst: -1}".to_owned(), "rate_limit.burst: -1 is not a number of requests"),
        (
            format!("basic_auth_users: {{a: {}}}", HASH.replace("$10$", "$25$")),
            "the hash has cost 25, possible is 4 to 18",
        ),
    ] {
        let found = mistakes(&text);
        assert!(found.iter().any(|found| found.contains(expected)), "{text}: {found:?}");
    }
}
