//! Snapshots and volumes whose bytes are computed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{EmulatorStore, StoredSnapshot, VolumeRecord, is_volume_id};
use crate::emulator::record::{PER_GIB, millis};
use crate::emulator::synthetic::{REPETITIVE, SyntheticStep, SyntheticVolume};

const GIB: u64 = 1 << 30;

/// A volume whose bytes are computed: each snapshot of it finds other blocks changed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct ChangingVolume {
    now: SyntheticVolume,
    /// Blocks in a million that change from one snapshot to the next.
    changed: u32,
    /// Snapshots that were taken.
    taken: u64,
    /// Blocks that they have written and freed, each against the one before.
    written: u64,
    freed: u64,
}

impl ChangingVolume {
    /// Takes a snapshot of this id.
    pub(super) fn take(&mut self, id: &str) -> SyntheticVolume {
        if self.taken == 0 {
            self.written = self.now.count_held();
        } else {
            let before = self.now.clone();
            let seed = seed_of(id, &before);
            let changed = self.changed;
            self.now.steps.push(SyntheticStep { changed, seed });
            for index in (0..before.blocks).filter(|index| before.differs(&self.now, *index)) {
                match self.now.is_held(index) {
                    true => self.written += 1,
                    false => self.freed += 1,
                }
            }
        }
        self.taken += 1;
        self.now.clone()
    }
}

/// What the snapshots of all synthetic volumes have found.
#[derive(Debug, Default, Serialize)]
pub(in crate::emulator) struct VolumeTotals {
    volumes: u64,
    snapshots: u64,
    written: u64,
    freed: u64,
}

impl EmulatorStore {
    /// Adds a volume whose bytes are computed, of whose blocks `changed` in a million are other ones in each snapshot.
    pub(in crate::emulator) fn add_synthetic_volume(
        &self,
        id: &str,
        volume: SyntheticVolume,
        changed: u32,
    ) -> Result<(), String> {
        if !is_volume_id(id) {
            return Err(format!("{id:?} is no volume id"));
        }
        check_size(volume.blocks / PER_GIB, volume.density)?;
        if changed > 1_000_000 {
            return Err(format!("changed={changed} is more than all blocks"));
        }
        let failed = |error: io::Error| format!("cannot make {id}: {error}");
        let file = File::create_new(self.volume_path(id, "raw")).map_err(failed)?;
        let bytes = u64::from(volume.blocks / PER_GIB) * GIB;
        file.set_len(bytes).map_err(failed)?;
        let record = VolumeRecord {
            synthetic: Some(ChangingVolume {
                now: volume,
                changed,
                taken: 0,
                written: 0,
                freed: 0,
            }),
            ..VolumeRecord::default()
        };
        self.save_volume(id, &record).map_err(failed)
    }

    /// What the snapshots of all synthetic volumes have found so far.
    pub(in crate::emulator) fn synthetic_totals(&self) -> io::Result<VolumeTotals> {
        let mut totals = VolumeTotals::default();
        for (id, _) in self.volumes()? {
            if let Some(volume) = self.volume_record(&id).synthetic {
                totals.volumes += 1;
                totals.snapshots += volume.taken;
                totals.written += volume.written;
                totals.freed += volume.freed;
            }
        }
        Ok(totals)
    }

    /// Adds a computed snapshot.
    pub(in crate::emulator) fn add_synthetic(
        &mut self,
        id: &str,
        gib: u32,
        density: u32,
        seed: u64,
        now: SystemTime,
    ) -> Result<(), String> {
        let digits = id.strip_prefix("snap-").unwrap_or_default();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("{id:?} is no snapshot id"));
        }
        check_size(gib, density)?;
        if self.snapshots.contains_key(id) {
            return Err(format!("{id} is there already"));
        }
        let mut record = self.record(now);
        record.id = id.to_owned();
        record.lineage = id.to_owned();
        record.volume_id = format!("vol-{digits}");
        record.volume_gib = gib;
        record.state = "completed".into();
        record.settles_ms = Some(millis(now));
        record.synthetic = Some(SyntheticVolume::new(gib, density, seed));
        // Not kept in the folder: each start of the emulator names it again.
        self.snapshots.insert(
            record.id.clone(),
            StoredSnapshot::new(record, BTreeMap::new()),
        );
        Ok(())
    }

    /// Adds a computed snapshot of a computed one's volume, `changed` blocks in a million later.
    pub(in crate::emulator) fn add_synthetic_child(
        &mut self,
        id: &str,
        parent: &str,
        changed: u32,
        now: SystemTime,
    ) -> Result<(), String> {
        let parent = self
            .get(parent)
            .ok_or_else(|| format!("there is no {parent}"))?;
        let (lineage, volume_id) = (
            parent.record.lineage.clone(),
            parent.record.volume_id.clone(),
        );
        let gib = parent.record.volume_gib;
        let mut synthetic = parent
            .record
            .synthetic
            .clone()
            .ok_or("the parent is not synthetic")?;
        let seed = seed_of(id, &synthetic);
        synthetic.steps.push(SyntheticStep { changed, seed });
        self.add_synthetic(id, gib, synthetic.density, synthetic.seed, now)?;
        if let Some(child) = self.snapshots.get_mut(id) {
            child.record.lineage = lineage;
            child.record.volume_id = volume_id;
            child.record.synthetic = Some(synthetic);
        }
        Ok(())
    }
}

fn check_size(gib: u32, density: u32) -> Result<(), String> {
    match (1..=65_536).contains(&gib) && density <= 1_000_000 {
        true => Ok(()),
        false => {
            Err("a synthetic volume has 1 to 65536 GiB and a density of at most 1000000".into())
        }
    }
}

/// The seed of the step to a snapshot; its blocks repeat one page where those before it do.
fn seed_of(id: &str, before: &SyntheticVolume) -> u64 {
    fnv(id) & !REPETITIVE | before.seed & REPETITIVE
}

/// A number for a name: FNV-1a.
fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
