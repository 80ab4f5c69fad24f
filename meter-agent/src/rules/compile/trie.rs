//! One field of all rules as a trie of half bytes.

use std::collections::{BTreeMap, HashMap};

use meter_ebpf::abi::rules::{EVERY_RULE, LEAF, MAX_NODES, MAX_RULES, MAX_VECTORS, RULE_WORDS, RuleVector};

use super::Tables;

/// Some bits of a value, from the upper end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pattern {
    /// No bit is set that the mask hasn't.
    value: u128,
    mask: u128,
}

impl Pattern {
    /// Makes one of a value of so many bits, of which those in the mask count.
    pub(super) const fn new(value: u128, mask: u128, bits: u32) -> Self {
        let shift = 128 - bits;
        Self { value: (value & mask) << shift, mask: mask << shift }
    }

    /// Makes one of a whole value of so many bits.
    pub(super) const fn exact(value: u128, bits: u32) -> Self {
        Self::new(value, u128::MAX >> (128 - bits), bits)
    }

    /// Makes one of the upper bits of a value.
    pub(super) fn prefix(value: u128, length: u8, bits: u32) -> Self {
        let mask = u128::MAX.checked_shl(bits - u32::from(length)).unwrap_or_default();
        Self::new(value, mask & u128::MAX >> (128 - bits), bits)
    }

    /// Makes those of a range of 16-bit numbers.
    pub(super) fn range(start: u16, end: u16) -> Vec<Self> {
        let mut patterns = Vec::new();
        let (mut next, end) = (u32::from(start), u32::from(end));
        while next <= end {
            // The largest block of numbers that begins here and ends in the range.
            let mut size = 1_u32;
            while next.is_multiple_of(size * 2) && next + size * 2 - 1 <= end && size < 1 << 16 {
                size *= 2;
            }
            patterns.push(Self::new(next.into(), (0xffff & !(size - 1)).into(), 16));
            next += size;
        }
        patterns
    }
}

#[cfg(test)]
impl Pattern {
    /// Returns whether a whole value has the bits.
    pub(super) const fn has(&self, exact: &Self) -> bool {
        exact.value & self.mask == self.value
    }
}

