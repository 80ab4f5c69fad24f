//! The Skydive-Prometheus connector's configuration (`prom_sky_con.yml`), said as this agent's.
//!
//! Pure. What the connector was told of Skydive's pipeline has nothing here that it could mean, and is named.

use std::fmt::Write as _;

use crate::{
    connections::Tag,
    rules,
    yaml::{self, Node, Value},
};

/// What the connector took where it was told 0, in seconds.
const DEFAULT_TIMEOUT: u64 = 60;
/// The most that [`crate::config`] takes; the connector took more.
const LONGEST_TIMEOUT: u64 = 24 * 3600;

/// Keys that have lists.
const NETWORKS: &str = "pipeline.classify.cluster_net_masks";
const EXCLUDED: &str = "pipeline.filter.excluded_tags";

/// A configuration of the connector, as this agent has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Converted {
    /// The keys of `[connections]` and `[compat]`.
    pub toml: String,
    /// The keys that mean nothing here, with their places.
    pub ignored: Vec<String>,
}

/// Reads a configuration of the connector.
///
/// # Errors
///
/// Everything that is wrong with the keys that apply.
pub fn convert(text: &str) -> Result<Converted, Vec<String>> {
    let root = yaml::parse(text)
        .map_err(|mistake| vec![format!("{}: not YAML: {}", at(mistake.place), mistake.message)])?;
    let mut reader = Reader::default();
    reader.walk("", &root);
    if !reader.wrong.is_empty() {
        return Err(reader.wrong);
    }
    let Reader { timeout, networks, classes, port, ignored, .. } = reader;
    let mut toml = "[connections]\n".to_owned();
    let mut add = |line: std::fmt::Arguments<'_>| {
        // Writing to a `String` can't fail.
        writeln!(toml, "{line}").unwrap_or_default();
    };
    add(format_args!("# Name the netdevs that were captured: netdevs = [\"tap*\"], ports or roles."));
    if let Some(timeout) = timeout {
        add(format_args!("timeout = \"{timeout}s\""));
    }
    if !networks.is_empty() {
        add(format_args!("internal_networks = {networks:?}"));
    }
    if !classes.is_empty() {
        add(format_args!("exclude_classes = {classes:?}"));
    }
    if let Some(port) = port {
        add(format_args!("\n[compat]\nskydive_listen = [\"[::]:{port}\"]"));
    }
    Ok(Converted { toml, ignored })
}

#[derive(Debug, Default)]
struct Reader {
    timeout: Option<u64>,
    networks: Vec<String>,
    classes: Vec<&'static str>,
    port: Option<u16>,
    ignored: Vec<String>,
    wrong: Vec<String>,
}

impl Reader {
    /// Takes the keys of a map, each by its full name.
    fn walk(&mut self, prefix: &str, node: &Node) {
        let Value::Map(pairs) = &node.value else {
            if !prefix.is_empty() {
                self.take(prefix, node);
            } else if node.value != Value::Nothing {
                self.wrong.push(format!("{}: expected a map, found {}", at(node.place), node.kind()));
            }
            return;
        };
        if matches!(prefix, NETWORKS | EXCLUDED) {
            self.take(prefix, node);
            return;
        }
        for (key, value) in pairs {
            let key = key.text().unwrap_or_default();
            let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            self.walk(&name, value);
        }
    }

    fn take(&mut self, name: &str, node: &Node) {
        match name {
            NETWORKS => self.each(name, node, |this, text, place| match rules::prefix(text) {
                Ok(_) if text.contains('/') => this.networks.push(text.to_owned()),
                _ => this.wrong.push(format!("{place}: {name}: cannot parse netmask {text:?}")),
            }),
            EXCLUDED => self.each(name, node, |this, text, place| {
                match Tag::ALL.into_iter().find(|tag| tag.name() == text) {
                    Some(tag) => this.classes.push(tag.name()),
                    None => this.ignored.push(format!("{place}: {name}: {text:?}, which no connection is")),
                }
            }),
            "pipeline.store.prom_sky_con.port" => match node.text().map(str::parse) {
                Some(Ok(port)) if port != 0 => self.port = Some(port),
                _ => self.wrong.push(format!("{}: {name}: expected a port number", at(node.place))),
            },
            "pipeline.store.prom_sky_con.connection_timeout" => match node.text().map(str::parse) {
                Some(Ok(0)) => self.timeout = Some(DEFAULT_TIMEOUT),
                Some(Ok(seconds)) if seconds <= LONGEST_TIMEOUT => self.timeout = Some(seconds),
                _ => self.wrong.push(format!(
                    "{}: {name}: expected a number of seconds up to {LONGEST_TIMEOUT}",
                    at(node.place)
                )),
            },
            _ => self.ignored.push(format!("{}: {name}", at(node.place))),
        }
    }

