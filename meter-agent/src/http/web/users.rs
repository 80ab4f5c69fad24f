//! Who may ask: basic authentication against bcrypt hashes.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bcrypt::HashParts;
use hyper::header::{AUTHORIZATION, HeaderMap};
use ring::{hmac, rand::SystemRandom};
use tokio::sync::Semaphore;

/// Answers about wrong passwords that are remembered.
const MAX_REFUSED: usize = 100;

/// The users of one configuration.
///
/// A password that was checked is remembered, right or wrong, by a keyed hash: so a scrape costs a bcrypt only the first
/// time. Wrong ones don't displace right ones.
pub(super) struct Users {
    hashes: HashMap<String, String>,
    /// Stands in for the hash of a user who isn't there, so that it takes as long to say no.
    decoy: String,
    key: hmac::Key,
    right: Mutex<HashMap<Digest, ()>>,
    wrong: Mutex<HashMap<Digest, ()>>,
    /// bcrypt takes a whole CPU: one at a time.
    turn: Arc<Semaphore>,
}

type Digest = [u8; 32];

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("users", &self.hashes.len()).finish_non_exhaustive()
    }
}

impl Users {
    /// Returns `None` where nobody is named: everybody may ask.
    pub(super) fn new(users: Vec<(String, String)>) -> Result<Option<Self>, String> {
        let cost = |hash: &str| hash.parse::<HashParts>().map_or(0, |parts| parts.get_cost());
        let Some((_, decoy)) = users.iter().max_by_key(|(_, hash)| cost(hash)) else { return Ok(None) };
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the kernel has no random numbers".to_owned())?;
        Ok(Some(Self {
            decoy: decoy.clone(),
            hashes: users.into_iter().collect(),
            key,
            right: Mutex::default(),
            wrong: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Returns whether a request names a user with a password that was found to be right before.
    pub(super) fn is_known(&self, headers: &HeaderMap) -> bool {
        credentials(headers)
            .is_some_and(|(user, password)| self.known(&self.digest(&user, &password)) == Some(true))
    }

    /// Returns whether a request names a user with the right password.
    pub(super) async fn allow(&self, headers: &HeaderMap) -> bool {
        let Some((user, password)) = credentials(headers) else { return false };
        let digest = self.digest(&user, &password);
        if let Some(known) = self.known(&digest) {
            return known;
        }
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        // Another connection may have asked the same meanwhile.
        if let Some(known) = self.known(&digest) {
            return known;
        }
        let hash = self.hashes.get(&user);
        let is_user = hash.is_some();
        let hash = hash.unwrap_or(&self.decoy).clone();
        let checked = tokio::task::spawn_blocking(move || {
            // Kept by the work itself: it goes on when nobody waits for it any more.
            let _turn = turn;
            bcrypt::verify(password, &hash)
        });
        let is_right = is_user && matches!(checked.await, Ok(Ok(true)));
        self.remember(digest, is_right);
        is_right
    }

    fn digest(&self, user: &str, password: &[u8]) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        // With its length, so that no part can be taken for the beginning of the next.
        for part in [user.as_bytes(), password] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    fn known(&self, digest: &Digest) -> Option<bool> {
        let has = |map: &Mutex<HashMap<Digest, ()>>| {
            map.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
        };
        if has(&self.right) { Some(true) } else { has(&self.wrong).then_some(false) }
    }

    fn remember(&self, digest: Digest, is_right: bool) {
        // There are no more right ones than users.
        let map = if is_right { &self.right } else { &self.wrong };
        let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_right && map.len() >= MAX_REFUSED {
            // Any of them: a map's first is as good as random.
            if let Some(first) = map.keys().next().copied() {
                map.remove(&first);
            }
        }
        map.insert(digest, ());
    }
}

/// Reads the user and the password of a request.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::{AUTHORIZATION, HeaderMap, STANDARD, Users, credentials};

    fn header(value: &str) -> HeaderMap {
        [(AUTHORIZATION, value.parse().unwrap())].into_iter().collect()
    }

    fn basic(credentials: &str) -> HeaderMap {
        header(&format!("Basic {}", STANDARD.encode(credentials)))
    }

    fn users() -> Users {
        let hash = |password| bcrypt::hash(password, 4).unwrap();
        let list = [("alice", hash("one:two")), ("bob", hash("three"))];
        Users::new(list.map(|(name, hash)| (name.to_owned(), hash)).into()).unwrap().unwrap()
    }

    #[test]
    fn nobody_named_is_everybody() {
        assert!(Users::new(Vec::new()).unwrap().is_none());
    }

    #[tokio::test]
    async fn only_a_users_own_password_is_right() {
        let users = users();
        for _ in 0..2 {
            for (credentials, expected) in [
                ("alice:one:two", true),
                ("bob:three", true),
                ("alice:three", false),
                ("alice:", false),
                ("carol:three", false),
                ("carol:one:two", false),
            ] {
                assert_eq!(users.allow(&basic(credentials)).await, expected, "{credentials}");
            }
        }
        assert!(!users.allow(&HeaderMap::new()).await);
        let known = ["alice:one:two", "bob:three", "alice:three", "carol:three", "bob:four"]
            .map(|credentials| users.is_known(&basic(credentials)));
        assert_eq!(known, [true, true, false, false, false]);
        assert_eq!((users.right.lock().unwrap().len(), users.wrong.lock().unwrap().len()), (2, 4));
    }

    #[tokio::test]
    async fn wrong_passwords_are_remembered_within_bounds_and_right_ones_stay() {
        let users = users();
        assert!(users.allow(&basic("bob:three")).await);
        for number in 0..super::MAX_REFUSED + 20 {
            assert!(!users.allow(&basic(&format!("bob:{number}"))).await);
        }
        assert_eq!(users.wrong.lock().unwrap().len(), super::MAX_REFUSED);
        assert_eq!(users.right.lock().unwrap().len(), 1);
    }

    #[test]
    fn what_is_not_basic_is_nobody() {
        for value in ["", "Basic", "Basic ", "Basic !!!", "Bearer YTpi", "Basic YQ==", "Basic /zo="] {
            assert_eq!(credentials(&header(value)), None, "{value}");
        }
        assert_eq!(credentials(&header("bAsIc YTpi")), Some(("a".to_owned(), b"b".to_vec())));
        assert_eq!(credentials(&basic("a::")), Some(("a".to_owned(), b":".to_vec())));
    }
}
