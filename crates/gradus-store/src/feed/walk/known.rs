//! What somebody still needs, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Fewest entries at which those that lead nowhere are cleared.
const CLEAR_AT: usize = 4096;

/// Things that others hold. An entry goes some time after its thing: whenever there are twice as many as were left the last
/// time, so that an entry costs the same however many are alive.
pub(super) struct Known<K, V> {
    entries: BTreeMap<K, Weak<V>>,
    clear_at: usize,
}

impl<K: Ord, V> Known<K, V> {
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), clear_at: CLEAR_AT }
    }

    /// The thing of that name, if somebody holds it.
    pub fn get(&self, name: &K) -> Option<Arc<V>> {
        self.entries.get(name).and_then(Weak::upgrade)
    }

    pub fn insert(&mut self, name: K, thing: &Arc<V>) {
        self.entries.insert(name, Arc::downgrade(thing));
        if self.entries.len() > self.clear_at {
            self.entries.retain(|_, thing| thing.strong_count() > 0);
            self.clear_at = (2 * self.entries.len()).max(CLEAR_AT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_found_and_the_rest_does_not_pile_up() {
        let mut known = Known::new();
        let held: Vec<Arc<u64>> = (0..10_000).map(Arc::new).collect();
        held.iter().for_each(|thing| known.insert(**thing, thing));
        (10_000..100_000).for_each(|name| known.insert(name, &Arc::new(name)));
        assert!(held.iter().all(|thing| known.get(thing).is_some_and(|found| Arc::ptr_eq(&found, thing))));
        assert!(known.get(&99_999).is_none());
        assert!(known.entries.len() <= 40_000, "{}", known.entries.len());
    }

    #[test]
    fn the_work_for_many_that_are_held_is_theirs_once_or_twice() {
        let mut known = Known::new();
        let held: Vec<Arc<u64>> = (0..100_000).map(Arc::new).collect();
        let mut cleared = 0;
        for thing in &held {
            let before = known.clear_at;
            known.insert(**thing, thing);
            cleared += if known.clear_at == before { 0 } else { known.entries.len() };
        }
        assert!(cleared < 2 * held.len(), "{cleared} entries were looked at");
    }
}
