//! The control endpoint: `/_emulator/...`, for tests and benchmarks. It needs no signature, so that it answers only
//! programs of this machine (see [`super::guard`]), and it gives out no bytes of a disk.
//!
//! ```text
//! GET  /_emulator/                              the same as counters
//! GET  /_emulator/actions                       actions of IAM and KMS that calls needed, by user or role, and resource
//! POST /_emulator/policies                      the body becomes the policies in force
//! GET  /_emulator/counters                      calls by name, and what was throttled
//! POST /_emulator/counters/reset
//! GET  /_emulator/switches
//! POST /_emulator/switches?latency_ms=15&reset=0.02
//! POST /_emulator/expire-tokens                 all tokens given out so far
//! POST /_emulator/clock?ahead_s=86400
//! POST /_emulator/connections/close             closes all idle connections
//! POST /_emulator/connections/freeze            never answers again on the connections that there are now
//! POST /_emulator/snapshots/snap-1?tier=archive&public=1&owner=444455556666&kms_denied=1&kms_key=ARN&state=error&deleted=1&image=ami-1&locked=1&tag=a%3Db
//! POST /_emulator/volumes/vol-1?instance=i-1&tag=Name%3Dweb   attached to this instance (empty: to none), with this tag
//! POST /_emulator/volumes/vol-1/snapshot        CreateSnapshot without a signature: {"snapshot_id": "snap-..."}
//! POST /_emulator/volumes/vol-1/touch?block=7   counts as written, whatever its bytes
//! POST /_emulator/reload                        reads the folder's snapshots again, as after a start
//! POST /_emulator/synthetic?id=snap-1&gib=65536&density=10000&seed=1
//! POST /_emulator/synthetic?id=vol-1&gib=8&density=20000&seed=1&changed=10000
//! GET  /_emulator/synthetic                     what the snapshots of synthetic volumes have written and freed
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::Emulator;
use super::record::set_attribute;
use super::reply::{Reply, json_reply};
use super::store::EmulatorStore;
use super::switches::{Buckets, CENTURY_S};
use super::synthetic::SyntheticVolume;

impl Emulator {
    pub(super) fn control(&self, method: &Method, path: &str, query: &str, body: &[u8]) -> Reply {
        match self.control_or_say(method, path, query, body) {
            Ok(body) => json_reply(200, &body),
            Err(what) => json_reply(400, &json!({"error": what})),
        }
    }

    fn control_or_say(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: &[u8],
    ) -> Result<Value, String> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let get = |name: &str| {
            let found = pairs.iter().find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.as_str())
                .ok_or(format!("{name} is missing"))
        };
        let number = |name: &str| {
            let text = get(name)?;
            text.parse::<u64>()
                .map_err(|error| format!("{name}={text}: {error}"))
        };
        let small =
            |name: &str| u32::try_from(number(name)?).map_err(|error| format!("{name}: {error}"));
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let post = *method == Method::POST;
        match steps[..] {
            [] | ["counters"] if !post => Ok(json!(*self.counters.lock())),
            ["counters", "reset"] if post => {
                self.counters.lock().clear();
                self.actions.lock().clear();
                Ok(json!({}))
            }
            ["actions"] if !post => Ok(json!(*self.actions.lock())),
            ["policies"] if post => self.set_policies(body).map(|()| json!({})),
            ["switches"] => {
                let mut switches = self.switches.lock();
                if post {
                    let mut changed = switches.clone();
                    for (name, value) in &pairs {
                        changed.set(name, value)?;
                    }
                    *switches = changed;
                    *self.buckets.lock() = Buckets::default();
                }
                serde_json::to_value(&*switches).map_err(|error| error.to_string())
            }
            ["expire-tokens"] if post => {
                // Tokens contain their time in milliseconds: tokens of this millisecond expire too.
                *self.tokens_from.lock() = self.now() + Duration::from_millis(1);
                std::thread::sleep(Duration::from_millis(2));
                Ok(json!({}))
            }
            ["clock"] if post => {
                let ahead = number("ahead_s")?;
                if ahead > CENTURY_S {
                    return Err(format!("ahead_s={ahead} is more than a century"));
                }
                *self.ahead.lock() = Duration::from_secs(ahead);
                Ok(json!({}))
            }
            ["connections", "close"] if post => {
                self.connections.close_idle();
                Ok(json!({}))
            }
            ["connections", "freeze"] if post => {
                self.connections.freeze();
                Ok(json!({}))
            }
            ["snapshots", id] if post => {
                let mut store = self.store.lock();
                let snapshot = store.get_mut(id).ok_or(format!("there is no {id}"))?;
                for (name, value) in &pairs {
                    set_attribute(&mut snapshot.record, name, value)?;
                }
                let record = snapshot.record.clone();
                store.save(&record).map_err(|error| error.to_string())?;
                Ok(json!({}))
            }
            ["volumes", id] if post => {
                let store = self.store.lock();
                for (name, value) in &pairs {
                    store.set_volume(id, name, value)?;
                }
                Ok(json!({}))
            }
            ["volumes", id, "snapshot"] if post => {
                let record = self.create_snapshot(id, "", BTreeMap::new());
                let record = record.map_err(|refusal| refusal.message)?;
                Ok(json!({"snapshot_id": record.id}))
            }
            ["volumes", id, "touch"] if post => {
                let touched = self.store.lock().touch(id, small("block")?);
                touched.map_err(|error| error.to_string())?;
                Ok(json!({}))
            }
            ["reload"] if post => {
                let loaded =
                    EmulatorStore::load(&self.folder).map_err(|error| error.to_string())?;
                *self.store.lock() = loaded;
                Ok(json!({}))
            }
            ["synthetic"] if post => {
                let (gib, density) = (small("gib")?, small("density")?);
                let seed = number("seed")?;
                let (id, now) = (get("id")?, self.now());
                let mut store = self.store.lock();
                match id.starts_with("vol-") {
                    true => {
                        let volume = SyntheticVolume::new(gib, density, seed);
                        store.add_synthetic_volume(id, volume, small("changed")?)?;
                    }
                    false => store.add_synthetic(id, gib, density, seed, now)?,
                }
                Ok(json!({}))
            }
            ["synthetic"] => {
                let totals = self.store.lock().synthetic_totals();
                let totals = totals.map_err(|error| error.to_string())?;
                serde_json::to_value(totals).map_err(|error| error.to_string())
            }
            _ => Err(format!("there is no {method} /_emulator/{path}")),
        }
    }
}
