//! [`MapMemory`]: bounds the memory that the block maps of all snapshots take together. The map that was not used for longest
//! forgets what it knows, whether its snapshot is open or not: it is listed again where it is read.

use std::sync::Weak;

use lru::LruCache;
use parking_lot::Mutex;

/// Bytes of all maps: the map of 64 TiB with blocks everywhere takes up to 32 MiB, one of 1 TiB at most 512 KiB.
const MAX_BYTES: usize = 48 << 20;

/// A map that can forget.
pub(super) trait Forget: Send + Sync {
    /// Forgets what can be listed again. A map that cannot now is charged again soon.
    fn forget(&self);
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
    map: Weak<dyn Forget>,
}

impl ChargedMaps {
    fn take(&mut self, charged: Option<ChargedMap>) -> Option<Weak<dyn Forget>> {
        let charged = charged?;
        self.bytes -= charged.bytes;
        Some(charged.map)
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

    /// What tells a new map from the others.
    pub(super) fn new_number(&self) -> u32 {
        let mut maps = self.maps.lock();
        maps.next += 1;
        maps.next
    }

    /// The map is in use.
    pub(super) fn touch(&self, number: u32) {
        self.maps.lock().by_use.promote(&number);
    }

    /// The map takes so many bytes now. Others forget where that is too much, never this one. The caller holds no map's lock.
    pub(super) fn charge(&self, number: u32, bytes: usize, map: Weak<dyn Forget>) {
        let mut victims = Vec::new();
        {
            let mut maps = self.maps.lock();
            let before = maps.by_use.push(number, ChargedMap { bytes, map });
            maps.take(before.map(|(_, charged)| charged));
            maps.bytes += bytes;
            while maps.bytes > self.max_bytes && maps.by_use.len() > 1 {
                let oldest = maps.by_use.pop_lru();
                victims.extend(maps.take(oldest.map(|(_, charged)| charged)));
            }
        }
        for map in victims.iter().filter_map(Weak::upgrade) {
            map.forget();
        }
    }

    /// The map is dropped.
    pub(super) fn remove(&self, number: u32) {
        let mut maps = self.maps.lock();
        let charged = maps.by_use.pop(&number);
        maps.take(charged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Map(Mutex<bool>);

    impl Forget for Map {
        fn forget(&self) {
            *self.0.lock() = true;
        }
    }

    #[test]
    fn the_map_not_used_for_longest_forgets_and_never_the_last_one() {
        let memory = MapMemory::with_limit(100);
        let maps = [(); 3].map(|()| Arc::new(Map(Mutex::new(false))));
        let numbers = [(); 3].map(|()| memory.new_number());
        let charge = |map: usize, bytes| {
            let weak = Arc::downgrade(&maps[map]);
            memory.charge(numbers[map], bytes, weak);
        };
        let forgotten = || maps.each_ref().map(|map| *map.0.lock());
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
    }
}
