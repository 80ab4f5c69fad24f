//! Totals as a file has them, to outlive a reboot: written down, and read again only if every byte is right.
//!
//! The first line says what it is, how long the rest is and its checksum; the rest is JSON.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What the first line begins with: the last word is the version of the format.
const MAGIC: &str = "meter-agent-totals 1";

/// Every total of one host at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// In which boot of the host it was written (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Whether nothing that counted was pinned: it has ended with the agent, and not with the boot.
    #[serde(default, skip_serializing_if = "is_not")]
    pub unpinned: bool,
    /// Ports, uplinks and tunnel netdevs.
    pub ports: Vec<SavedPort>,
    /// What came into devices through their ports.
    pub members: Vec<SavedMember>,
    /// Tunnels at the hooks of uplinks.
    pub tunnels: Vec<SavedTunnel>,
    /// Buckets that are not empty: uplink * 2 + direction, and packets and bytes by reason.
    pub buckets: Vec<(u32, Vec<[u64; 2]>)>,
    /// Packets and bytes by fault.
    pub faults: Vec<[u64; 2]>,
    /// Frames that nobody claimed, as the hooks of a port.
    pub unbound: [[u64; 4]; 2],
    /// User-defined meters, those that don't count any more included.
    pub meters: Vec<SavedMeter>,
}

/// A port's record with its whole total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPort {
    /// Its UUID.
    pub port: Uuid,
    /// Its class, as the record has it.
    pub class: u32,
    /// The index of its buckets and tunnels, 0 for none.
    pub uplink: u32,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// The device that it belongs to; nil for none.
    pub device: Uuid,
    /// Ingress and egress: packets and bytes in skb units, and what the wire has beyond them.
    pub hooks: [[u64; 4]; 2],
}

/// A port's time in a device: packets and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMember {
    /// The port.
    pub port: Uuid,
    /// The device.
    pub device: Uuid,
    /// What came in until `base`.
    pub accrued: [u64; 2],
    /// The port's ingress then.
    pub base: [u64; 2],
}

/// A tunnel at one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTunnel {
    /// Source, destination and labels, as the key has them.
    pub key: [u64; 5],
    /// Frames, bytes of those inside, bytes of the outer ones.
    pub counts: [u64; 3],
}

/// A user-defined meter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMeter {
    /// Its name.
    pub name: String,
    /// When counting began: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Packets and bytes.
    pub counts: [u64; 2],
}

/// A file does not hold what was written to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenTotals(String);

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_not(what: &bool) -> bool {
    !*what
}

impl Totals {
    /// Writes it down.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).expect("numbers, texts and lists of them are JSON");
        let mut text = format!("{MAGIC} {} {:08x}\n", body.len(), checksum(&body)).into_bytes();
        text.extend(body);
        text
    }

    /// Reads what [`Totals::encode`] wrote.
    ///
    /// # Errors
    ///
    /// What is wrong with it. Nothing of a file that is wrong in one place is used.
    pub fn decode(text: &[u8]) -> Result<Self, BrokenTotals> {
        let broken = |what: &str| BrokenTotals(what.to_owned());
        let end =
            text.iter().position(|byte| *byte == b'\n').ok_or_else(|| broken("it has no first line"))?;
        let (head, body) = (&text[..end], &text[end + 1..]);
        let words = str::from_utf8(head).ok().and_then(|head| head.strip_prefix(MAGIC)?.strip_prefix(' '));
        let (length, sum) = words
            .and_then(|words| words.split_once(' '))
            .ok_or_else(|| BrokenTotals(format!("its first line is not \"{MAGIC} <length> <checksum>\"")))?;
        if length.parse() != Ok(body.len()) {
            return Err(BrokenTotals(format!("{} bytes follow its first line, not {length}", body.len())));
        }
        if u32::from_str_radix(sum, 16) != Ok(checksum(body)) {
            return Err(broken("its checksum is wrong"));
        }
        serde_json::from_slice(body).map_err(|error| BrokenTotals(error.to_string()))
    }
}

fn checksum(body: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(body);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_compose, proptest};

    use super::{SavedMember, SavedMeter, SavedPort, SavedTunnel, Totals, Uuid};

    prop_compose! {
        fn states()(
            numbers in any::<[u64; 5]>(),
            counts in any::<[[u64; 4]; 2]>(),
            ids in any::<[u128; 2]>(),
            small in any::<[u32; 2]>(),
            reasons in any::<Vec<[u64; 2]>>(),
            boot_id in ".{0,40}",
            unpinned in any::<bool>(),
        ) -> Totals {
            let [port, device] = ids.map(Uuid::from_u128);
            let [class, uplink] = small;
            let pair = [numbers[0], numbers[1]];
            Totals {
                boot_id,
                unpinned,
                ports: vec![SavedPort { port, class, uplink, created_ns: numbers[0], device, hooks: counts }],
                members: vec![SavedMember { port, device, accrued: pair, base: [numbers[2], numbers[3]] }],
                tunnels: vec![SavedTunnel { key: numbers, counts: [numbers[4], numbers[3], numbers[2]] }],
                unbound: counts,
                meters: vec![SavedMeter { name: format!("{numbers:?} \"é\""), created_ns: numbers[1], counts: pair }],
                buckets: vec![(uplink, reasons.clone())],
                faults: reasons,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(state in states()) {
            prop_assert_eq!(Totals::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn no_part_of_it_and_nothing_that_was_changed_is_read(state in states(), at in any::<usize>(), bit in 0..8_u32) {
            let text = state.encode();
            let at = at % text.len();
            prop_assert!(Totals::decode(&text[..at]).is_err());
            let mut changed = text;
            changed[at] ^= 1 << bit;
            // The digits of the checksum may be of either case.
            if !changed[at].is_ascii_uppercase() {
                prop_assert!(Totals::decode(&changed).is_err());
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("", "it has no first line"),
            ("[]\n", "its first line is not \"meter-agent-totals 1 <length> <checksum>\""),
            (
                "meter-agent-totals 2 2 0\n{}",
                "its first line is not \"meter-agent-totals 1 <length> <checksum>\"",
            ),
            ("meter-agent-totals 1 3 0\n{}", "2 bytes follow its first line, not 3"),
            ("meter-agent-totals 1 2 0\n{}", "its checksum is wrong"),
        ] {
            assert_eq!(Totals::decode(text.as_bytes()).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
