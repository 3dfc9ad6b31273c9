//! A delta, or what one volume holds, in the formats that existing tools read. Written as a stream, run by run.
//!
//! | format | whose | what it says of a run |
//! | --- | --- | --- |
//! | json | `qemu-img map --output=json` | data, zero, present: what a delta leaves alone is not present |
//! | csv | people and scripts | first block, offset, length, state |
//! | bmap | bmaptool 2.0 | the blocks to copy, zeroes too |
//! | mapfile | ddrescue, as a domain | `+` for what to rescue, `?` for the rest |
//! | nbdinfo | `nbdinfo --map` | data or hole,zero |

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use crate::block::{BLOCK_SIZE, BlockIndex, BlockSet, Change, Delta, Extent, Geometry};

/// What a map is drawn of.
#[derive(Clone, Copy, Debug)]
pub enum Map<'a> {
    /// What differs between two volumes.
    Changes(&'a Delta),
    /// What one volume holds.
    Blocks(Geometry, &'a BlockSet),
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
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

/// What a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes to read.
    Data,
    /// Zeroes to be written.
    Gone,
    /// Nothing to do, or a hole.
    Rest,
}

/// A run of bytes, and its first block.
#[derive(Clone, Copy, Debug)]
struct Run {
    block: u32,
    offset: u64,
    len: u64,
    state: State,
}

impl Map<'_> {
    /// Writes the map.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Json => self.json(out),
            Format::Csv => self.csv(out),
            Format::Bmap => self.bmap(out),
            Format::Mapfile => self.mapfile(out),
            Format::Nbdinfo => self.nbdinfo(out),
        }
    }

    fn geometry(&self) -> Geometry {
        match self {
            Self::Changes(delta) => delta.head(),
            Self::Blocks(geometry, _) => *geometry,
        }
    }

    fn next_run(&self, from: BlockIndex) -> Option<(Extent, State)> {
        match self {
            Self::Changes(delta) => {
                let (extent, change) = delta.next_run(from)?;
                let state = match change {
                    Change::Write => State::Data,
                    Change::Zero => State::Gone,
                };
                Some((extent, state))
            }
            Self::Blocks(_, held) => {
                let start = held.next_in(from)?;
                Some((Extent::new(start, held.next_out(start))?, State::Data))
            }
        }
    }

    /// All bytes of the volume, run by run.
    fn runs(&self) -> impl Iterator<Item = Run> {
        let geometry = self.geometry();
        let end = BlockIndex(geometry.block_count());
        let run = move |start: BlockIndex, stop: BlockIndex, state| {
            let offset = geometry.offset(start);
            Run {
                block: start.0,
                offset,
                len: geometry.offset(stop) - offset,
                state,
            }
        };
        let mut at = BlockIndex(0);
        let mut next = None;
        std::iter::from_fn(move || {
            if let Some(kept) = next.take() {
                return Some(kept);
            }
            if at >= end {
                return None;
            }
            let from = at;
            let Some((extent, state)) = self.next_run(from).filter(|(e, _)| e.start() < end) else {
                at = end;
                return Some(run(from, end, State::Rest));
            };
            at = extent.end().min(end);
            let found = run(extent.start(), at, state);
            if extent.start() == from {
                return Some(found);
            }
            next = Some(found);
            Some(run(from, extent.start(), State::Rest))
        })
    }

    /// The runs that are not left alone.
    fn wanted(&self) -> impl Iterator<Item = Run> {
        self.runs().filter(|run| run.state != State::Rest)
    }

    fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        let is_delta = matches!(self, Self::Changes(_));
        let mut before = "[";
        for run in self.runs() {
            let (data, zero) = (run.state == State::Data, run.state != State::Data);
            let present = !is_delta || run.state != State::Rest;
            write!(
                out,
                "{before}{{ \"start\": {}, \"length\": {}, \"depth\": 0, \"present\": {present}, \"zero\": {zero}, \
                 \"data\": {data}, \"compressed\": false, \"offset\": {}}}",
                run.offset, run.len, run.offset
            )?;
            before = ",\n";
        }
        writeln!(out, "]")
    }

    fn csv(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "block,offset,length,state")?;
        for run in self.wanted() {
            let state = match (self, run.state) {
                (Self::Blocks(..), _) => "held",
                (_, State::Gone) => "gone",
                _ => "written",
            };
            writeln!(out, "{},{},{},{state}", run.block, run.offset, run.len)?;
        }
        Ok(())
    }

    /// <https://github.com/yoctoproject/bmaptool>: ranges are of blocks, both ends inclusive; checksums of ranges are left
    /// out, which it takes. Zeroes are copied like bytes: the target holds something else.
    fn bmap(&self, out: &mut dyn Write) -> io::Result<()> {
        // The file's own checksum is made with zeroes in its place.
        let mut hashed = Hashed(Sha256::new());
        self.bmap_with(&"0".repeat(64), &mut hashed)?;
        let checksum: String = hashed
            .0
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        self.bmap_with(&checksum, out)
    }

    fn bmap_with(&self, checksum: &str, out: &mut dyn Write) -> io::Result<()> {
        let blocks = |run: &Run| run.len.div_ceil(u64::from(BLOCK_SIZE));
        let mapped: u64 = self.wanted().map(|run| blocks(&run)).sum();
        let geometry = self.geometry();
        writeln!(out, "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">")?;
        writeln!(out, "    <ImageSize> {} </ImageSize>", geometry.size())?;
        writeln!(out, "    <BlockSize> {BLOCK_SIZE} </BlockSize>")?;
        writeln!(
            out,
            "    <BlocksCount> {} </BlocksCount>",
            geometry.block_count()
        )?;
        writeln!(out, "    <MappedBlocksCount> {mapped} </MappedBlocksCount>")?;
        writeln!(out, "    <ChecksumType> sha256 </ChecksumType>")?;
        writeln!(out, "    <BmapFileChecksum> {checksum} </BmapFileChecksum>")?;
        writeln!(out, "    <BlockMap>")?;
        for run in self.wanted() {
            let (first, count) = (u64::from(run.block), blocks(&run));
            if count == 1 {
                writeln!(out, "        <Range> {first} </Range>")?;
            } else {
                writeln!(
                    out,
                    "        <Range> {first}-{} </Range>",
                    first + count - 1
                )?;
            }
        }
        writeln!(out, "    </BlockMap>\n</bmap>")
    }

    /// <https://www.gnu.org/software/ddrescue/manual/ddrescue_manual.html#Mapfile-structure>: the finished blocks of a
    /// domain mapfile are what is to be rescued.
    fn mapfile(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "# Mapfile. Created by ebsfs {}",
            env!("CARGO_PKG_VERSION")
        )?;
        writeln!(out, "# current_pos  current_status  current_pass")?;
        writeln!(out, "0x00000000     ?               1")?;
        writeln!(out, "#      pos        size  status")?;
        for run in self.runs() {
            let status = if run.state == State::Rest { '?' } else { '+' };
            writeln!(out, "0x{:08X}  0x{:08X}  {status}", run.offset, run.len)?;
        }
        Ok(())
    }

    fn nbdinfo(&self, out: &mut dyn Write) -> io::Result<()> {
        for run in self.runs() {
            let (number, words) = match run.state {
                State::Data => (0, "data"),
                State::Gone => (2, "zero"),
                State::Rest => (3, "hole,zero"),
            };
            writeln!(
                out,
                "{:>10}  {:>10}    {number}  {words}",
                run.offset, run.len
            )?;
        }
        Ok(())
    }
}

