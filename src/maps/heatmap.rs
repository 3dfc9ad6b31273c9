//! A map as a picture: the volume as a grid, row by row, how much of each cell is data by its colour. SVG 1.1 with a
//! tooltip a cell, at most a few hundred kilobytes whatever the volume's size.

use std::fmt::Write;

use bytesize::ByteSize;

use super::Map;
use crate::block::{BLOCK_SIZE, BlockIndex, Extent};

const COLUMNS: u32 = 64;
const MOST_ROWS: u32 = 32;
/// From one cell to the next, and the side of a cell, in pixels.
const PITCH: u32 = 14;
const SIDE: u32 = 12;
/// Where the grid begins.
const LEFT: u32 = 92;
const TOP: u32 = 84;
/// Labels of a legend entry are this far apart.
const LEGEND: u32 = 128;

const EMPTY: &str = "#edf0f2";
/// A cell whose only changed blocks are zeroed; the mark of a cell with zeroed blocks, and the mark's side.
const ONLY_ZEROED: &str = "#f3cfa6";
const ZEROED: &str = "#d9822b";
const MARK: u32 = 5;
/// Colours by the share of a cell: one hue from light to dark, which stays distinct in print and without colour vision.
const SHADES: [(f64, &str, &str); 5] = [
    (0.01, "#c9dff2", "up to 1 %"),
    (0.10, "#8dbde3", "up to 10 %"),
    (0.25, "#4b94cb", "up to 25 %"),
    (0.50, "#1f6aa8", "up to 50 %"),
    (1.00, "#0a3566", "more"),
];

/// What a picture is called: of the changes since `base`, or of what `head` holds.
pub(crate) fn title(base: Option<&str>, head: &str) -> String {
    match base {
        Some(base) => format!("Changes from {base} to {head}"),
        None => format!("What {head} holds"),
    }
}

impl Map {
    /// The picture, under a title.
    pub(crate) fn heatmap(&self, title: &str) -> String {
        let grid = Grid::of(self.geometry().block_count());
        let (data, zeroed) = self.counts();
        let is_delta = matches!(self, Self::Changes(_));
        let verb = if is_delta { "written" } else { "held" };
        let percent = (data + zeroed) as f64 * 100.0 / f64::from(grid.blocks);
        let mut about = format!("{} {verb}", bytes(data));
        if is_delta {
            let _ = write!(about, ", {} zeroed", bytes(zeroed));
        }
        let _ = write!(
            about,
            ", {percent:.3} % of {}; a cell is {}",
            ByteSize::b(self.geometry().size()),
            bytes(grid.per_cell.into())
        );
        let width = LEFT + COLUMNS * PITCH + 16;
        let legend_top = TOP + grid.rows() * PITCH + 24;
        let height = legend_top + 62;
        let mut svg = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\" fill=\"#24292e\">\n\
             <title>{title}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             <text x=\"16\" y=\"30\" font-size=\"18\" font-weight=\"bold\">{title}</text>\n\
             <text x=\"16\" y=\"54\">{about}</text>\n",
            title = escaped(title),
        );
        grid.draw_empty(&mut svg);
        for (number, extent) in grid.cells() {
            let (data, zeroed) = self.counts_in(extent);
            if data + zeroed > 0 {
                let (start, end) = (bytes(extent.start().0.into()), bytes(extent.end().0.into()));
                let mut tip = format!(
                    "{start} to {end}: {data} of {} blocks {verb}",
                    extent.count()
                );
                if zeroed > 0 {
                    let _ = write!(tip, ", {zeroed} zeroed");
                }
                let share = f64::from(data) / f64::from(extent.count());
                Grid::draw_cell(&mut svg, number, share, zeroed > 0, &tip);
            }
        }
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\">Share of a cell's blocks that are {verb}</text>",
            legend_top + 10
        );
        draw_legend(&mut svg, legend_top + 22, is_delta);
        svg.push_str("</svg>\n");
        svg
    }
}

/// The volume's blocks, divided into cells.
struct Grid {
    blocks: u32,
    per_cell: u32,
}

impl Grid {
    /// As many blocks a cell as fit the volume in, a power of two.
    fn of(blocks: u32) -> Self {
        let per_cell = blocks.div_ceil(COLUMNS * MOST_ROWS).next_power_of_two();
        Self { blocks, per_cell }
    }

    fn count(&self) -> u32 {
        self.blocks.div_ceil(self.per_cell)
    }

    fn rows(&self) -> u32 {
        self.count().div_ceil(COLUMNS)
    }

    /// Each cell's number and blocks.
    fn cells(&self) -> impl Iterator<Item = (u32, Extent)> {
        (0..self.count()).filter_map(|number| {
            let start = number * self.per_cell;
            let end = start.saturating_add(self.per_cell).min(self.blocks);
            Some((number, Extent::new(BlockIndex(start), BlockIndex(end))?))
        })
    }

