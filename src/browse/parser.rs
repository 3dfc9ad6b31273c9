//! The process that reads a foreign filesystem: it gives up its rights, then answers requests until the session ends.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::rc::Rc;

use super::FsRemarks;
use super::ext::ExtReader;
use super::fat::FatReader;
use super::ntfs::NtfsReader;
use super::reader::{DiskWindow, FsFailure, FsReader, FsResult};
use super::remote::RemoteImage;
use super::sandbox;
use super::wire::{FrameReader, FrameWriter, IMAGE_LIMIT, NAME_LIMIT, from_parser, to_parser};
use crate::volumes;

/// The name under which the program starts itself as the parser. It has a blank: no link of a package has such a name.
pub(super) const NAME: &str = "ebsfs files-parser";
/// Partitions that are looked into, at most.
const MOST_PARTITIONS: usize = 256;

/// Whether the program was started as the parser.
pub(crate) fn is_called(program: &OsStr) -> bool {
    program == NAME
}

/// Runs the parser over the socket that is its stdin. A word behind its name is for tests of the sandbox: `attempts` prints what is
/// still possible, `allocate`, `spin` and `crash` misbehave within it.
pub(crate) fn parser_main(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        eprintln!("panic at {}", place.unwrap_or_default());
    }));
    let missing = match sandbox::enter() {
        Ok(missing) => missing,
        Err(error) => {
            eprintln!("cannot give up rights: {error}");
            return ExitCode::FAILURE;
        }
    };
    match words.next().as_deref().and_then(OsStr::to_str) {
        None => {}
        Some("attempts") => {
            for line in missing.into_iter().chain(sandbox::attempts()) {
                println!("{line}");
            }
            return ExitCode::SUCCESS;
        }
        Some("allocate") => {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![1_u8; 16 << 20]);
                if kept.len() > 1024 {
                    return ExitCode::SUCCESS;
                }
            }
        }
        Some("spin") => loop {
            std::hint::spin_loop();
        },
        Some(_) => std::process::abort(),
    }
    match serve(Box::new(Stdin), &missing) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The socket: the one descriptor of the process. It cannot be cloned, since no descriptor can be opened.
struct Stdin;

impl io::Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(io::stdin().as_fd(), buffer)?)
    }
}

impl io::Write for Stdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stdin().as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers requests until the session closes the socket.
///
/// # Errors
/// When the socket breaks.
pub(super) fn serve(
    line: Box<dyn super::remote::ParserLine>,
    missing: &[String],
) -> io::Result<()> {
    let image = Rc::new(RefCell::new(RemoteImage::new(line)));
    for text in missing {
        let mut frame = FrameWriter::new(from_parser::WARNING);
        frame.text(text);
        image.borrow_mut().send(frame)?;
    }
    let mut open = None;
    loop {
        let request = image.borrow_mut().receive()?;
        let Some(request) = request else {
            return Ok(());
        };
        // A crate may panic at what a disk says: that answer fails, the next one may not.
        let done = catch_unwind(AssertUnwindSafe(|| answer(&image, &mut open, &request)));
        let done = done.unwrap_or_else(|_| Err(FsFailure::damaged("the parser panicked at it")));
        let frame = done.unwrap_or_else(|failure| {
            let mut frame = FrameWriter::new(from_parser::FAILED);
            frame.u8(failure.kind.code());
            frame.text(&failure.text);
            frame
        });
        image.borrow_mut().send(frame)?;
    }
}

type OpenReader = Option<Box<dyn FsReader>>;

