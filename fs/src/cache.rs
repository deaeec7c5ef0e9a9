//! Caches that forget what was not used for longest.

use std::hash::Hash;
use std::num::NonZeroUsize;

use lru::LruCache;

/// An empty cache of so many entries at most, which takes memory as it fills. `LruCache::new` takes it all at once, and a daemon
/// has caches for each of a thousand mounts that hardly anybody uses.
pub(crate) fn cache_of<K: Hash + Eq, V>(most: NonZeroUsize) -> LruCache<K, V> {
    let mut cache = LruCache::unbounded();
    cache.resize(most);
    cache
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_keeps_no_more_than_it_should() {
        let mut cache = cache_of(NonZeroUsize::MIN.saturating_add(1));
        for number in 0..5 {
            cache.put(number, ());
        }
        assert_eq!(cache.iter().map(|(number, ())| *number).collect::<Vec<_>>(), [4, 3]);
    }
}
