//! Which namespaces are followed, of those that have names.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use meter_ebpf::abi::NAMESPACES;

use crate::netdev::Glob;

/// Namespaces that are followed at a time.
const MOST: usize = NAMESPACES as usize / 2 - 1;

/// Device and inode of a namespace.
type Number = (u64, u64);

/// Which names are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those that match one of these …
    pub include: Vec<Glob>,
    /// … and none of these.
    pub exclude: Vec<Glob>,
}

impl Selection {
    /// Returns whether any namespace is meant.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.include.is_empty()
    }

    /// Returns whether the name is meant.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let matches = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(name));
        matches(&self.include) && !matches(&self.exclude)
    }
}

/// What is to be done after a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// No longer followed.
    pub(super) gone: Vec<Number>,
    /// To be followed from now on, or under this name.
    pub(super) here: Vec<(Number, String)>,
    /// Not followed, though meant, and why.
    pub(super) refused: BTreeMap<String, String>,
}

/// Compares the names that are meant with what is followed. Of several names of a namespace it keeps the one that it had,
/// or takes the first in order. Where a name leads that could not be looked at (`unseen`) is not known: a namespace that had
/// it has it still.
pub(super) fn choose(
    names: &BTreeMap<String, Number>,
    unseen: &BTreeSet<String>,
    known: &BTreeMap<Number, String>,
    own: Number,
) -> Choice {
    let mut present: BTreeSet<Number> = names.values().copied().collect();
    present.extend(known.iter().filter(|(_, name)| unseen.contains(*name)).map(|(number, _)| *number));
    let mut choice = Choice {
        gone: known.keys().filter(|number| !present.contains(number)).copied().collect(),
        ..Choice::default()
    };
    let mut followed: BTreeSet<Number> =
        known.keys().filter(|number| present.contains(number)).copied().collect();
    let mut named = BTreeSet::new();
    for (name, &number) in names.iter().filter(|(_, number)| **number != own) {
        let keeps = known.get(&number);
        let keeps = keeps.is_some_and(|known| names.get(known) == Some(&number) || unseen.contains(known));
        if keeps || !named.insert(number) {
            continue;
        }
        if !followed.contains(&number) && followed.len() >= MOST {
            let why = format!("{MOST} namespaces are followed, and no more can be; include fewer");
            choice.refused.insert(name.clone(), why);
            continue;
        }
        followed.insert(number);
        choice.here.push((number, name.clone()));
    }
    choice
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// Where every name could be looked at.
    fn choose(names: &BTreeMap<String, Number>, known: &BTreeMap<Number, String>, own: Number) -> Choice {
        super::choose(names, &BTreeSet::new(), known, own)
    }

    fn names(names: &[(&str, u64)]) -> BTreeMap<String, Number> {
        names.iter().map(|&(name, inode)| (name.to_owned(), (4, inode))).collect()
    }

    fn known(known: &[(u64, &str)]) -> BTreeMap<Number, String> {
        known.iter().map(|&(inode, name)| ((4, inode), name.to_owned())).collect()
    }

    const OWN: Number = (4, 1);

    #[test]
    fn names_are_meant_by_include_without_exclude() {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(text)).collect();
        let selection =
            Selection { include: globs(&["qrouter-*", "qdhcp-*"]), exclude: globs(&["*-test", "qdhcp-7?"]) };
        let meant: Vec<&str> = ["qrouter-1", "qdhcp-1", "qdhcp-71", "qrouter-test", "snat-1", ""]
            .into_iter()
            .filter(|name| selection.has(name))
            .collect();
        assert_eq!(meant, ["qrouter-1", "qdhcp-1"]);
        assert!(selection.is_on() && !Selection::default().is_on() && !Selection::default().has("a"));
    }

    #[test]
    fn namespace_is_followed_once_and_the_own_never() {
        let choice = choose(&names(&[("a", 2), ("b", 2), ("c", 3), ("host", 1)]), &known(&[]), OWN);
        let here = vec![((4, 2), "a".to_owned()), ((4, 3), "c".to_owned())];
        assert_eq!(choice, Choice { here, ..Choice::default() });
    }

    #[test]
    fn name_is_kept_for_as_long_as_it_leads_there() {
        let is = known(&[(2, "b"), (3, "c")]);
        assert_eq!(choose(&names(&[("a", 2), ("b", 2), ("c", 3)]), &is, OWN), Choice::default());
        let renamed = choose(&names(&[("a", 2), ("c", 3)]), &is, OWN);
        assert_eq!(renamed, Choice { here: vec![((4, 2), "a".to_owned())], ..Choice::default() });
    }

    #[test]
    fn name_that_leads_elsewhere_is_another_namespace() {
        let choice = choose(&names(&[("b", 9)]), &known(&[(2, "b")]), OWN);
        let expected =
            Choice { gone: vec![(4, 2)], here: vec![((4, 9), "b".to_owned())], ..Choice::default() };
        assert_eq!(choice, expected);
    }

    #[test]
    fn name_that_could_not_be_looked_at_leads_where_it_did() {
        let (is, unseen) = (known(&[(2, "b"), (3, "c")]), BTreeSet::from(["b".to_owned()]));
        let choice = super::choose(&names(&[("a", 2), ("c", 3)]), &unseen, &is, OWN);
        assert_eq!(choice, Choice::default(), "neither gone nor renamed");
        let choice = super::choose(&names(&[]), &unseen, &is, OWN);
        assert_eq!(choice, Choice { gone: vec![(4, 3)], ..Choice::default() });
    }

    #[test]
    fn more_than_can_be_followed_are_refused_by_name() {
        let all = (0..=u64::try_from(MOST).unwrap()).map(|n| (format!("ns{n:05}"), (4, n + 2))).collect();
        let choice = choose(&all, &known(&[]), OWN);
        assert_eq!(choice.here.len(), 1_023);
        assert_eq!(choice.refused.keys().collect::<Vec<_>>(), ["ns01023"]);
        assert!(choice.refused["ns01023"].starts_with("1023 namespaces are followed"));
    }

    proptest! {
        /// Whatever the names are: what is followed afterwards is what they lead to, each by a name that leads there, and a
        /// second look changes nothing.
        #[test]
        fn choice_leads_to_what_is_there(
            seen in proptest::collection::btree_map("[a-d]", 1_u64..6, 0..5),
            before in proptest::collection::btree_map(2_u64..8, "[a-d]", 0..5),
        ) {
            let names: BTreeMap<String, Number> = seen.into_iter().map(|(name, n)| (name, (4, n))).collect();
            let mut is: BTreeMap<Number, String> = before.into_iter().map(|(n, name)| ((4, n), name)).collect();
            let choice = choose(&names, &is, OWN);
            for number in &choice.gone {
                is.remove(number);
            }
            is.extend(choice.here);
            let wanted: BTreeSet<Number> = names.values().copied().filter(|number| *number != OWN).collect();
            prop_assert_eq!(is.keys().copied().collect::<BTreeSet<_>>(), wanted);
            prop_assert!(is.iter().all(|(number, name)| names.get(name) == Some(number)), "{:?}", is);
            prop_assert_eq!(choose(&names, &is, OWN), Choice::default());
        }
    }
}
