//! Maps in the formats of tools: written as a stream, or read from anywhere within. Neither holds the text.
//!
//! | format | whose | what it says of a run |
//! | --- | --- | --- |
//! | json | `qemu-img map --output=json` | data, zero, present: what a delta leaves alone is not present |
//! | csv | people and scripts | first block, offset, length, state |
//! | bmap | bmaptool 2.0 | the blocks to copy, zeroes too |
//! | mapfile | ddrescue, as a domain | `+` for what to rescue, `?` for the rest |
//! | nbdinfo | `nbdinfo --map` | data or hole,zero |

use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Map, Run, SpanState};
use crate::block::{BLOCK_SIZE, BlockIndex, hexadecimal};

/// Records between two places that [`Text`] knows: 64 KiB of JSON. A place takes 16 bytes, so 64 TiB in runs of a block
/// take 4 MiB.
const STEP: usize = 512;

/// How a map is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// As `qemu-img map --output=json`.
    Json,
    /// A header and a line a run.
    Csv,
    /// Block map 2.0.
    Bmap,
    /// A domain mapfile.
    Mapfile,
    /// As `nbdinfo --map`.
    Nbdinfo,
}

/// A map in one format, readable from anywhere: where every [`STEP`]th record begins is known.
#[derive(Debug)]
pub(crate) struct Text {
    map: Map,
    format: Format,
    head: Vec<u8>,
    /// Where each step's first record begins, and with which block.
    steps: Vec<(u64, BlockIndex)>,
    /// Where the tail begins.
    records_end: u64,
}

impl Text {
    /// Scans the map once, to measure the length of the text.
    pub(crate) fn new(map: Map, format: Format) -> Self {
        let head = map.head(format);
        let mut at = head.len() as u64;
        let mut steps = Vec::new();
        let mut record = Vec::new();
        for (number, run) in map.records(format, BlockIndex(0)).enumerate() {
            if number % STEP == 0 {
                steps.push((at, BlockIndex(run.block)));
            }
            record.clear();
            map.record(format, &run, &mut record);
            at += record.len() as u64;
        }
        Self {
            map,
            format,
            head,
            steps,
            records_end: at,
        }
    }

    /// Bytes of memory that it takes besides the map.
    pub(crate) fn memory(&self) -> usize {
        self.head.len() + self.steps.capacity() * size_of::<(u64, BlockIndex)>()
    }

    /// Bytes of the text.
    pub(crate) fn size(&self) -> u64 {
        self.records_end + self.format.tail().len() as u64
    }

    /// The bytes from `offset`, `len` of them or as many as there are.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> Bytes {
        let size = self.size();
        let start = offset.min(size);
        let len = len.min(usize::try_from(size - start).unwrap_or(len));
        let mut text = Vec::with_capacity(len + 4096);
        // The step that contains `start`; the head comes before the first step.
        let step = self.steps.partition_point(|(at, _)| *at <= start);
        let (mut begin, mut records) = (0, None);
        match step.checked_sub(1).and_then(|step| self.steps.get(step)) {
            Some((at, block)) => {
                begin = *at;
                records = Some(*block);
            }
            None => {
                text.extend_from_slice(&self.head);
                if let Some((_, block)) = self.steps.first() {
                    records = Some(*block);
                }
            }
        }
        let skip = usize::try_from(start - begin).unwrap_or(0);
        let mut whole = true;
        for run in records
            .into_iter()
            .flat_map(|block| self.map.records(self.format, block))
        {
            if text.len() >= skip + len {
                whole = false;
                break;
            }
            self.map.record(self.format, &run, &mut text);
        }
        if whole {
            text.extend_from_slice(self.format.tail().as_bytes());
        }
        let end = (skip + len).min(text.len());
        Bytes::from(text).slice(skip.min(end)..end)
    }
}

impl Format {
    fn tail(self) -> &'static str {
        match self {
            Self::Json => "]\n",
            Self::Bmap => "    </BlockMap>\n</bmap>\n",
            Self::Csv | Self::Mapfile | Self::Nbdinfo => "",
        }
    }
}

