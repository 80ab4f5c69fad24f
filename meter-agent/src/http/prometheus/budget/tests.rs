use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::{btree_map, vec},
    prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest},
};

use super::{Entry, Group};

/// What there is at one time: by identity, an age and two totals.
type Scene = BTreeMap<u8, (u64, [u64; 2])>;

/// Things that come, grow, go and come back.
fn scenes() -> impl Strategy<Value = Vec<Scene>> {
    let growth = btree_map(0..12_u8, (0..1000_u64, 0..1000_u64), 0..12);
    vec(growth, 1..12).prop_map(|steps| {
        let mut totals: BTreeMap<u8, (u64, [u64; 2])> = BTreeMap::new();
        let mut scenes = Vec::new();
        for (now, step) in (1..).zip(steps) {
            for (&id, &(packets, bytes)) in &step {
                let (_, values) = totals.entry(id).or_insert((now, [0, 0]));
                *values = [values[0] + packets, values[1] + bytes];
            }
            scenes.push(step.keys().map(|id| (*id, totals[id])).collect());
        }
        scenes
    })
}

fn entries(scene: &Scene) -> Vec<Entry<u8, 2>> {
    scene
        .iter()
        .map(|(&id, &(created_ns, values))| Entry { id, created_ns, values, is_other: false })
        .collect()
}

fn sum<'a>(values: impl Iterator<Item = &'a [u64; 2]>) -> [u64; 2] {
    values.fold([0, 0], |sum, [packets, bytes]| [sum[0] + packets, sum[1] + bytes])
}

proptest! {
    #[test]
    fn sums_are_exact_names_are_kept_and_other_never_goes_back(scenes in scenes(), most in 0..8_usize) {
        let mut group = Group::default();
        let mut seen: Scene = BTreeMap::new();
        let mut named: BTreeSet<u8> = BTreeSet::new();
        let mut last = [0, 0];
        for scene in scenes {
            let pool = group.admit(most, entries(&scene).into_iter());
            for (&id, &entry) in &scene {
                if seen.insert(id, entry).is_some() {
                    prop_assert_eq!(pool.is_named(&id), named.contains(&id), "{} changed sides", id);
                } else if pool.is_named(&id) {
                    named.insert(id);
                }
            }
            prop_assert!(named.len() <= most);
            prop_assert!(named.len() == most.min(seen.len()), "a name is free");
            prop_assert_eq!(pool.len(), scene.keys().filter(|id| !named.contains(id)).count());
            let pooled = seen.iter().filter(|(id, _)| !named.contains(id)).map(|(_, (_, values))| values);
            let other = pool.other().map_or([0, 0], |other| other.values);
            prop_assert_eq!(other, sum(pooled));
            prop_assert!(other[0] >= last[0] && other[1] >= last[1]);
            last = other;
        }
    }

    #[test]
    fn choice_depends_on_age_and_not_on_order(scenes in scenes(), most in 0..8_usize, turn in any::<usize>()) {
        let (mut straight, mut turned) = (Group::default(), Group::default());
        for scene in &scenes {
            straight.admit(most, entries(scene).into_iter());
            let mut entries = entries(scene);
            let length = entries.len().max(1);
            entries.rotate_left(turn % length);
            turned.admit(most, entries.into_iter());
        }
        prop_assert_eq!(&straight.named, &turned.named);
        prop_assert_eq!(&straight.pooled, &turned.pooled);
    }

    #[test]
    fn agent_that_starts_again_chooses_as_before(scenes in scenes(), most in 0..8_usize) {
        // Nothing goes: what came later is younger.
        let mut group = Group::default();
        let mut all: Scene = BTreeMap::new();
        for scene in &scenes {
            all.extend(scene.iter().map(|(&id, &entry)| (id, entry)));
            group.admit(most, entries(&all).into_iter());
        }
        let mut next = Group::default();
        next.admit(most, entries(&all).into_iter());
        prop_assert_eq!(&group.named, &next.named);
        prop_assert_eq!(&group.pooled, &next.pooled);
        prop_assert_eq!(group.created_ns, next.created_ns);
    }

    #[test]
    fn older_snapshot_that_is_shown_later_takes_nothing_away(scenes in scenes(), most in 0..8_usize) {
        let mut group = Group::default();
        let mut last = [0, 0];
        for scene in scenes.iter().chain(scenes.iter().rev()) {
            let pool = group.admit(most, entries(scene).into_iter());
            let other = pool.other().map_or([0, 0], |other| other.values);
            prop_assert!(other[0] >= last[0] && other[1] >= last[1]);
            last = other;
        }
    }
}