/// What rules ask of a field, by what they ask: who asks the same is asked once.
#[derive(Debug, Default)]
pub(super) struct Tests(BTreeMap<Question, Vec<Asker>>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    /// One of them.
    patterns: Vec<Pattern>,
    /// The answer for a packet without the field.
    absent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asker {
    rule: usize,
    inverted: bool,
}

impl Tests {
    /// Lets a rule ask whether the field is one of these, or none if it is inverted. `absent` is what a packet without
    /// the field answers before that.
    pub(super) fn ask(&mut self, rule: usize, inverted: bool, absent: bool, mut patterns: Vec<Pattern>) {
        patterns.sort_unstable();
        patterns.dedup();
        self.0.entry(Question { patterns, absent }).or_default().push(Asker { rule, inverted });
    }

    /// Returns whether no rule asks.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the rules that are satisfied, given the answer to each question by its number.
    fn satisfied(&self, answer: impl Fn(usize, &Question) -> bool) -> RuleVector {
        let mut vector = [u64::MAX; RULE_WORDS];
        for (number, (question, askers)) in self.0.iter().enumerate() {
            let answer = answer(number, question);
            askers
                .iter()
                .filter(|asker| asker.inverted == answer)
                .for_each(|asker| clear(&mut vector, asker.rule));
        }
        vector
    }
}

/// Sets the bit of a rule.
pub(super) const fn set(vector: &mut RuleVector, rule: usize) {
    vector[rule / 64] |= 1 << (rule % 64);
}

const fn clear(vector: &mut RuleVector, rule: usize) {
    vector[rule / 64] &= !(1 << (rule % 64));
}

/// The tables have no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Writes tries and vectors into tables. Equal ones are there once.
pub(super) struct Writer {
    pub(super) tables: Tables,
    vectors: HashMap<RuleVector, u16>,
    nodes: HashMap<[u16; 16], u16>,
}

impl Writer {
    pub(super) fn new(tables: Tables) -> Self {
        let mut writer = Self { tables, vectors: HashMap::new(), nodes: HashMap::new() };
        writer.tables[0].vectors[usize::from(EVERY_RULE)] = [u64::MAX; RULE_WORDS];
        writer.vectors.insert([u64::MAX; RULE_WORDS], EVERY_RULE);
        writer
    }

    /// Returns the index of a vector.
    pub(super) fn vector(&mut self, vector: RuleVector) -> Result<u16, Full> {
        if let Some(index) = self.vectors.get(&vector) {
            return Ok(*index);
        }
        let index = self.vectors.len();
        if index >= MAX_VECTORS {
            return Err(Full);
        }
        self.tables[0].vectors[index] = vector;
        let index = u16::try_from(index).map_err(|_| Full)?;
        self.vectors.insert(vector, index);
        Ok(index)
    }

    /// Returns the index of the vector of a packet without the field.
    pub(super) fn absent(&mut self, tests: &Tests) -> Result<u16, Full> {
        self.vector(tests.satisfied(|_, question| question.absent)).map(|vector| vector | LEAF)
    }

    /// Returns where the trie of a field begins.
    pub(super) fn trie(&mut self, tests: &Tests) -> Result<u16, Full> {
        let questions = tests.0.keys().enumerate();
        let patterns = questions.flat_map(|(number, question)| {
            question.patterns.iter().map(move |pattern| (pattern.value, pattern.mask, number))
        });
        let alive: Vec<Alive> = patterns.collect();
        Build { writer: self, tests, known: HashMap::new(), kept: 0 }.place(alive)
    }

    fn node(&mut self, node: [u16; 16]) -> Result<u16, Full> {
        // Only a leaf doesn't take a step.
        if node[0] & LEAF != 0 && node.iter().all(|place| *place == node[0]) {
            return Ok(node[0]);
        }
        if let Some(index) = self.nodes.get(&node) {
            return Ok(*index);
        }
        let index = self.nodes.len();
        if index >= MAX_NODES {
            return Err(Full);
        }
        self.tables[0].nodes[index] = node;
        let index = u16::try_from(index).map_err(|_| Full)?;
        self.nodes.insert(node, index);
        Ok(index)
    }
}

/// Patterns that are kept while a trie is built, of 48 bytes each. A field of as many rules as there may be, each with an
/// address, takes a thirtieth.
const MAX_KEPT: usize = 1 << 20;

/// What is left of a pattern that agrees so far (value and mask), and the number of its question.
type Alive = (u128, u128, usize);

struct Build<'b> {
    writer: &'b mut Writer,
    tests: &'b Tests,
    /// Where equal rests of patterns lead.
    known: HashMap<Vec<Alive>, u16>,
    /// Patterns in all of them.
    kept: usize,
}

impl Build<'_> {
    /// Returns the place for what is left of the patterns.
    fn place(&mut self, mut alive: Vec<Alive>) -> Result<u16, Full> {
        // A question that is answered needs no other pattern of its own.
        let mut answered: Vec<usize> =
            alive.iter().filter(|(_, mask, _)| *mask == 0).map(|(_, _, question)| *question).collect();
        answered.sort_unstable();
        answered.dedup();
        alive.retain(|(_, mask, question)| *mask == 0 || answered.binary_search(question).is_err());
        alive.sort_unstable();
        alive.dedup();
        if let Some(place) = self.known.get(&alive) {
            return Ok(*place);
        }
        let place = if alive.iter().all(|(_, mask, _)| *mask == 0) {
            let vector = self.tests.satisfied(|number, _| answered.binary_search(&number).is_ok());
            self.writer.vector(vector)? | LEAF
        } else {
            let mut node = [0; 16];
            for (half, place) in (0_u128..).zip(&mut node) {
                let agrees = |(value, mask, _): &&Alive| (value >> 124 ^ half) & (mask >> 124) == 0;
                let rest = |(value, mask, question): &Alive| (value << 4, mask << 4, *question);
                *place = self.place(alive.iter().filter(agrees).map(rest).collect())?;
            }
            self.writer.node(node)?
        };
        self.kept += alive.len();
        if self.kept > MAX_KEPT {
            return Err(Full);
        }
        self.known.insert(alive, place);
        Ok(place)
    }
}

const _: () = assert!(MAX_RULES <= RULE_WORDS * 64);
