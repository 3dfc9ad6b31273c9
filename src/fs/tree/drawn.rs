//! Maps of snapshots and pairs, and what is drawn of them: listed once for all files of a folder, kept while there is
//! room, and listed again when they are wanted after that. Sizes stay as they were: snapshots never change.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::contents::Rendered;
use super::names::File;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::formats::{Backing, Qcow2Layout};
use crate::image::Image;
use crate::maps::{Map, Text, Totals, title};

/// Bytes of maps and of what is drawn of them that are kept: a map of 64 TiB with changes everywhere takes up to 32 MiB, one
/// of 1 TiB at most 512 KiB.
const MAX_BYTES: usize = 48 << 20;

/// A map, and what has been drawn of it.
pub(super) struct Drawn {
    map: Map,
    /// What the changes start from, and what they lead to or what the map is of.
    names: (Option<String>, String),
    /// Of a delta: its image.
    image: Option<Arc<Image>>,
    texts: Mutex<HashMap<File, Drawing>>,
    overlay: OnceCell<Arc<Qcow2Layout>>,
}

/// A file being drawn, or drawn. Its own thread finishes the work even if no caller waits for it.
type Drawing = Shared<BoxFuture<'static, Result<Rendered>>>;

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
            overlay: OnceCell::new(),
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

    /// Bytes of memory that the map and all that is drawn of it take.
    fn memory(&self) -> usize {
        let texts = self.texts.lock();
        let drawn = texts.values().filter_map(|drawing| match drawing.peek() {
            Some(Ok(rendered)) => Some(rendered.memory()),
            _ => None,
        });
        let overlay = self.overlay.get().map_or(0, |layout| layout.memory());
        self.map.memory() + drawn.sum::<usize>() + overlay
    }

    /// The changed blocks of a delta over the image of its base, which the mount shows too.
    async fn overlay(&self) -> Result<Arc<Qcow2Layout>> {
        let make = || async {
            let (Map::Changes(delta), (Some(base), _)) = (self.map.clone(), &self.names) else {
                return Err(Error::new(Kind::Invalid, "nothing to draw"));
            };
            let backing = Backing::raw(format!("../../snapshots/{base}/disk.raw"))?;
            // Counting the blocks of a large map takes some milliseconds.
            blocking(move || Ok(Arc::new(Qcow2Layout::new(&delta, Some(&backing))))).await
        };
        self.overlay.get_or_try_init(make).await.cloned()
    }

    /// A file, drawn at its first sight.
    async fn render(&self, file: File) -> Result<Rendered> {
        let drawing = {
            let mut texts = self.texts.lock();
            let drawing = texts.entry(file).or_insert_with(|| {
                let map = self.map.clone();
                let (base, head) = self.names.clone();
                // Scanning a large map takes seconds.
                tokio::task::spawn_blocking(move || draw(map, file, base, &head))
                    .map(|drawn| {
                        let failed =
                            |error| Error::with_source(Kind::Io, "stopped while drawing", error);
                        drawn.map_err(failed).flatten()
                    })
                    .boxed()
                    .shared()
            });
            drawing.clone()
        };
        drawing.await
    }
}

fn draw(map: Map, file: File, base: Option<String>, head: &str) -> Result<Rendered> {
    let whole = |text: String| Ok(Rendered::Whole(Bytes::from(text)));
    match (file, &map) {
        (File::Map(format), _) => Ok(Rendered::Text(Arc::new(Text::new(map, format)))),
        (File::Heatmap, _) => whole(map.heatmap(&title(base.as_deref(), head))),
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

    /// What is drawn of a folder's map; `list` makes it, once for all callers. If the caller that lists stops waiting, the next
    /// caller continues.
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

    /// A file of what is kept.
    pub(super) async fn render(&self, drawn: &Drawn, file: File) -> Result<Rendered> {
        let rendered = drawn.render(file).await?;
        self.make_room();
        Ok(rendered)
    }

    /// The qcow2 file over the base of what is kept.
    pub(super) async fn overlay(&self, drawn: &Drawn) -> Result<Arc<Qcow2Layout>> {
        let layout = drawn.overlay().await?;
        self.make_room();
        Ok(layout)
    }

    /// Drops the least recently used, but never the last one.
    fn make_room(&self) {
        let mut kept = self.0.lock();
        let memory =
            |cell: &Arc<OnceCell<Arc<Drawn>>>| cell.get().map_or(0, |drawn| drawn.memory());
        let mut bytes: usize = kept.iter().map(|(_, cell)| memory(cell)).sum();
        while bytes > MAX_BYTES
            && kept.len() > 1
            && let Some((_, cell)) = kept.pop_lru()
        {
            bytes -= memory(&cell);
        }
    }
}
