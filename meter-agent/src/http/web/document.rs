//! The keys of a web configuration, read to what they say.

mod values;

use std::path::{Path, PathBuf};

use bcrypt::HashParts;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use self::values::quoted;
use super::rate::{Rate, duration};
use crate::yaml::{Mistake, Node, Place, Value, parse};

/// The headers that may be set, and the values that they may have; any where there is none.
const HEADERS: &[(&str, &[&str])] = &[
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];
const TLS: &[&str] = &[
    "cert",
    "key",
    "client_ca",
    "cert_file",
    "key_file",
    "client_auth_type",
    "client_ca_file",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
];
const TOP: &[&str] = &["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"];

/// Rounds of bcrypt, as a power of two; with more of them a password takes longer than an answer may.
const MAX_COST: u32 = 18;
const MAX_USERS: usize = 1000;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) tls: Option<Tls>,
    pub(super) headers: HeaderMap,
    /// Names and hashes.
    pub(super) users: Vec<(String, String)>,
    pub(super) rate: Option<Rate>,
}

/// `tls_server_config`, with at least one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
    pub(super) client_ca: Option<Pem>,
    pub(super) client_auth: ClientAuth,
    pub(super) allowed_sans: Option<Vec<String>>,
    pub(super) tls12: bool,
    pub(super) tls13: bool,
    /// In the order of preference; all where empty.
    pub(super) cipher_suites: Vec<String>,
    pub(super) prefer_server: bool,
    /// In the order of preference; all where empty.
    pub(super) curves: Vec<String>,
}

/// Where something in PEM is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pem {
    pub(super) key: &'static str,
    pub(super) place: Place,
    pub(super) source: Source,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Inline(String),
    File(PathBuf),
}

/// What is asked of a client's certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ClientAuth {
    #[default]
    None,
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

/// Reads a text; relative paths begin at `directory`. Says everything that is wrong with it.
pub(super) fn read(text: &str, directory: &Path) -> Result<Document, Vec<Mistake>> {
    let root = parse(text).map_err(|mistake| vec![mistake])?;
    let mut reader = Reader { directory, mistakes: Vec::new() };
    let document = reader.document(&root);
    if reader.mistakes.is_empty() {
        return Ok(document);
    }
    reader.mistakes.sort();
    Err(reader.mistakes)
}

struct Reader<'a> {
    directory: &'a Path,
    mistakes: Vec<Mistake>,
}

/// A map's values by their keys.
struct Section<'a> {
    name: &'static str,
    place: Place,
    items: Vec<(&'a str, &'a Node)>,
}

impl<'a> Section<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.items.iter().find(|(name, _)| *name == key).map(|(_, node)| *node)
    }
}

