//! Who may be connected, and who gives way when all places are taken.
//!
//! A newcomer is let in wherever that costs only a connection that waits for its client. It is one of the newcomer's
//! own peer where that peer has all that it may have; else one of the peer that has the most, if that is more than
//! the newcomer's: so no peer can keep another out, however many connections it opens. Among those an idle one goes
//! first, then the one whose client has been silent the longest, which are the clients that neither send nor read. Where
//! none has been silent for a moment it is the longest without a request, then the latest of those that are served: so
//! a flood of connections does not undo what was begun.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Limits,
    counts::{Counts, Cut, Refused, Stats},
    stream::Peer,
    watch::{Held, Phase, Waits, Watch},
};

/// How long a client may be silent without being taken for one that neither sends nor reads.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an answer waits for memory while others wait for their turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried again to get memory for an answer.
const RETRY: Duration = Duration::from_millis(50);

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    max_of_peer: usize,
    max_unsent: usize,
    taken: Mutex<Vec<Arc<Watch>>>,
    pub(super) counts: Counts,
}

/// Ends the connection among some that comes first in an order; those that have no place in it stay.
fn displace<K: Ord>(
    taken: &mut Vec<Arc<Watch>>,
    among: impl Fn(&Watch) -> bool,
    order: impl Fn(&Waits) -> Option<K>,
) -> Option<()> {
    let some = taken.iter().enumerate().filter(|(_, watch)| among(watch));
    let (_, index) = some.filter_map(|(index, watch)| Some((order(&watch.waits())?, index))).min()?;
    taken.remove(index).cut(Cut::Displaced);
    Some(())
}

/// Returns the order in which connections are spared that wait for their clients.
fn spared_first(waits: &Waits) -> Option<(u8, u128)> {
    let silent = waits.moved.elapsed();
    let most_silent = u128::MAX - silent.as_nanos();
    Some(match waits.phase {
        Phase::Waiting | Phase::Answering => return None,
        Phase::Idle | Phase::Leaving => (0, most_silent),
        _ if silent >= PAUSE => (1, most_silent),
        Phase::Head => (2, most_silent),
        // Of those that are served well the one that came last: others that come can't undo what was begun.
        Phase::Body | Phase::Sending { .. } => (3, waits.since.elapsed().as_nanos()),
    })
}

/// Returns the order in which requests are given up for which nothing has been done yet: the last one first.
fn begun_last(waits: &Waits) -> Option<Duration> {
    (waits.phase == Phase::Waiting).then(|| waits.since.elapsed())
}

/// A place, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    pub(super) watch: Arc<Watch>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().retain(|watch| !Arc::ptr_eq(watch, &self.watch));
    }
}

impl Places {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max: limits.max_connections.max(1),
            max_of_peer: limits.max_connections_of_peer.max(1),
            max_unsent: limits.max_unsent,
            taken: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Lets a connection in, at the cost of another one if it must be.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Result<Place, Refused> {
        let mut taken = self.taken();
        let result = self.make_room(&mut taken, peer);
        if let Err(reason) = result {
            self.counts.refused(reason);
            return Err(reason);
        }
        let watch = Arc::new(Watch::new(peer));
        taken.push(Arc::clone(&watch));
        self.counts.accepted();
        Ok(Place { places: Arc::clone(self), watch })
    }

    fn make_room(&self, taken: &mut Vec<Arc<Watch>>, peer: Peer) -> Result<(), Refused> {
        let mut counts: HashMap<Peer, usize> = HashMap::new();
        for watch in taken.iter() {
            *counts.entry(watch.peer()).or_default() += 1;
        }
        let own = counts.get(&peer).copied().unwrap_or_default();
        if own >= self.max_of_peer {
            return displace(taken, |watch| watch.peer() == peer, spared_first).ok_or(Refused::Peer);
        }
        if taken.len() < self.max {
            return Ok(());
        }
        let most = counts.values().copied().max().unwrap_or_default();
        if own == most {
            return displace(taken, |watch| watch.peer() == peer, spared_first).ok_or(Refused::Full);
        }
        let among = |watch: &Watch| counts.get(&watch.peer()) == Some(&most);
        displace(taken, among, spared_first)
            // Or several peers together, each with requests that wait in a queue, could keep all others out.
            .or_else(|| displace(taken, among, begun_last))
            .ok_or(Refused::Full)
    }

    /// Ends the connection that can be spared best, whosever it is: the process has no descriptors left.
    pub(super) fn spare(&self) {
        displace(&mut self.taken(), |_| true, spared_first);
    }

    /// Waits for memory for an answer; returns whether there is some. It is given back once the answer is with the kernel.
    ///
    /// Where there is none, the peer that has the most gives the answer that its client has left waiting the longest;
    /// if that is one's own, only an answer of which nothing was taken for a while. Who has waited for a moment gives
    /// up where `others_wait` until this answer is out of the way.
    pub(super) async fn hold(&self, watch: &Watch, held: Held, others_wait: impl Fn() -> bool) -> bool {
        let since = Instant::now();
        while !self.try_hold(watch, held) {
            if since.elapsed() >= PATIENCE && others_wait() {
                return false;
            }
            tokio::time::sleep(RETRY).await;
        }
        true
    }