impl Map {
    /// Writes the map.
    ///
    /// # Errors
    /// The error of `out`.
    pub(crate) fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.head(format))?;
        let mut record = Vec::new();
        for run in self.records(format, BlockIndex(0)) {
            record.clear();
            self.record(format, &run, &mut record);
            out.write_all(&record)?;
        }
        out.write_all(format.tail().as_bytes())
    }

    /// The runs that the format has a record of, from the one that begins with a block.
    fn records(&self, format: Format, from: BlockIndex) -> impl Iterator<Item = Run> {
        let only_wanted = matches!(format, Format::Csv | Format::Bmap);
        self.runs(from)
            .filter(move |run| !only_wanted || run.state != SpanState::Rest)
    }

    /// What comes before the records.
    fn head(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Json => b"[".to_vec(),
            Format::Csv => b"block,offset,length,state\n".to_vec(),
            Format::Nbdinfo => Vec::new(),
            // https://www.gnu.org/software/ddrescue/manual/ddrescue_manual.html#Mapfile-structure: the finished blocks
            // of a domain mapfile are what is to be rescued.
            Format::Mapfile => format!(
                "# Mapfile. Created by ebsfs {}\n\
                 # current_pos  current_status  current_pass\n\
                 0x00000000     ?               1\n\
                 #      pos        size  status\n",
                env!("CARGO_PKG_VERSION")
            )
            .into_bytes(),
            Format::Bmap => {
                // The file's own checksum is made with zeroes in its place.
                let mut hash = Sha256::new();
                hash.update(self.bmap_head(&"0".repeat(64)));
                let mut record = Vec::new();
                for run in self.records(format, BlockIndex(0)) {
                    record.clear();
                    self.record(format, &run, &mut record);
                    hash.update(&record);
                }
                hash.update(format.tail());
                self.bmap_head(&hexadecimal(&hash.finalize())).into_bytes()
            }
        }
    }

    /// <https://github.com/yoctoproject/bmaptool>: ranges are of blocks, both ends inclusive; checksums of ranges are left
    /// out, which it takes. Zeroes are copied like bytes: the target holds something else.
    fn bmap_head(&self, checksum: &str) -> String {
        let (data, zeroed) = self.counts();
        let (size, blocks) = (self.geometry().size(), self.geometry().block_count());
        let mapped = data + zeroed;
        format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n\
             \x20   <ImageSize> {size} </ImageSize>\n\
             \x20   <BlockSize> {BLOCK_SIZE} </BlockSize>\n\
             \x20   <BlocksCount> {blocks} </BlocksCount>\n\
             \x20   <MappedBlocksCount> {mapped} </MappedBlocksCount>\n\
             \x20   <ChecksumType> sha256 </ChecksumType>\n\
             \x20   <BmapFileChecksum> {checksum} </BmapFileChecksum>\n\
             \x20   <BlockMap>\n"
        )
    }

    /// Appends the format's record of a run.
    fn record(&self, format: Format, run: &Run, out: &mut Vec<u8>) {
        let Run {
            block, offset, len, ..
        } = *run;
        let last = u64::from(block) + u64::from(run.blocks) - 1;
        // Writing to memory cannot fail.
        let _ = match format {
            Format::Json => {
                let (data, zero) = (run.state == SpanState::Data, run.state != SpanState::Data);
                let present = run.state != SpanState::Rest || matches!(self, Self::Blocks(..));
                let before = if offset == 0 { "" } else { ",\n" };
                write!(
                    out,
                    "{before}{{ \"start\": {offset}, \"length\": {len}, \"depth\": 0, \"present\": {present}, \"zero\": {zero}, \
                     \"data\": {data}, \"compressed\": false, \"offset\": {offset}}}"
                )
            }
            Format::Csv => {
                let state = match (self, run.state) {
                    (Self::Blocks(..), _) => "held",
                    (_, SpanState::Zeroed) => "zeroed",
                    _ => "written",
                };
                writeln!(out, "{block},{offset},{len},{state}")
            }
            Format::Bmap if run.blocks == 1 => writeln!(out, "        <Range> {block} </Range>"),
            Format::Bmap => writeln!(out, "        <Range> {block}-{last} </Range>"),
            Format::Mapfile => {
                let status = if run.state == SpanState::Rest {
                    '?'
                } else {
                    '+'
                };
                writeln!(out, "0x{offset:08X}  0x{len:08X}  {status}")
            }
            Format::Nbdinfo => {
                let (number, words) = match run.state {
                    SpanState::Data => (0, "data"),
                    SpanState::Zeroed => (2, "zero"),
                    SpanState::Rest => (3, "hole,zero"),
                };
                writeln!(out, "{offset:>10}  {len:>10}    {number}  {words}")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BLOCK, changes};
    use super::*;
    use crate::block::{BlockSet, Change, Delta, Geometry};
    use proptest::prelude::*;
    use std::sync::Arc;

    const FORMATS: [Format; 5] = [
        Format::Json,
        Format::Csv,
        Format::Bmap,
        Format::Mapfile,
        Format::Nbdinfo,
    ];

    fn text(map: &Map, format: Format) -> String {
        let mut out = Vec::new();
        map.write(format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_is_an_array_that_covers_every_byte() {
        let json: Vec<serde_json::Value> =
            serde_json::from_str(&text(&changes(), Format::Json)).unwrap();
        let of = |at: usize| {
            let run = &json[at];
            [&run["present"], &run["zero"], &run["data"]].map(|v| v.as_bool().unwrap())
        };
        assert_eq!(of(0), [false, true, false], "left alone");
        assert_eq!(of(1), [true, false, true], "written");
        assert_eq!(of(2), [true, true, false], "zeroed");
        let mut held = BlockSet::new();
        held.insert(BlockIndex(1));
        let map = Map::Blocks(Geometry::new(2 * BLOCK).unwrap(), Arc::new(held));
        let json: Vec<serde_json::Value> = serde_json::from_str(&text(&map, Format::Json)).unwrap();
        assert_eq!(json[0]["present"], true);
        assert_eq!(json[1]["start"], BLOCK);
    }

    #[test]
    fn csv_names_runs_and_their_states() {
        assert_eq!(
            text(&changes(), Format::Csv),
            "block,offset,length,state\n\
             1,524288,1048576,written\n\
             3,1572864,524288,zeroed\n\
             9,4718592,1000,written\n"
        );
    }

    #[test]
    fn a_bmap_has_the_checksum_of_itself_with_zeroes_in_its_place() {
        let bmap = text(&changes(), Format::Bmap);
        assert!(bmap.contains("<Range> 1-2 </Range>"), "{bmap}");
        assert!(bmap.contains("<Range> 9 </Range>"), "{bmap}");
        assert!(
            bmap.contains("<MappedBlocksCount> 4 </MappedBlocksCount>"),
            "{bmap}"
        );
        let (_, rest) = bmap.split_once("<BmapFileChecksum> ").unwrap();
        let checksum = &rest[..64];
        let zeroed = bmap.replace(checksum, &"0".repeat(64));
        assert_eq!(hexadecimal(&Sha256::digest(zeroed)), checksum);
    }

    #[test]
    fn a_mapfile_covers_the_volume_and_nbdinfo_does() {
        let mapfile = text(&changes(), Format::Mapfile);
        assert!(
            mapfile.ends_with("0x00480000  0x000003E8  +\n"),
            "{mapfile}"
        );
        assert_eq!(mapfile.matches(" ?\n").count(), 2);
        let nbdinfo = text(&changes(), Format::Nbdinfo);
        assert_eq!(
            nbdinfo
                .lines()
                .nth(2)
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>(),
            ["1572864", "524288", "2", "zero"]
        );
    }

    #[test]
    fn nothing_changed_is_an_empty_list() {
        let delta = Delta::new(None, Geometry::new(BLOCK).unwrap());
        let map = Map::Changes(Arc::new(delta));
        assert_eq!(text(&map, Format::Csv).lines().count(), 1);
        for format in FORMATS {
            let whole = text(&map, format);
            let text = Text::new(map.clone(), format);
            assert_eq!(text.read_at(0, whole.len()), whole, "{format:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn a_text_reads_the_same_from_any_offset(
            blocks in prop::collection::vec((0u32..40_000, any::<bool>()), 0..4000),
            places in prop::collection::vec((0usize..1050, 0usize..300_000), 12),
        ) {
            let mut delta = Delta::new(None, Geometry::new(40_000 * BLOCK).unwrap());
            for (index, is_written) in blocks {
                let index = BlockIndex(index);
                if delta.change(index).is_none() {
                    delta.insert(index, if is_written { Change::Write } else { Change::Zero });
                }
            }
            let map = Map::Changes(Arc::new(delta));
            for format in FORMATS {
                let whole = text(&map, format);
                let text = Text::new(map.clone(), format);
                prop_assert_eq!(text.size(), whole.len() as u64);
                for (share, len) in &places {
                    let offset = whole.len() * share / 1000;
                    let start = offset.min(whole.len());
                    let expected = &whole.as_bytes()[start..(start + len).min(whole.len())];
                    prop_assert!(text.read_at(offset as u64, *len) == expected, "{:?} {} {}", format, offset, len);
                }
            }
        }
    }
}
