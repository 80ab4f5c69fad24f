use std::{fs, io::Write as _};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::rules::{Meter, RuleLine};

fn meters(rules: &[(&str, &str)]) -> MeterSet {
    let meter = |(name, rule): &(&str, &str)| Meter {
        name: (*name).to_owned(),
        rules: vec![RuleLine::parse(rule).unwrap().condition],
    };
    MeterSet { meters: rules.iter().map(meter).collect(), ..MeterSet::default() }
}

fn web() -> MeterSet {
    meters(&[("web", "proto 6 dst-port 80"), ("rest", "proto 6 dst-port 80 inverted")])
}

#[test]
fn a_rule_that_counts_at_the_other_hook_says_so() {
    let set =
        meters(&[("in", "proto 6"), ("out", "proto 6 direction tx"), ("to", "out-ports !None proto 6")]);
    let going_out = format!("src 10.0.0.1 dst 10.0.0.2 proto 6 out-ports {}", Uuid::from_u128(1));
    let (text, error) = explained(&set, &going_out, None);
    assert_eq!(error, None);
    let why = "rule 1 doesn't match: counts where packets come in, and this one goes out; direction tx would count it";
    assert!(text.contains(&format!("in: not counted\n  {why}\n")), "{text}");
    assert!(text.contains("out: counted\n") && text.contains("to: not counted\n"), "{text}");
    let coming_in = format!("src 10.0.0.1 dst 10.0.0.2 proto 6 in-ports {}", Uuid::from_u128(1));
    let (text, _) = explained(&set, &coming_in, None);
    let why = "rule 1 doesn't match: counts where packets go out, and this one comes in";
    assert!(text.contains(&format!("out: not counted\n  {why}\n")), "{text}");
    assert!(text.contains("in: counted\n") && text.contains("to: counted\n"), "{text}");
    // Of a packet of which nothing tells the hook, a rule may count at either.
    let (text, _) = explained(&set, "src 10.0.0.1 dst 10.0.0.2 proto 6", None);
    assert!(text.contains("in: counted\n") && text.contains("to: counted\n"), "{text}");
}

/// A bridge with one port.
fn devices() -> BTreeMap<PortId, DeviceId> {
    [(PortId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)))].into()
}

/// Explains, and returns what was written and what went wrong.
fn explained(set: &MeterSet, words: &str, capture: Option<&Path>) -> (String, Option<String>) {
    let words: Vec<String> = words.split_whitespace().map(ToOwned::to_owned).collect();
    let mut out = Vec::new();
    let error = run(set, &devices(), &words, capture, &mut out).err().map(|error| error.to_string());
    (String::from_utf8(out).unwrap(), error)
}

/// A TCP frame to this port of which 12 bytes behind the IP header are left.
fn frame(port: u16) -> Vec<u8> {
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40]);
    frame.extend(port.to_be_bytes());
    frame.extend([0; 8]);
    frame
}

fn pcap(linktype: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, linktype] {
        file.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap();
        for word in [1, 2, length, length + 1000] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(frame);
    }
    file
}

fn pcapng(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut block = |kind: u32, body: &[u8]| {
        let length = u32::try_from(body.len() + 12).unwrap().to_be_bytes();
        file.extend(kind.to_be_bytes());
        file.extend(length);
        file.extend(body);
        file.extend(length);
    };
    let words = |words: &[u32]| words.iter().copied().flat_map(u32::to_be_bytes).collect::<Vec<_>>();
    block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX]));
    block(1, &words(&[0x0001_0000, 65535]));
    block(0x0bad, &words(&[7]));
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap();
        let padding = vec![0; frame.len().next_multiple_of(4) - frame.len()];
        block(6, &[words(&[0, 0, 0, length, length + 1000]), frame.clone(), padding].concat());
    }
    file
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn packet_of_words_is_explained() {
    let (text, error) = explained(&web(), "src 10.0.0.1 proto 6 dst-port 443", None);
    assert_eq!(error, None);
    assert_eq!(
        text,
        "\
packet: ethertype 2048 src 10.0.0.1 proto 6 dst-port 443
web: not counted
  rule 1 doesn't match: dst-port 80 doesn't hold, the packet has 443
rest: counted
  rule 1 matches: is inverted, and dst-port 80 doesn't hold, the packet has 443
"
    );
}