/// Hashes what is written to it.
struct Hashed(Sha256);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_SIZE as u64;

    /// Ten blocks, the last one short: 1 and 2 written, 3 gone, 9 written.
    fn delta() -> Delta {
        let mut delta = Delta::new(None, Geometry::new(9 * BLOCK + 1000).unwrap());
        for index in [1, 2, 9] {
            delta.insert(BlockIndex(index), Change::Write);
        }
        delta.insert(BlockIndex(3), Change::Zero);
        delta
    }

    fn text(map: Map<'_>, format: Format) -> String {
        let mut out = Vec::new();
        map.write(format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn runs_cover_the_volume_once() {
        let delta = delta();
        let runs: Vec<_> = Map::Changes(&delta).runs().collect();
        let lens: Vec<_> = runs.iter().map(|run| run.len).collect();
        assert_eq!(lens, [BLOCK, 2 * BLOCK, BLOCK, 5 * BLOCK, 1000]);
        let mut at = 0;
        for run in runs {
            assert_eq!(run.offset, at);
            at += run.len;
        }
        assert_eq!(at, delta.head().size());
    }

    #[test]
    fn json_is_an_array_that_says_of_each_byte_what_it_is() {
        let delta = delta();
        let json: Vec<serde_json::Value> =
            serde_json::from_str(&text(Map::Changes(&delta), Format::Json)).unwrap();
        let of = |at: usize| {
            let run = &json[at];
            [&run["present"], &run["zero"], &run["data"]].map(|v| v.as_bool().unwrap())
        };
        assert_eq!(of(0), [false, true, false], "left alone");
        assert_eq!(of(1), [true, false, true], "written");
        assert_eq!(of(2), [true, true, false], "gone");
        let mut held = BlockSet::new();
        held.insert(BlockIndex(1));
        let geometry = Geometry::new(2 * BLOCK).unwrap();
        let json: Vec<serde_json::Value> =
            serde_json::from_str(&text(Map::Blocks(geometry, &held), Format::Json)).unwrap();
        assert_eq!(json[0]["present"], true);
        assert_eq!(json[1]["start"], BLOCK);
    }

    #[test]
    fn csv_names_runs_and_what_became_of_them() {
        assert_eq!(
            text(Map::Changes(&delta()), Format::Csv),
            "block,offset,length,state\n\
             1,524288,1048576,written\n\
             3,1572864,524288,gone\n\
             9,4718592,1000,written\n"
        );
    }

    #[test]
    fn a_bmap_has_the_checksum_of_itself_with_zeroes_in_its_place() {
        let bmap = text(Map::Changes(&delta()), Format::Bmap);
        assert!(bmap.contains("<Range> 1-2 </Range>"), "{bmap}");
        assert!(bmap.contains("<Range> 9 </Range>"), "{bmap}");
        assert!(
            bmap.contains("<MappedBlocksCount> 4 </MappedBlocksCount>"),
            "{bmap}"
        );
        let (_, rest) = bmap.split_once("<BmapFileChecksum> ").unwrap();
        let checksum = &rest[..64];
        let zeroed = bmap.replace(checksum, &"0".repeat(64));
        let digest: String = Sha256::digest(zeroed)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(digest, checksum);
    }

    #[test]
    fn a_mapfile_covers_the_volume_and_nbdinfo_does() {
        let mapfile = text(Map::Changes(&delta()), Format::Mapfile);
        assert!(
            mapfile.ends_with("0x00480000  0x000003E8  +\n"),
            "{mapfile}"
        );
        assert_eq!(mapfile.matches(" ?\n").count(), 2);
        let nbdinfo = text(Map::Changes(&delta()), Format::Nbdinfo);
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
    fn nothing_changed_is_one_run_and_an_empty_list() {
        let delta = Delta::new(None, Geometry::new(BLOCK).unwrap());
        assert_eq!(Map::Changes(&delta).runs().count(), 1);
        assert_eq!(text(Map::Changes(&delta), Format::Csv).lines().count(), 1);
    }
}