    /// All cells as if nothing were in them, and where some rows begin.
    fn draw_empty(&self, svg: &mut String) {
        let _ = writeln!(
            svg,
            "<defs><pattern id=\"cell\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{PITCH}\" height=\"{PITCH}\" patternUnits=\"userSpaceOnUse\">\
             <rect width=\"{SIDE}\" height=\"{SIDE}\" fill=\"{EMPTY}\"/></pattern></defs>"
        );
        let (full, rest) = (self.count() / COLUMNS, self.count() % COLUMNS);
        for (row, rows, columns) in [(0, full, COLUMNS), (full, 1, rest)] {
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"url(#cell)\"/>",
                TOP + row * PITCH,
                columns * PITCH,
                rows * PITCH
            );
        }
        for row in (0..self.rows()).step_by(4) {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"11\" fill=\"#57606a\">{}</text>",
                LEFT - 8,
                TOP + row * PITCH + 10,
                exact(u64::from(row * COLUMNS) * u64::from(self.per_cell))
            );
        }
    }

    fn draw_cell(svg: &mut String, number: u32, share: f64, zeroed: bool, tip: &str) {
        let (x, y) = (
            LEFT + number % COLUMNS * PITCH,
            TOP + number / COLUMNS * PITCH,
        );
        let _ = write!(
            svg,
            "<g><title>{tip}</title><rect x=\"{x}\" y=\"{y}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"{}\"/>",
            if zeroed && share == 0.0 {
                ONLY_ZEROED
            } else {
                shade(share)
            }
        );
        if zeroed {
            draw_mark(svg, x, y);
        }
        svg.push_str("</g>\n");
    }
}

/// Marks a cell that has zeroed blocks, in its lower right corner.
fn draw_mark(svg: &mut String, x: u32, y: u32) {
    let inset = SIDE - MARK;
    let _ = write!(
        svg,
        "<rect x=\"{}\" y=\"{}\" width=\"{MARK}\" height=\"{MARK}\" fill=\"{ZEROED}\"/>",
        x + inset,
        y + inset
    );
}

fn draw_legend(svg: &mut String, top: u32, is_delta: bool) {
    let rest = if is_delta { "none" } else { "none: a hole" };
    let shades = SHADES.iter().map(|(_, colour, words)| (*colour, *words));
    let zeroed = is_delta.then_some((ONLY_ZEROED, "blocks zeroed"));
    let entries = std::iter::once((EMPTY, rest)).chain(shades).chain(zeroed);
    for (x, (colour, words)) in (LEFT..).step_by(LEGEND as usize).zip(entries) {
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"{top}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{words}</text>",
            x + PITCH + 4,
            top + 10
        );
        if words == "blocks zeroed" {
            draw_mark(svg, x, top);
        }
        svg.push('\n');
    }
}

fn shade(share: f64) -> &'static str {
    if share == 0.0 {
        return EMPTY;
    }
    let found = SHADES.iter().find(|(most, ..)| share <= *most);
    found.map_or(EMPTY, |(_, colour, _)| colour)
}

/// So many blocks, in bytes as people write them.
fn bytes(blocks: u64) -> ByteSize {
    ByteSize::b(blocks * u64::from(BLOCK_SIZE))
}

/// The same to a quarter of the unit, as rows begin.
fn exact(blocks: u64) -> String {
    let text = format!("{:.2}", bytes(blocks));
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            let number = number.trim_end_matches('0').trim_end_matches('.');
            format!("{number} {unit}")
        }
        _ => text,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::changes;
    use super::*;
    use crate::block::{BlockSet, Geometry, MAX_VOLUME_SIZE};
    use std::sync::Arc;

    #[test]
    fn cells_cover_every_block_once_for_any_size() {
        for blocks in [1, 63, 64, 2048, 2049, 204_800, 1 << 27] {
            let grid = Grid::of(blocks);
            assert!(grid.rows() <= MOST_ROWS, "{blocks}");
            let mut at = 0;
            for (_, extent) in grid.cells() {
                assert_eq!(extent.start().0, at);
                at = extent.end().0;
            }
            assert_eq!(at, blocks);
        }
    }

    #[test]
    fn each_cell_shows_its_state_and_is_shaded_by_its_share() {
        let svg = changes().heatmap("a to <b>");
        assert!(svg.contains("<title>a to &lt;b&gt;</title>"), "{svg}");
        assert!(
            svg.contains("512.0 KiB to 1.0 MiB: 1 of 1 blocks written<"),
            "{svg}"
        );
        assert!(svg.contains("0 of 1 blocks written, 1 zeroed"), "{svg}");
        assert_eq!(svg.matches("blocks written").count(), 4);
        let shades = [0.0, 0.001, 0.05, 0.2, 0.3, 0.9, 1.0].map(shade);
        let dark = SHADES[4].1;
        assert_eq!((shades[0], shades[6]), (EMPTY, dark));
        assert_eq!(shades[5], dark);
        assert_eq!(
            shades
                .iter()
                .collect::<std::collections::HashSet<_>>()
                .len(),
            6
        );
    }

    #[test]
    fn rows_are_labelled_exactly() {
        assert_eq!(exact(0), "0 B");
        assert_eq!(exact(20 << 11), "20 GiB");
        assert_eq!(exact(5 << 9), "1.25 GiB");
        assert_eq!(exact(100 << 1), "100 MiB");
    }

    #[test]
    fn the_largest_volume_is_still_a_small_picture() {
        let mut held = BlockSet::new();
        held.insert_extent(Extent::new(BlockIndex(0), BlockIndex(1 << 27)).unwrap());
        let geometry = Geometry::new(MAX_VOLUME_SIZE).unwrap();
        let svg = Map::Blocks(geometry, Arc::new(held)).heatmap("all");
        assert!(svg.len() < 512 << 10, "{}", svg.len());
        assert!(svg.contains("64.0 TiB held"), "{svg:.600}");
    }
}