impl Reader<'_> {
    fn wrong(&mut self, place: Place, key: &str, what: &str) {
        self.mistakes.push(Mistake { place, message: format!("{key}: {what}") });
    }

    /// Reads a map; `known` are its keys, any where there is none.
    fn section<'n>(&mut self, node: &'n Node, name: &'static str, known: &[&str]) -> Section<'n> {
        let mut section = Section { name, place: node.place, items: Vec::new() };
        let items = match &node.value {
            Value::Nothing => return section,
            Value::Map(items) => items,
            _ => {
                self.wrong(node.place, name, &format!("expected a map, found {}", node.kind()));
                return section;
            }
        };
        for (key, value) in items {
            let text = key.text().unwrap_or_default();
            let full = if name.is_empty() { quoted(text) } else { format!("{name}.{}", quoted(text)) };
            if !known.is_empty() && !known.contains(&text) {
                let what = format!("unknown key; known are: {}", known.join(", "));
                self.wrong(key.place, &full, &what);
            } else if section.get(text).is_some() {
                self.wrong(key.place, &full, "is set twice");
            } else {
                section.items.push((text, value));
            }
        }
        section
    }

    fn document(&mut self, root: &Node) -> Document {
        let top = self.section(root, "", TOP);
        let mut document = Document::default();
        if let Some(node) = top.get("tls_server_config") {
            let section = self.section(node, "tls_server_config", TLS);
            if !section.items.is_empty() {
                document.tls = self.tls(&section);
            }
        }
        if let Some(node) = top.get("http_server_config") {
            let section = self.section(node, "http_server_config", &["http2", "headers"]);
            // HTTP/2 is not spoken, whatever is said: no scraper needs it.
            self.boolean(&section, "http2", true);
            if let Some(node) = section.get("headers") {
                document.headers = self.headers(node);
            }
        }
        if let Some(node) = top.get("basic_auth_users") {
            document.users = self.users(node);
        }
        if let Some(node) = top.get("rate_limit") {
            document.rate = self.rate(node);
        }
        document
    }

    fn tls(&mut self, section: &Section<'_>) -> Option<Tls> {
        let certificate = self.pem(section, "cert", "cert_file");
        let key = self.pem(section, "key", "key_file");
        for (pem, names) in [(&certificate, "cert_file"), (&key, "key_file")] {
            if pem.is_none() {
                self.wrong(section.place, section.name, &format!("{names} is missing"));
            }
        }
        let client_ca = self.pem(section, "client_ca", "client_ca_file");
        let client_auth = self.client_auth(section, client_ca.is_some());
        let allowed_sans =
            section.get("client_allowed_sans").map(|_| self.texts(section, "client_allowed_sans"));
        let must_have = matches!(client_auth, ClientAuth::RequireAny | ClientAuth::RequireAndVerify);
        if allowed_sans.is_some() && !must_have {
            let what = "needs client_auth_type RequireAnyClientCert or RequireAndVerifyClientCert";
            self.at(section, "client_allowed_sans", what);
        }
        let (min, max) = (self.version(section, "min_version", 12), self.version(section, "max_version", 13));
        if max < 12 {
            self.at(section, "max_version", "TLS before 1.2 is not spoken; the least is TLS12");
        } else if max < min {
            self.at(section, "max_version", "is less than min_version");
        }
        let cipher_suites = self.among(section, "cipher_suites", &super::tls::cipher_suites());
        let curves = self.among(section, "curve_preferences", &super::tls::curves());
        let prefer_server = self.boolean(section, "prefer_server_cipher_suites", true);
        Some(Tls {
            certificate: certificate?,
            key: key?,
            client_ca,
            client_auth,
            allowed_sans,
            tls12: min <= 12 && max >= 12,
            tls13: min <= 13 && max >= 13,
            cipher_suites,
            prefer_server,
            curves,
        })
    }

    fn client_auth(&mut self, section: &Section<'_>, has_ca: bool) -> ClientAuth {
        let named = self.text(section, "client_auth_type").unwrap_or_default();
        let auth = match named.as_str() {
            "" | "NoClientCert" => ClientAuth::None,
            "RequestClientCert" => ClientAuth::Request,
            "RequireAnyClientCert" | "RequireClientCert" => ClientAuth::RequireAny,
            "VerifyClientCertIfGiven" => ClientAuth::VerifyIfGiven,
            "RequireAndVerifyClientCert" => ClientAuth::RequireAndVerify,
            other => {
                let what = format!(
                    "{} is not one of NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven, \
                     RequireAndVerifyClientCert",
                    quoted(other)
                );
                self.at(section, "client_auth_type", &what);
                return ClientAuth::RequireAndVerify;
            }
        };
        let verifies = matches!(auth, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
        if verifies && !has_ca {
            self.at(section, "client_auth_type", "needs client_ca_file to verify certificates with");
        }
        if has_ca && auth == ClientAuth::None {
            let what =
                "client_ca_file says nothing without a client_auth_type; set RequireAndVerifyClientCert";
            self.wrong(section.place, section.name, what);
        }
        auth
    }

    /// Reads a version of TLS as its two digits.
    fn version(&mut self, section: &Section<'_>, key: &'static str, default: u8) -> u8 {
        match self.text(section, key).as_deref() {
            None | Some("") => default,
            Some("TLS10") => 10,
            Some("TLS11") => 11,
            Some("TLS12") => 12,
            Some("TLS13") => 13,
            Some(other) => {
                self.at(section, key, &format!("{} is not one of TLS10, TLS11, TLS12, TLS13", quoted(other)));
                default
            }
        }
    }

    fn pem(&mut self, section: &Section<'_>, inline: &'static str, file: &'static str) -> Option<Pem> {
        let (text, path) = (self.text(section, inline), self.text(section, file));
        let set = |key: &'static str, text: Option<String>| {
            let place = section.get(key)?.place;
            text.filter(|text| !text.is_empty()).map(|text| (key, place, text))
        };
        match (set(inline, text), set(file, path)) {
            (Some((_, place, _)), Some(_)) => {
                self.wrong(
                    place,
                    &format!("{}.{inline}", section.name),
                    &format!("is set beside {file}; leave one out"),
                );
                None
            }
            (Some((key, place, text)), None) => Some(Pem { key, place, source: Source::Inline(text) }),
            (None, Some((key, place, path))) => {
                Some(Pem { key, place, source: Source::File(self.directory.join(path)) })
            }
            (None, None) => None,
        }
    }

    fn headers(&mut self, node: &Node) -> HeaderMap {
        let known: Vec<&str> = HEADERS.iter().map(|(name, _)| *name).collect();
        let section = self.section(node, "http_server_config.headers", &known);
        let mut headers = HeaderMap::new();
        for (name, allowed) in HEADERS {
            let Some(value) = self.text(&section, name).filter(|value| !value.is_empty()) else { continue };
            if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
                self.at(&section, name, &format!("{} is not one of {}", quoted(&value), allowed.join(", ")));
                continue;
            }
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                (Ok(name), Ok(value)) => drop(headers.insert(name, value)),
                _ => self.at(&section, name, "has a character that no header has"),
            }
        }
        headers
    }

    fn users(&mut self, node: &Node) -> Vec<(String, String)> {
        let section = self.section(node, "basic_auth_users", &[]);
        if section.items.len() > MAX_USERS {
            self.wrong(node.place, section.name, &format!("has more than {MAX_USERS} users"));
            return Vec::new();
        }
        let mut users = Vec::new();
        for (name, node) in &section.items {
            let hash = node.text().unwrap_or_default();
            let key = format!("{}.{}", section.name, quoted(name));
            match hash.parse::<HashParts>() {
                _ if name.contains(':') => self.wrong(node.place, &key, "a user's name has no colon"),
                Ok(parts) if !(4..=MAX_COST).contains(&parts.get_cost()) => {
                    let what = format!("the hash has cost {}, possible is 4 to {MAX_COST}", parts.get_cost());
                    self.wrong(node.place, &key, &what);
                }
                Ok(_) => users.push(((*name).to_owned(), hash.to_owned())),
                // The hash itself stays out of logs.
                Err(_) => {
                    self.wrong(node.place, &key, "is not a bcrypt hash; htpasswd -nBC 10 \"\" makes one")
                }
            }
        }
        users
    }

    fn rate(&mut self, node: &Node) -> Option<Rate> {
        let section = self.section(node, "rate_limit", &["interval", "burst"]);
        let text = self.text(&section, "interval").unwrap_or_else(|| "0".to_owned());
        let Some(interval) = duration(&text) else {
            self.at(
                &section,
                "interval",
                &format!("{} is not a time, expected one such as 1s", quoted(&text)),
            );
            return None;
        };
        let text = self.text(&section, "burst").unwrap_or_else(|| "0".to_owned());
        let Ok(burst) = text.parse() else {
            self.at(&section, "burst", &format!("{} is not a number of requests", quoted(&text)));
            return None;
        };
        (!interval.is_zero()).then_some(Rate { interval, burst })
    }
}

#[cfg(test)]
mod tests;
