//! The users of the tree, with a digest for each bucket of them, and which secrets were found right.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use arborcast_proto::wire::{RegistrationId, Secret, UserRecord};

/// Buckets that are compared one by one (protocol, U7).
pub(crate) const BUCKETS: usize = 128;

/// What a record costs besides its strings, in bytes.
const RECORD_OVERHEAD: usize = 256;

/// The key of the proofs of one cluster: derived from its secret, so that what one server has found right is proved to all.
/// Never shown.
#[derive(Clone, Copy)]
pub(crate) struct ProofKey([u8; 32]);

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl ProofKey {
    pub(crate) fn new(cluster_secret: &Secret) -> Self {
        let context = "arborcast 2026-11-25 proof that a user's secret was verified";
        Self(blake3::derive_key(context, cluster_secret.expose().as_bytes()))
    }

    /// What is remembered of a pair that was found right. Parts of any length have their length before them.
    pub(crate) fn proof(&self, username: &str, registration: &RegistrationId, secret: &Secret) -> Proof {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in [username, &registration.server, secret.expose()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&registration.at.to_le_bytes());
        hasher.update(&registration.number.to_le_bytes());
        Proof(hasher.finalize())
    }
}

/// The keyed hash of a name, its registration and its right secret. Compared in constant time. It proves nothing without
/// the secret, and can't be computed without that of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proof(blake3::Hash);

impl Proof {
    /// As clients keep it.
    pub(crate) fn to_text(&self) -> Secret {
        self.0.to_hex().as_str().into()
    }