    fn each(&mut self, name: &str, node: &Node, mut take: impl FnMut(&mut Self, &str, String)) {
        let items = match &node.value {
            Value::List(items) => items.as_slice(),
            Value::Nothing => &[],
            _ => {
                self.wrong.push(format!(
                    "{}: {name}: expected a list, found {}",
                    at(node.place),
                    node.kind()
                ));
                return;
            }
        };
        for item in items {
            match item.text() {
                Some(text) => take(self, text, at(item.place)),
                None => self.wrong.push(format!(
                    "{}: {name}: expected a text, found {}",
                    at(item.place),
                    item.kind()
                )),
            }
        }
    }
}

fn at(place: yaml::Place) -> String {
    format!("{}:{}", place.line, place.column)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy as _, any, prop_assert, proptest};

    use super::{Converted, convert};
    use crate::config::{Config, Flags, HostFacts};

    const FILE: &str = "\
host_id: \"\"
analyzers:
  - 127.0.0.1:8082
pipeline:
  subscriber:
    url: ws://127.0.0.1:8082/ws/subscriber/flow
  classify:
    cluster_net_masks:
      - 10.0.0.0/8
      - 2001:db8::/32
  filter:
    excluded_tags: [internal, nonsense]
  store:
    type: prom_sky_con
    prom_sky_con:
      port: 9100
      connection_timeout: 0
";

    #[test]
    fn keys_that_apply_are_taken_and_the_others_named() {
        let Converted { toml, ignored } = convert(FILE).unwrap();
        assert_eq!(
            toml,
            "[connections]\n# Name the netdevs that were captured: netdevs = [\"tap*\"], ports or roles.\ntimeout = \"60s\"\n\
             internal_networks = [\"10.0.0.0/8\", \"2001:db8::/32\"]\nexclude_classes = [\"internal\"]\n\n\
             [compat]\nskydive_listen = [\"[::]:9100\"]\n"
        );
        assert_eq!(
            ignored,
            [
                "1:10: host_id",
                "3:3: analyzers",
                "6:10: pipeline.subscriber.url",
                "12:31: pipeline.filter.excluded_tags: \"nonsense\", which no connection is",
                "14:11: pipeline.store.type"
            ]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_places() {
        let wrong = "pipeline:\n  classify: {cluster_net_masks: [10.0.0.0/33, 10.0.0.1]}\n  filter: {excluded_tags: x}\n  store: {prom_sky_con: {port: 0, connection_timeout: -1}}\n";
        let mistakes = convert(wrong).unwrap_err();
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
        assert!(mistakes[0].contains("cannot parse netmask \"10.0.0.0/33\""), "{mistakes:?}");
        let map = convert("pipeline: {classify: {cluster_net_masks: {a: b}}}").unwrap_err();
        assert_eq!(map, ["1:42: pipeline.classify.cluster_net_masks: expected a list, found a map"]);
        assert_eq!(convert("- 1").unwrap_err().len(), 1);
        assert_eq!(convert("").unwrap().ignored, [""; 0]);
    }

    proptest! {
        #[test]
        fn what_comes_out_is_a_configuration(
            networks in proptest::collection::vec(any::<(std::net::Ipv4Addr, u8)>(), 0..4),
            tags in proptest::sample::subsequence(vec!["internal", "ingress", "egress", "other"], 0..4),
            // The ports that are listened on by default can't be given twice.
            port in (1..=u16::MAX).prop_filter("free", |port| ![7_200, 7_300].contains(port)),
            timeout in 0..=86_400_u32,
        ) {
            let masks: Vec<_> = networks.iter().map(|(address, length)| format!("{address}/{}", length % 33)).collect();
            let text = format!(
                "pipeline: {{classify: {{cluster_net_masks: {masks:?}}}, filter: {{excluded_tags: {tags:?}}}, \
                 store: {{prom_sky_con: {{port: {port}, connection_timeout: {timeout}}}}}}}"
            );
            let toml = convert(&text).unwrap().toml;
            let host = HostFacts { machine_id: None, host_name: "h".to_owned() };
            let config = Config::parse(&toml, "x", &Flags::default(), &host);
            prop_assert!(config.is_ok(), "{toml} {config:?}");
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            drop(convert(&text));
        }
    }
}
