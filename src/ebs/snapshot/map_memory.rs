//! [`MapMemory`]: bounds the memory that the block maps of all snapshots take together. The least recently used map forgets its
//! content, even if its snapshot is open; the next read lists it again. Forgotten blocks do not count when a map is compared with
//! the size that EC2 states.

use std::sync::Weak;

use lru::LruCache;
use parking_lot::Mutex;

/// Bytes of all maps: the map of 64 TiB with blocks everywhere takes up to 32 MiB, one of 1 TiB at most 512 KiB.
const MAX_BYTES: usize = 48 << 20;

/// A map that can forget.
pub(super) trait Forgettable: Send + Sync {
    /// Forgets what can be listed again. `false`: it cannot forget now, and keeps its memory.
    fn forget(&self) -> bool;
}

/// The maps of all snapshots.
pub(in crate::ebs) struct MapMemory {
    max_bytes: usize,
    maps: Mutex<ChargedMaps>,
}

struct ChargedMaps {
    next: u32,
    bytes: usize,
    by_use: LruCache<u32, ChargedMap>,
}

struct ChargedMap {
    bytes: usize,
    map: Weak<dyn Forgettable>,
}

impl ChargedMaps {
    fn put(&mut self, number: u32, charged: ChargedMap) {
        self.bytes += charged.bytes;
        if let Some((_, before)) = self.by_use.push(number, charged) {
            self.bytes -= before.bytes;
        }
    }
}

impl MapMemory {
    pub(in crate::ebs) fn new() -> Self {
        Self::with_limit(MAX_BYTES)
    }

    fn with_limit(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            maps: Mutex::new(ChargedMaps {
                next: 0,
                bytes: 0,
                by_use: LruCache::unbounded(),
            }),
        }
    }

    /// A unique number for a new map.
    pub(super) fn new_number(&self) -> u32 {
        let mut maps = self.maps.lock();
        maps.next += 1;
        maps.next
    }

    /// The map is in use.
    pub(super) fn touch(&self, number: u32) {
        self.maps.lock().by_use.promote(&number);
    }

    /// Sets the bytes of a map. Above the limit, the least recently used other maps forget. The caller holds no map's lock.
    pub(super) fn charge(&self, number: u32, bytes: usize, map: Weak<dyn Forgettable>) {
        let mut victims = Vec::new();
        {
            let mut maps = self.maps.lock();
            maps.put(number, ChargedMap { bytes, map });
            while maps.bytes > self.max_bytes
                && maps.by_use.len() > 1
                && let Some((number, oldest)) = maps.by_use.pop_lru()
            {
                maps.bytes -= oldest.bytes;
                victims.push((number, oldest));
            }
        }
        for (number, victim) in victims {
            let keeps = victim.map.upgrade().is_some_and(|map| !map.forget());
            let mut maps = self.maps.lock();
            // Unless it was charged meanwhile.
            if keeps && !maps.by_use.contains(&number) {
                maps.put(number, victim);
            }
        }
    }

    /// The map is dropped.
    pub(super) fn remove(&self, number: u32) {
        let mut maps = self.maps.lock();
        if let Some(charged) = maps.by_use.pop(&number) {
            maps.bytes -= charged.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Whether it has forgotten; one that cannot has `None`.
    struct Map(Mutex<Option<bool>>);

    impl Forgettable for Map {
        fn forget(&self) -> bool {
            let mut forgotten = self.0.lock();
            *forgotten = forgotten.map(|_| true);
            forgotten.is_some()
        }
    }

    #[test]
    fn the_map_not_used_for_longest_forgets_and_never_the_last_one() {
        let memory = MapMemory::with_limit(100);
        let maps = [(); 3].map(|()| Arc::new(Map(Mutex::new(Some(false)))));
        let numbers = [(); 3].map(|()| memory.new_number());
        let charge = |map: usize, bytes| {
            let weak = Arc::downgrade(&maps[map]);
            memory.charge(numbers[map], bytes, weak);
        };
        let forgotten = || maps.each_ref().map(|map| *map.0.lock() == Some(true));
        charge(0, 40);
        charge(1, 40);
        charge(0, 50);
        assert_eq!(forgotten(), [false; 3], "90 of 100 bytes");
        memory.touch(numbers[1]);
        charge(2, 20);
        assert_eq!(forgotten(), [true, false, false]);
        charge(2, 1000);
        assert_eq!(forgotten(), [true, true, false]);
        charge(2, 2000);
        assert_eq!(forgotten(), [true, true, false], "the last one stays");
        memory.remove(numbers[2]);
        memory.remove(numbers[2]);
        assert_eq!(memory.maps.lock().bytes, 0);

        // One that cannot forget still counts.
        *maps[0].0.lock() = None;
        charge(0, 80);
        charge(1, 80);
        assert_eq!(memory.maps.lock().bytes, 160);
    }
}