    /// Whether this is what a client has kept.
    pub(crate) fn is(&self, text: &Secret) -> bool {
        self.to_text() == *text
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All users, in buckets, bounded in bytes.
#[derive(Debug)]
pub(crate) struct Records {
    buckets: Vec<Bucket>,
    bytes: usize,
    max_bytes: usize,
    /// How many the masters have.
    stored: usize,
}

#[derive(Debug, Default)]
struct Bucket {
    entries: BTreeMap<String, Entry>,
    digest: u64,
}

#[derive(Debug)]
struct Entry {
    record: UserRecord,
    proof: Option<Proof>,
    /// Whether the masters have it, as far as they have said.
    is_stored: bool,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// The name was free.
    New,
    /// An earlier registration than the one that was known: that one no longer counts.
    Replaced,
    /// This registration, or an earlier one, is known.
    Known,
    /// No room.
    Full,
}

fn bucket_of(username: &str) -> usize {
    usize::from(blake3::hash(username.as_bytes()).as_bytes()[0] / 2)
}

/// What a record adds to the digest of its bucket.
fn digest_of(record: &UserRecord) -> u64 {
    let UserRecord { username, registration, .. } = record;
    let mut hasher = blake3::Hasher::new();
    hasher.update(username.as_bytes());
    hasher.update(&[0]);
    hasher.update(format!("{} {} {}", registration.at, registration.server, registration.number).as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What a pending registration, or a record with its hash in place of the secret, costs.
pub(crate) fn cost(username: &str, secret_or_hash: &str) -> usize {
    2 * username.len() + secret_or_hash.len() + RECORD_OVERHEAD
}

fn cost_of(record: &UserRecord) -> usize {
    cost(&record.username, &record.hash) + record.registration.server.len()
}

impl Records {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(), bytes: 0, max_bytes, stored: 0 }
    }

    /// Takes in a record, unless the same or an earlier registration of the name is known. `pending` is what else counts
    /// for the bound, in bytes; `proof` is that of the secret it was registered with, where that is known.
    pub(crate) fn merge(&mut self, record: UserRecord, proof: Option<Proof>, pending: usize) -> Merged {
        let Some(bucket) = self.buckets.get_mut(bucket_of(&record.username)) else { return Merged::Full };
        let before = bucket.entries.get(&record.username);
        let was_stored = before.is_some_and(|before| before.is_stored);
        let before = before.map(|entry| &entry.record);
        if before.is_some_and(|before| before.registration <= record.registration) {
            return Merged::Known;
        }
        let freed = before.map_or(0, cost_of);
        let bytes = self.bytes - freed + cost_of(&record);
        if bytes + pending > self.max_bytes {
            return Merged::Full;
        }
        bucket.digest ^= digest_of(&record) ^ before.map_or(0, digest_of);
        let merged = if before.is_some() { Merged::Replaced } else { Merged::New };
        bucket.entries.insert(record.username.clone(), Entry { record, proof, is_stored: false });
        self.stored -= usize::from(was_stored);
        self.bytes = bytes;
        merged
    }

    /// Removes a name.
    pub(crate) fn remove(&mut self, username: &str) -> Option<UserRecord> {
        let bucket = self.buckets.get_mut(bucket_of(username))?;
        let Entry { record, is_stored, .. } = bucket.entries.remove(username)?;
        self.stored -= usize::from(is_stored);
        bucket.digest ^= digest_of(&record);
        self.bytes -= cost_of(&record);
        Some(record)
    }

    fn entry(&self, username: &str) -> Option<&Entry> {
        self.buckets.get(bucket_of(username))?.entries.get(username)
    }

    pub(crate) fn get(&self, username: &str) -> Option<&UserRecord> {
        self.entry(username).map(|entry| &entry.record)
    }

    /// Whether this is the right secret, as far as that is known without hashing it.
    pub(crate) fn is_right(&self, username: &str, proof: &Proof) -> Option<bool> {
        Some(self.entry(username)?.proof.as_ref()? == proof)
    }

    /// A secret was found right.
    pub(crate) fn prove(&mut self, username: &str, proof: Proof) {
        let entry = self.buckets.get_mut(bucket_of(username)).and_then(|bucket| bucket.entries.get_mut(username));
        if let Some(entry) = entry {
            entry.proof = Some(proof);
        }
    }

    /// The masters have this one. `false` if it is not the one that is known.
    pub(crate) fn mark_stored(&mut self, record: &UserRecord) -> bool {
        let bucket = self.buckets.get_mut(bucket_of(&record.username));
        let Some(entry) = bucket.and_then(|bucket| bucket.entries.get_mut(&record.username)) else { return false };
        if entry.record != *record {
            return false;
        }
        self.stored += usize::from(!std::mem::replace(&mut entry.is_stored, true));
        true
    }

    /// What the masters have is told anew.
    pub(crate) fn forget_stored(&mut self) {
        for entry in self.buckets.iter_mut().flat_map(|bucket| bucket.entries.values_mut()) {
            entry.is_stored = false;
        }
        self.stored = 0;
    }

    /// How many the masters don't have, as far as they have said.
    pub(crate) fn not_stored(&self) -> usize {
        self.len() - self.stored
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.entries.len()).sum()
    }

    /// All users, in an order that is the same for the same users.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &UserRecord> {
        self.buckets.iter().flat_map(|bucket| bucket.entries.values().map(|entry| &entry.record))
    }

    /// The users of one bucket, by name, those behind `after` only.
    pub(crate) fn bucket(&self, bucket: usize, after: Option<&str>) -> impl Iterator<Item = &UserRecord> + use<'_> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.buckets.get(bucket).map(|bucket| bucket.entries.range::<str, _>((from, Bound::Unbounded)));
        entries.into_iter().flatten().map(|(_, entry)| &entry.record)
    }

    /// The digests of all buckets, as USER_DIGEST carries them.
    pub(crate) fn digest(&self) -> String {
        self.buckets.iter().map(|bucket| format!("{:016x}", bucket.digest)).collect()
    }

    /// The digests of all buckets.
    pub(crate) fn digests(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(|bucket| bucket.digest)
    }
}

