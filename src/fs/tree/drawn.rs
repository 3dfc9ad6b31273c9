//! Maps of snapshots and pairs, and what is drawn of them: listed once for all files of a folder, kept while there is
//! room, and listed again when they are wanted after that. Sizes stay as they were: snapshots never change.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::contents::Rendered;
use super::nodes::File;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::maps::{Map, Text, Totals};

/// Bytes of maps kept: one of 64 TiB with changes everywhere takes up to 32 MiB, one of 1 TiB at most 512 KiB.
const MAX_BYTES: usize = 64 << 20;

/// A map, and what has been drawn of it.
pub(super) struct Drawn {
    map: Map,
    /// What the changes start from, and what they lead to or what the map is of.
    names: (Option<String>, String),
    /// Of a delta: its image.
    image: Option<Arc<Image>>,
    texts: Mutex<HashMap<File, Arc<OnceCell<Rendered>>>>,
}

impl Drawn {
    pub(super) fn new(
        map: Map,
        names: (Option<String>, String),
        image: Option<Arc<Image>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            map,
            names,
            image,
            texts: Mutex::default(),
        })
    }

    /// The image of a delta.
    pub(super) fn image(&self) -> Option<Arc<Image>> {
        self.image.clone()
    }

    /// Bytes that are not holes in the image.
    pub(super) fn held(&self) -> u64 {
        self.map.bytes()
    }

    /// A file, drawn at its first sight.
    pub(super) async fn render(&self, file: File) -> Result<Rendered> {
        let cell = Arc::clone(self.texts.lock().entry(file).or_default());
        let rendered = cell.get_or_try_init(|| async {
            let map = self.map.clone();
            let (base, head) = self.names.clone();
            // A large map is gone through for seconds: not on a thread that others wait for.
            let drawn = tokio::task::spawn_blocking(move || draw(map, file, base, &head));
            drawn
                .await
                .map_err(|error| Error::with_source(Kind::Io, "stopped while drawing", error))?
        });
        rendered.await.cloned()
    }
}

fn draw(map: Map, file: File, base: Option<String>, head: &str) -> Result<Rendered> {
    let whole = |text: String| Ok(Rendered::Whole(Bytes::from(text)));
    match (file, &map) {
        (File::Map(format), _) => Ok(Rendered::Text(Arc::new(Text::new(map, format)))),
        (File::Heatmap, _) => whole(map.heatmap(&match base {
            Some(base) => format!("Changes from {base} to {head}"),
            None => format!("What {head} holds"),
        })),
        (File::Summary, Map::Changes(delta)) => {
            let base = base.unwrap_or_default();
            let totals = Totals::of(delta);
            // Nothing in it can fail to serialise.
            let json = serde_json::to_string_pretty(&totals.summary(&base, head));
            whole(json.unwrap_or_default() + "\n")
        }
        _ => Err(Error::new(Kind::Invalid, "nothing to draw")),
    }
}

/// What is kept, by the inode of its folder.
pub(super) struct Drawings(Mutex<LruCache<u64, Arc<OnceCell<Arc<Drawn>>>>>);

impl Drawings {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::unbounded()))
    }

    /// What is drawn of a folder's map; `list` makes it, once for all that wait. When who lists stops waiting, the next one
    /// goes on.
    pub(super) async fn of(
        &self,
        folder: u64,
        list: impl Future<Output = Result<Arc<Drawn>>>,
    ) -> Result<Arc<Drawn>> {
        let cell = Arc::clone(self.0.lock().get_or_insert(folder, Arc::default));
        if let Some(drawn) = cell.get() {
            return Ok(Arc::clone(drawn));
        }
        let drawn = cell.get_or_try_init(|| list).await?;
        self.make_room();
        Ok(Arc::clone(drawn))
    }

    /// Drops what was not used for longest, but never the last one.
    fn make_room(&self) {
        let mut kept = self.0.lock();
        let memory =
            |cell: &Arc<OnceCell<Arc<Drawn>>>| cell.get().map_or(0, |drawn| drawn.map.memory());
        let mut bytes: usize = kept.iter().map(|(_, cell)| memory(cell)).sum();
        while bytes > MAX_BYTES
            && kept.len() > 1
            && let Some((_, cell)) = kept.pop_lru()
        {
            bytes -= memory(&cell);
        }
    }
}