    fn try_hold(&self, watch: &Watch, held: Held) -> bool {
        let mut taken = self.taken();
        loop {
            let mut answers: HashMap<Peer, BTreeSet<Held>> = HashMap::new();
            for (peer, held) in taken.iter().filter_map(|watch| Some((watch.peer(), watch.unsent()?))) {
                answers.entry(peer).or_default().insert(held);
            }
            let bytes = |answers: &BTreeSet<Held>| answers.iter().map(|held| held.bytes).sum::<usize>();
            let each: BTreeSet<Held> = answers.values().flatten().copied().collect();
            let all = bytes(&each);
            // One that is longer than all there is must go out too.
            if all == 0 || each.contains(&held) || all.saturating_add(held.bytes) <= self.max_unsent {
                watch.hold(held);
                return true;
            }
            let most = answers.iter().map(|(peer, answers)| (bytes(answers), *peer)).max_by_key(|it| it.0);
            let Some((most, peer)) = most else { return false };
            let own = answers.get(&watch.peer()).map_or(0, bytes);
            let (peer, pause) = if own.saturating_add(held.bytes) < most {
                (peer, Duration::ZERO)
            } else {
                (watch.peer(), PAUSE)
            };
            let now = Instant::now();
            let spared = |other: &Watch| other.peer() == peer && other.unsent().is_some();
            let moved = |waits: &Waits| {
                spared_first(waits).filter(|_| waits.moved + pause <= now).map(|_| waits.moved)
            };
            if displace(&mut taken, spared, moved).is_none() {
                return false;
            }
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.counts.stats(self.taken().len())
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Arc<Watch>>> {
        // Nothing panics between two changes that belong together.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Cut, Duration, Held, Limits, PATIENCE, PAUSE, Peer, Phase, Place, Places, Refused};

    const ONE: Peer = Peer::V4([10, 0, 0, 1]);
    const TWO: Peer = Peer::V4([10, 0, 0, 2]);
    const THREE: Peer = Peer::V4([10, 0, 0, 3]);

    fn places(max_connections: usize, max_connections_of_peer: usize) -> Arc<Places> {
        Arc::new(Places::new(&Limits { max_connections, max_connections_of_peer, ..Limits::default() }))
    }

    /// Lets connections in, a millisecond after each other.
    async fn admitted(places: &Arc<Places>, peer: Peer, count: usize) -> Vec<Place> {
        let mut admitted = Vec::new();
        for _ in 0..count {
            tokio::time::advance(Duration::from_millis(1)).await;
            admitted.push(places.admit(peer).unwrap());
        }
        admitted
    }

    /// Returns which connections are still there.
    fn kept(places: &[Place]) -> Vec<bool> {
        places.iter().map(|place| !place.watch.is_cut()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn peer_with_all_that_it_may_have_displaces_its_own() {
        let places = places(10, 3);
        let own = admitted(&places, ONE, 3).await;
        let others = admitted(&places, TWO, 2).await;
        own[0].watch.read();
        own[1].watch.enter(Phase::Answering);
        let fourth = places.admit(ONE).unwrap();
        assert_eq!((kept(&own), kept(&others)), (vec![true, true, false], vec![true, true]));
        own[0].watch.enter(Phase::Answering);
        fourth.watch.enter(Phase::Answering);
        assert_eq!(places.admit(ONE).err(), Some(Refused::Peer), "nobody is cut off from an answer");
        let stats = places.stats();
        assert_eq!((stats.open, stats.accepted), (5, 6));
        assert_eq!(stats.refused(Refused::Peer), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_the_most_gives_way_to_whoever_has_less() {
        let places = places(4, 3);
        let many = admitted(&places, ONE, 3).await;
        let few = admitted(&places, TWO, 1).await;
        many[0].watch.enter(Phase::Sending { all: false });
        many[1].watch.enter(Phase::Idle);
        let third = admitted(&places, THREE, 1).await;
        assert_eq!(kept(&many), [true, false, true], "the idle one first");
        let _fourth = admitted(&places, THREE, 1).await;
        assert_eq!(
            (kept(&many), kept(&few), kept(&third)),
            (vec![true, false, false], vec![true], vec![true])
        );
        // Now peer three has the most, and is the newcomer.
        let _fifth = admitted(&places, THREE, 1).await;
        assert_eq!((kept(&many)[0], kept(&few), kept(&third)), (true, vec![true], vec![false]));
        assert_eq!(places.stats().open, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn flood_does_not_undo_what_was_begun() {
        let places = places(10, 4);
        let served = admitted(&places, ONE, 2).await;
        served.iter().for_each(|place| place.watch.enter(Phase::Sending { all: false }));
        let mut flood = admitted(&places, ONE, 2).await;
        for _ in 0..20 {
            flood.iter().for_each(|place| place.watch.enter(Phase::Sending { all: false }));
            served[0].watch.wrote();
            flood.extend(admitted(&places, ONE, 1).await);
        }
        assert_eq!(kept(&served), [true, true]);
        tokio::time::advance(PAUSE).await;
        served[0].watch.wrote();
        flood.extend(admitted(&places, ONE, 3).await);
        assert_eq!(kept(&served), [true, false], "one that is not read goes before those that are");
    }

    #[tokio::test(start_paused = true)]
    async fn without_descriptors_the_most_silent_one_goes() {
        let places = places(10, 4);
        let mut all = admitted(&places, ONE, 1).await;
        all.extend(admitted(&places, TWO, 1).await);
        tokio::time::advance(PAUSE).await;
        all[0].watch.read();
        places.spare();
        assert_eq!(kept(&all), [true, false]);
        all[0].watch.enter(Phase::Answering);
        places.spare();
        assert_eq!(kept(&all), [true, false], "nobody who waits for an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn several_peers_whose_requests_wait_keep_nobody_out() {
        let places = places(4, 2);
        let mut all = admitted(&places, ONE, 2).await;
        all.extend(admitted(&places, TWO, 2).await);
        all[0].watch.enter(Phase::Answering);
        for place in &all[1..] {
            tokio::time::advance(Duration::from_millis(1)).await;
            place.watch.enter(Phase::Waiting);
        }
        assert_eq!(places.admit(ONE).err(), Some(Refused::Peer), "a flood does not undo what was begun");
        assert!(places.admit(THREE).is_ok());
        assert_eq!(kept(&all), [true, true, true, false], "the last one goes");
    }

    #[tokio::test(start_paused = true)]
    async fn full_of_answers_in_the_making_refuses() {
        let places = places(2, 2);
        let all = admitted(&places, ONE, 2).await;
        all.iter().for_each(|place| place.watch.enter(Phase::Answering));
        assert_eq!(places.admit(TWO).err(), Some(Refused::Full));
        drop(all);
        assert_eq!(places.stats().open, 0);
        assert!(places.admit(TWO).is_ok());
    }

    /// Something that takes so many bytes, at a place of its own.
    fn held(bytes: usize) -> Held {
        // Kept for good: what is freed may be where the next one is.
        Held::of(Box::leak(Box::new(bytes::Bytes::from(vec![0; bytes]))))
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_taken_from_clients_that_do_not_read() {
        let limits = Limits { max_unsent: 100, ..Limits::default() };
        let places = Arc::new(Places::new(&limits));
        let [a, b, c] = [ONE, ONE, ONE].map(|peer| places.admit(peer).unwrap());
        let long = bytes::Bytes::from(vec![0; 1000]);
        assert!(places.try_hold(&a.watch, Held::of(&long)), "one alone may be as long as it is");
        assert!(places.try_hold(&c.watch, Held::of(&long.clone())), "what is there already costs nothing");
        a.watch.enter(Phase::Sending { all: false });
        c.watch.enter(Phase::Sending { all: true });
        c.watch.flushed();
        assert!(!places.try_hold(&b.watch, held(10)), "a client that reads keeps its answer");
        tokio::time::advance(PAUSE).await;
        a.watch.wrote();
        assert!(!places.try_hold(&b.watch, held(10)));
        tokio::time::advance(PAUSE).await;
        assert!(places.try_hold(&b.watch, held(10)));
        assert!(places.try_hold(&c.watch, held(90)));
        assert_eq!((a.watch.is_cut(), b.watch.is_cut()), (true, false));
        assert_eq!(places.stats().cut(Cut::Displaced), 0, "counted when its task ends it");
    }

    #[tokio::test(start_paused = true)]
    async fn peer_with_most_of_the_memory_gives_to_others_at_once() {
        let limits = Limits { max_unsent: 100, ..Limits::default() };
        let places = Arc::new(Places::new(&limits));
        let many = admitted(&places, ONE, 3).await;
        let [few] = [TWO].map(|peer| places.admit(peer).unwrap());
        for place in &many {
            assert!(places.try_hold(&place.watch, held(33)));
            place.watch.enter(Phase::Sending { all: false });
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(places.try_hold(&few.watch, held(30)));
        assert_eq!(kept(&many), [false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn answer_without_memory_is_given_up_once_others_wait() {
        let places = Arc::new(Places::new(&Limits { max_unsent: 100, ..Limits::default() }));
        let [slow, next] = [ONE, ONE].map(|peer| places.admit(peer).unwrap());
        assert!(places.try_hold(&slow.watch, held(100)));
        slow.watch.enter(Phase::Sending { all: false });
        let since = tokio::time::Instant::now();
        let read_on = async {
            loop {
                slow.watch.wrote();
                tokio::time::sleep(PAUSE / 5).await;
            }
        };
        let wanted = || since.elapsed() > PATIENCE * 3;
        let has_memory = tokio::select! {
            has_memory = places.hold(&next.watch, held(10), wanted) => has_memory,
            () = read_on => true,
        };
        assert!(!has_memory && since.elapsed() < PATIENCE * 4, "{:?}", since.elapsed());
    }
}