/// Reads what USER_DIGEST carries; `None` if it is no such thing.
pub(crate) fn parse_digest(digest: &str) -> Option<Vec<u64>> {
    if digest.len() != BUCKETS * 16 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    digest.as_bytes().chunks(16).map(|one| u64::from_str_radix(std::str::from_utf8(one).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use arborcast_proto::wire::RegistrationId;

    use super::*;

    const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA";

    fn record(username: &str, at: u64) -> UserRecord {
        let registration = RegistrationId { at, server: "n1".into(), number: 1 };
        UserRecord { username: username.into(), hash: HASH.into(), registration }
    }

    #[test]
    fn the_earlier_registration_of_a_name_wins_in_whatever_order_they_come() {
        let mut one = Records::new(1 << 20);
        assert_eq!(one.merge(record("aaron", 5), None, 0), Merged::New);
        assert_eq!(one.merge(record("aaron", 7), None, 0), Merged::Known);
        assert_eq!(one.merge(record("aaron", 5), None, 0), Merged::Known);
        assert_eq!(one.merge(record("aaron", 3), None, 0), Merged::Replaced);
        let mut other = Records::new(1 << 20);
        assert_eq!(other.merge(record("aaron", 3), None, 0), Merged::New);
        assert_eq!(other.merge(record("aaron", 7), None, 0), Merged::Known);
        assert_eq!(one.digest(), other.digest());
        assert_eq!(one.bytes(), other.bytes());
        assert_eq!(one.remove("aaron").unwrap().registration.at, 3);
        assert_eq!((one.bytes(), one.len(), one.digest()), (0, 0, Records::new(0).digest()));
    }

    #[test]
    fn the_bytes_of_users_are_bounded() {
        let mut users = Records::new(2 * cost_of(&record("aaron", 1)));
        assert_eq!(users.merge(record("aaron", 1), None, 0), Merged::New);
        assert_eq!(users.merge(record("berta", 1), None, 1), Merged::Full);
        assert_eq!(users.merge(record("berta", 1), None, 0), Merged::New);
        assert_eq!(users.merge(record("clara", 1), None, 0), Merged::Full);
        assert_eq!(users.len(), 2);
    }

    #[test]
    fn digests_tell_apart_which_bucket_differs() {
        let (mut one, mut other) = (Records::new(1 << 20), Records::new(1 << 20));
        for name in ["aaron", "berta", "clara"] {
            one.merge(record(name, 1), None, 0);
            other.merge(record(name, 1), None, 0);
        }
        assert_eq!(one.digest(), other.digest());
        other.merge(record("dora", 1), None, 0);
        let theirs = parse_digest(&other.digest()).unwrap();
        let differing: Vec<_> = (0..BUCKETS).filter(|bucket| one.buckets[*bucket].digest != theirs[*bucket]).collect();
        assert_eq!(differing, [bucket_of("dora")]);
        for nonsense in ["", "00", &"g".repeat(2048), &"ä".repeat(1024)] {
            assert_eq!(parse_digest(nonsense), None);
        }
    }

    #[test]
    fn a_key_never_shows_itself_and_a_proof_is_of_all_its_parts() {
        let key = ProofKey::new(&"cluster".into());
        assert_eq!(format!("{key:?}"), "***");
        let registration = |number| RegistrationId { at: 1, server: "n1".into(), number };
        let proof = key.proof("ab", &registration(1), &"c".into());
        assert_eq!(proof, key.proof("ab", &registration(1), &"c".into()));
        let others = [
            key.proof("a", &registration(1), &"bc".into()),
            key.proof("ab", &registration(2), &"c".into()),
            key.proof("ab", &registration(1), &"d".into()),
            ProofKey::new(&"other".into()).proof("ab", &registration(1), &"c".into()),
        ];
        assert!(!others.contains(&proof) && others.iter().all(|other| !proof.is(&other.to_text())));
        assert!(proof.is(&proof.to_text()));
    }
}