fn answer(
    image: &Rc<RefCell<RemoteImage>>,
    open: &mut OpenReader,
    request: &[u8],
) -> FsResult<FrameWriter> {
    let mut request = FrameReader::new(request);
    let broken = |_| FsFailure::damaged("the session sent a broken request");
    let mut frame = FrameWriter::new(from_parser::ANSWER);
    let verb = request.u8().map_err(broken)?;
    if verb == to_parser::LAYOUT {
        let size = request.u64().map_err(broken)?;
        image.borrow_mut().set_size(size);
        layout(image, size, &mut frame)?;
        return Ok(frame);
    }
    if verb == to_parser::OPEN {
        image.borrow_mut().set_size(request.u64().map_err(broken)?);
        let (start, size) = (
            request.u64().map_err(broken)?,
            request.u64().map_err(broken)?,
        );
        *open = None;
        let mut reader = open_reader(&DiskWindow::new(Rc::clone(image), start, size))?;
        frame.text(reader.name());
        frame.remarks(&reader.remarks());
        frame.node(&reader.root()?);
        *open = Some(reader);
        return Ok(frame);
    }
    let reader = open
        .as_deref_mut()
        .ok_or_else(|| FsFailure::damaged("no filesystem is open"))?;
    let id = request.u64().map_err(broken)?;
    let name = request.bytes(NAME_LIMIT).map_err(broken)?;
    match verb {
        to_parser::LIST => {
            let (entries, next) = reader.list(id, request.u64().map_err(broken)?)?;
            put_page(&mut frame, &entries, next, FrameWriter::entry);
        }
        to_parser::FIND => match reader.find(id, name)? {
            Some(node) => {
                frame.u8(1);
                frame.node(&node);
            }
            None => frame.u8(0),
        },
        to_parser::SPANS => {
            let at = request.u64().map_err(broken)?;
            let (spans, next) = match name.is_empty() {
                true => reader.spans(id, at)?,
                false => reader.stream_spans(id, name, at)?,
            };
            put_page(&mut frame, &spans, next, FrameWriter::span);
        }
        to_parser::CONTENT => {
            let offset = request.u64().map_err(broken)?;
            let len = request.u32().map_err(broken)?.min(IMAGE_LIMIT) as usize;
            frame.bytes(&match name.is_empty() {
                true => reader.content(id, offset, len)?,
                false => reader.stream_content(id, name, offset, len)?,
            });
        }
        to_parser::STREAMS => {
            let (streams, next) = reader.streams(id, request.u64().map_err(broken)?)?;
            put_page(&mut frame, &streams, next, FrameWriter::stream);
        }
        to_parser::XATTRS => {
            let (values, dropped) = reader.xattrs(id)?;
            if values
                .iter()
                .any(|(name, _)| name.contains(&0) || name.len() > NAME_LIMIT)
            {
                return Err(FsFailure::damaged(
                    "an extended attribute has no possible name",
                ));
            }
            put_page(&mut frame, &values, None, |frame, (name, value)| {
                frame.bytes(name);
                frame.bytes(value);
            });
            frame.u64(dropped);
        }
        _ => return Err(FsFailure::damaged("the session sent an unknown request")),
    }
    Ok(frame)
}

/// A count, the items, and where the next page begins.
fn put_page<T>(
    frame: &mut FrameWriter,
    items: &[T],
    next: Option<u64>,
    put: impl Fn(&mut FrameWriter, &T),
) {
    frame.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
    for item in items {
        put(frame, item);
    }
    frame.u8(next.is_some().into());
    frame.u64(next.unwrap_or(0));
}

/// The partitions of the image, and what is in each.
fn layout(image: &Rc<RefCell<RemoteImage>>, size: u64, frame: &mut FrameWriter) -> FsResult<()> {
    let read = |offset: u64, len: usize| {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        image.borrow_mut().read_at(offset, &mut bytes)?;
        Ok(bytes)
    };
    let found = volumes::read_table(&read, size)?;
    frame.text(found.table.name());
    frame.remarks(&FsRemarks {
        notes: found.notes.clone(),
        damage: found.damage.clone(),
    });
    let partitions = found.partitions.iter().map(|partition| {
        let range = (partition.start, partition.size);
        (
            partition.number.to_string(),
            range,
            &partition.filesystem,
            partition.is_efi_system(),
        )
    });
    let logical = found
        .volumes
        .iter()
        .filter_map(|volume| match volume.ranges.as_deref() {
            // One in several pieces is not one range of bytes.
            Ok([range]) => Some((
                volume.path(),
                (range.start, range.size),
                &volume.filesystem,
                false,
            )),
            _ => None,
        });
    let all: Vec<_> = partitions.chain(logical).take(MOST_PARTITIONS).collect();
    frame.u32(u32::try_from(all.len()).unwrap_or(0));
    for (name, (start, size), filesystem, is_efi) in all {
        frame.text(&name);
        frame.u64(start);
        frame.u64(size);
        let content = filesystem.as_ref().map(|found| found.content.name());
        frame.text(content.unwrap_or("unknown"));
        frame.u8(is_efi.into());
    }
    Ok(())
}

/// Opens the filesystem of a partition, by what its first bytes say.
fn open_reader(window: &DiskWindow) -> FsResult<Box<dyn FsReader>> {
    let len = usize::try_from(window.size()).unwrap_or(usize::MAX);
    let head = window.bytes_at(0, volumes::HEAD.min(len))?;
    match volumes::sniff(&head).name() {
        "ext2" | "ext3" | "ext4" => Ok(Box::new(ExtReader::open(window.clone())?)),
        "vfat" => Ok(Box::new(FatReader::open(window.clone())?)),
        "ntfs" => Ok(Box::new(NtfsReader::open(window.clone())?)),
        other => Err(FsFailure::unsupported(format!(
            "it holds {other}, which this program does not parse"
        ))),
    }
}