#[test]
fn packet_of_a_port_has_come_through_its_device() {
    let set = meters(&[("bridge", "traversed-device 00000000-0000-0000-0000-000000000002 direction rx")]);
    let (text, error) = explained(&set, "in-ports 00000000-0000-0000-0000-000000000001", None);
    assert_eq!(error, None);
    assert!(text.contains("\nbridge: counted\n"), "{text}");
}

#[test]
fn frames_of_both_kinds_of_file_are_explained_and_added_up() {
    let frames = [frame(80), frame(443), frame(80)];
    for bytes in [pcap(1, &frames), pcapng(&frames)] {
        let file = file(&bytes);
        let (text, error) = explained(&web(), "direction rx", Some(file.path()));
        assert_eq!(error, None);
        let begin = "frame 1, 1046 bytes: hw-src 52:54:00:00:00:02 hw-dst 52:54:00:00:00:01 ethertype 2048 \
                     src 10.0.0.1 dst 10.0.0.2 proto 6 tos 0 src-port 40000 dst-port 80 direction rx\nweb: counted\n  rule 1 \
                     matches: every attribute holds: proto 6 dst-port 80 fragment-policy header\nrest: not counted\n";
        assert!(text.starts_with(begin), "{text}");
        let end = "\nof 3 frames:\nweb: 2 packets, 2092 bytes\nrest: 1 packets, 1046 bytes\n";
        assert!(text.ends_with(end), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let bytes = pcap(1, &[frame(80), frame(80)]);
    let truncated = file(&bytes[..bytes.len() - 1]);
    let text = file(b"[[meter]]\nname = 'not a capture, but a text that is longer than a header'\n");
    let empty = file(b"");
    let cooked = file(&pcap(113, &[frame(80)]));
    let huge =
        file(&[pcap(1, &[]), vec![0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 1]].concat());
    let shown = |file: &tempfile::NamedTempFile| file.path().display().to_string();
    for (words, capture, expected) in [
        (
            "",
            None,
            "say which packet: words such as \"src 10.0.0.1 proto 6 dst-port 80\", or --pcap FILE".to_owned(),
        ),
        ("proto tcp", None, "proto: \"tcp\" is not a number, expected 0 to 255".to_owned()),
        ("", Some(Path::new("/nonexistent")), "open /nonexistent".to_owned()),
        (
            "",
            Some(truncated.path()),
            format!("{}: the file ends inside a block behind frame 1", shown(&truncated)),
        ),
        ("", Some(text.path()), format!("{}: is neither a pcap nor a pcapng file", shown(&text))),
        ("", Some(empty.path()), format!("{}: is neither a pcap nor a pcapng file", shown(&empty))),
        (
            "",
            Some(cooked.path()),
            format!("{}: holds frames of link type 113, expected Ethernet (1)", shown(&cooked)),
        ),
        ("", Some(huge.path()), format!("{}: a block that is too long behind frame 0", shown(&huge))),
    ] {
        assert_eq!(explained(&web(), words, capture).1, Some(expected), "{words} {capture:?}");
    }
    assert_eq!(
        explained(&meters(&[]), "proto 6", None).1.as_deref(),
        Some("the configuration has no [[meter]]: no user-defined meter counts anything")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_file_is_read_or_refused(ng in any::<bool>(), at in 0..400_usize, with in any::<u8>(), cut in 0..400_usize) {
        let frames = [frame(80), frame(443)];
        let mut bytes = if ng { pcapng(&frames) } else { pcap(1, &frames) };
        let at = at % bytes.len();
        bytes[at] = with;
        bytes.truncate(bytes.len().saturating_sub(cut % 40));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("capture");
        fs::write(&path, bytes).unwrap();
        // It ends, and says at most as many frames as there are.
        let (text, _) = explained(&web(), "", Some(&path));
        prop_assert!(text.matches("frame ").count() <= 2, "{}", text);
    }
}
