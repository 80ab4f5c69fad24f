//! The web configuration as clients find it: TLS with and without their certificates, users, headers, and changes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::Engine as _;
use lab::require;
use meter_agent::http::{
    Response,
    server::{Cut, Limits, Server},
    web::Web,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of certificates, and a server that its `web.yml` configures.
pub(crate) struct Site {
    directory: TempDir,
    server: Server,
    web: Arc<Web>,
    pub(crate) address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

/// Returns whether there is curl.
pub(crate) fn curl_is_there() -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok();
    require::met("curl", found, "curl (apt-get install curl)")
}

/// Writes a CA, and certificates of the server and of two clients; `other.pem` is another CA's.
fn certificates(directory: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Issuer::new(params, key)
    };
    let issue = |issuer: &Issuer<'_, KeyPair>, name: &str, host: &str| {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    let (own, other) = (authority("ca"), authority("otherca"));
    issue(&own, "server", "127.0.0.1");
    issue(&own, "second", "127.0.0.1");
    issue(&own, "client", "prometheus.example");
    issue(&other, "stranger", "prometheus.example");
}

impl Site {
    pub(crate) fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path());
        let file = directory.path().join("web.yml");
        fs::write(&file, config).unwrap();
        let web = Arc::new(Web::load(&file).unwrap_or_else(|error| panic!("{error}")));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(Limits::default()).with_web(Some(Arc::clone(&web)));
        let serving = server.clone();
        runtime.spawn(async move {
            serving.serve(listener, |_| async { Response::ok("text/plain", "the page\n") }).await;
        });
        Self { directory, server, web, address, runtime }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Asks by curl; returns the status, `000` where there was no answer, and all that was said.
    fn curl(&self, scheme: &str, options: &str) -> (String, String) {
        let mut command = Command::new("curl");
        command.current_dir(self.directory.path()).args(["-sSi", "--max-time", "15", "--noproxy", "*"]);
        command.args(["-w", "\n%{http_code}"]).args(options.split_whitespace());
        let output = command.arg(format!("{scheme}://{}/", self.address)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = said.lines().last().unwrap_or_default().to_owned();
        (status, said + &String::from_utf8_lossy(&output.stderr))
    }

    /// Asserts which status each of these options of curl gives.
    fn assert(&self, expected: &[(&str, &str, &str)]) {
        for (scheme, options, status) in expected {
            let (found, said) = self.curl(scheme, options);
            assert_eq!(found, *status, "{scheme} {options}: {said}");
        }
    }

    /// Writes another configuration, and waits until it has been read.
    fn change(&self, config: &str, is_ok: bool) {
        let before = self.web.status();
        fs::write(self.path("web.new"), config).unwrap();
        fs::rename(self.path("web.new"), self.path("web.yml")).unwrap();
        self.wait(|web| web.status().is_ok == is_ok && (!is_ok || web.status() != before || before.is_ok));
    }

    /// Lets clients come until a condition holds: the files are looked at when they do.
    fn wait(&self, holds: impl Fn(&Web) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.web) {
            assert!(Instant::now() < deadline, "{:?}", self.web.status());
            drop(std::net::TcpStream::connect(self.address).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) const TLS: &str = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n";

pub(crate) fn users(password: &str) -> String {
    format!("basic_auth_users:\n  alice: {}\n", bcrypt::hash(password, 4).unwrap())
}

#[test]
fn empty_configuration_is_plain_http() {
    if !curl_is_there() {
        return;
    }
    let site = Site::start("");
    site.assert(&[("http", "", "200"), ("http", "-u a:b", "200"), ("https", "-k", "000")]);
}

#[test]
fn tls_is_spoken_to_whoever_trusts_the_certificate() {
    if !curl_is_there() {
        return;
    }
    let site = Site::start(TLS);
    site.assert(&[
        ("https", "--cacert ca.pem", "200"),
        ("https", "--cacert ca.pem --tls-max 1.2", "200"),
        ("https", "--cacert ca.pem --http2", "200"),
        ("https", "--cacert otherca.pem", "000"),
        ("http", "", "000"),
    ]);
    let site = Site::start(&format!("{TLS}  min_version: TLS13\n"));
    site.assert(&[
        ("https", "--cacert ca.pem --tls-max 1.2", "000"),
        ("https", "--cacert ca.pem --tlsv1.3", "200"),
    ]);
    assert_eq!(site.server.stats().cut(Cut::Handshake), 1);
    let suites = "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]\n";
    let site = Site::start(&format!("{TLS}{suites}"));
    site.assert(&[
        ("https", "--cacert ca.pem --ciphers ECDHE-ECDSA-AES128-GCM-SHA256", "000"),
        ("https", "--cacert ca.pem --ciphers ECDHE-ECDSA-AES256-GCM-SHA384", "200"),
    ]);
}

#[test]
fn client_certificates_keep_others_out() {
    if !curl_is_there() {
        return;
    }
    let own = "--cacert ca.pem --cert client.pem --key client.key";
    let stranger = "--cacert ca.pem --cert stranger.pem --key stranger.key";
    let none = "--cacert ca.pem";
    for (config, expected) in [
        ("client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n", ["200", "000", "000"]),
        ("client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n", ["200", "000", "200"]),
        ("client_auth_type: RequireAnyClientCert\n", ["200", "200", "000"]),
        ("client_auth_type: RequestClientCert\n", ["200", "200", "200"]),
        (
            "client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [prometheus.example]\n",
            ["200", "000", "000"],
        ),
        (
            "client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [another.example]\n",
            ["000", "000", "000"],
        ),
    ] {
        let site = Site::start(&format!("{TLS}  {config}"));
        for (options, status) in [own, stranger, none].into_iter().zip(expected) {
            let (found, said) = site.curl("https", options);
            assert_eq!(found, status, "{config}{options}: {said}");
        }
    }
}

#[test]
fn users_and_headers_hold_for_every_answer() {
    if !curl_is_there() {
        return;
    }
    let headers = "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n";
    let site = Site::start(&format!("{TLS}{headers}{}", users("right")));
    let with = |user: &str| site.curl("https", &format!("--cacert ca.pem {user}"));
    for (user, status) in [
        ("-u alice:right", "200"),
        ("-u alice:wrong", "401"),
        ("-u bob:right", "401"),
        ("", "401"),
        ("-u alice:right", "200"),
    ] {
        let (found, said) = with(user);
        assert_eq!(found, status, "{user}: {said}");
        let lower = said.to_ascii_lowercase();
        assert!(lower.contains("\r\nx-frame-options: deny\r\n"), "{said}");
        assert_eq!(lower.contains("\r\nwww-authenticate: basic\r\n"), status == "401", "{said}");
        assert_eq!(said.contains("the page"), status == "200", "{said}");
    }
}

/// Connects from an address of this host's own, and asks with a user's password.
async fn ask_from(source: [u8; 4], address: SocketAddr, credentials: &str) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {encoded}\r\n\r\n");
    stream.writable().await.unwrap();
    assert_eq!(stream.try_write(request.as_bytes()).unwrap(), request.len());
    stream
}

#[test]
fn guessers_of_passwords_cost_known_users_no_answer() {
    if !curl_is_there() {
        return;
    }
    let slow = bcrypt::hash_with_salt("secret", 12, [7; 16]).unwrap();
    let site = Site::start(&format!("{}  slow: {slow}\n", users("right")));
    site.assert(&[("http", "-u alice:right", "200")]);
    // More than there are turns, from more addresses than fill them.
    let guessers = site.runtime.block_on(async {
        let mut guessers = Vec::new();
        for index in 0..40_u8 {
            let source = [127, 0, 0, 2 + index % 10];
            guessers.push(ask_from(source, site.address, &format!("slow:{index}")).await);
        }
        guessers
    });
    site.assert(&[("http", "-u alice:right", "200")]);
    drop(guessers);
}

#[test]
fn more_requests_than_the_rate_are_429() {
    if !curl_is_there() {
        return;
    }
    let site = Site::start("rate_limit: {interval: 1h, burst: 2}\n");
    site.assert(&[("http", "", "200"), ("http", "", "200"), ("http", "", "429"), ("http", "", "429")]);
}

#[test]
fn change_takes_effect_and_a_wrong_one_does_not() {
    if !curl_is_there() {
        return;
    }
    let site = Site::start(&users("one"));
    let status = |options: &str| site.curl("http", options).0;
    assert_eq!((status("-u alice:one"), status("-u alice:two")), ("200".to_owned(), "401".to_owned()));
    site.change("basic_auth_users:\n  alice: two\n", false);
    assert_eq!((status("-u alice:one"), status("-u alice:two")), ("200".to_owned(), "401".to_owned()));
    site.change(&users("two"), true);
    assert_eq!((status("-u alice:one"), status("-u alice:two")), ("401".to_owned(), "200".to_owned()));
    // A certificate that isn't there yet, and then is.
    let later = TLS.replace("server.", "later.");
    site.change(&later, false);
    assert_eq!(status("-u alice:two"), "200");
    for end in ["pem", "key"] {
        fs::copy(site.path(&format!("second.{end}")), site.path(&format!("later.{end}"))).unwrap();
    }
    site.wait(|web| web.status().is_ok);
    site.assert(&[("https", "--cacert ca.pem", "200"), ("http", "", "000")]);
    // A certificate that is replaced where it is.
    fs::copy(site.path("stranger.pem"), site.path("later.pem")).unwrap();
    site.wait(|web| !web.status().is_ok);
    site.assert(&[("https", "--cacert ca.pem", "200")]);
    fs::copy(site.path("stranger.key"), site.path("later.key")).unwrap();
    site.wait(|web| web.status().is_ok);
    site.assert(&[("https", "--cacert ca.pem", "000"), ("https", "-k", "200")]);
}

#[test]
fn mistakes_name_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = directory.path().join("web.yml");
    let name = file.display();
    let refused = |text: &str| {
        fs::write(&file, text).unwrap();
        Web::load(&file).unwrap_err().to_string()
    };
    assert!(
        refused("tls: 1\n")
            .starts_with(&format!("{name}:1:1: tls: unknown key; known are: tls_server_config"))
    );
    let key = refused("tls_server_config:\n  cert_file: server.pem\n  key_file: second.key\n");
    assert!(key.starts_with(&format!("{name}:3:13: tls_server_config.key_file: does not go with")), "{key}");
    let missing = refused("tls_server_config:\n  cert_file: none.pem\n  key_file: second.key\n");
    assert!(missing.starts_with(&format!("{name}:2:14: tls_server_config.cert_file: ")), "{missing}");
    assert!(missing.contains("none.pem: No such file"), "{missing}");
    let swapped = refused("tls_server_config:\n  cert_file: server.key\n  key_file: server.pem\n");
    assert!(swapped.contains("cert_file: no certificate in PEM"), "{swapped}");
    assert!(Web::load(directory.path()).unwrap_err().to_string().ends_with(": is not a file"));
}

#[test]
fn packaged_file_is_right_with_and_without_its_comments() {
    let packaged = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/web-config.yml");
    Web::load(Path::new(packaged)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    fs::rename(directory.path().join("ca.pem"), directory.path().join("clients.pem")).unwrap();
    let text: String = fs::read_to_string(packaged)
        .unwrap()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') || rest.starts_with("  ")))
        .map(|line| format!("{}\n", line.unwrap_or_default()))
        .collect();
    assert!(text.contains("basic_auth_users:") && text.contains("  cert_file: "), "{text}");
    let file = directory.path().join("web.yml");
    fs::write(&file, &text).unwrap();
    Web::load(&file).unwrap_or_else(|error| panic!("{error}\n{text}"));
}
