use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::meter::{DeviceId, PortId};

mod extraction;
mod semantics;
pub(crate) mod strategies;
mod syntax;
mod worked;

fn line(text: &str) -> Condition {
    RuleLine::parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}")).condition
}

fn packet(words: &str) -> Packet {
    let mut packet = Packet::default();
    packet.set_words(words.split_whitespace()).unwrap_or_else(|error| panic!("{words}: {error}"));
    packet
}

/// Returns whether a rule line matches a packet, both in words, without groups.
fn hits(rule: &str, fields: &str) -> bool {
    matches(&line(rule), &packet(fields), &Groups::default())
}
