//! Files as streams of decompressed bytes. Every decoder here takes concatenated members or frames,
//! as parallel compressors write them, and refuses windows that would need much memory. Zeros after
//! gzip are padding.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{MAX_RECORD_BYTES, State};
use crate::{Error, Result};

/// Memory of an xz decoder: `xz -9` needs 64 MiB.
const MAX_XZ_KIB: u32 = 256 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstandard,
    Bzip2,
    Xz,
}

impl Compression {
    /// By the ending of a name in lower case, and the name without it.
    pub(super) fn of(name: &str) -> (&str, Self) {
        let endings =
            [(".gz", Self::Gzip), (".zst", Self::Zstandard), (".bz2", Self::Bzip2), (".xz", Self::Xz)];
        let found = endings.into_iter().find_map(|(ending, how)| Some((name.strip_suffix(ending)?, how)));
        found.unwrap_or((name, Self::None))
    }

    /// As its documentation calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "plain text",
            Self::Gzip => "gzip",
            Self::Zstandard => "Zstandard",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }

    /// The command that decompresses files to standard output.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::None => "cat",
            Self::Gzip => "zcat",
            Self::Zstandard => "zstdcat",
            Self::Bzip2 => "bzcat",
            Self::Xz => "xzcat",
        }
    }

    /// The ending of names.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstandard => ".zst",
            Self::Bzip2 => ".bz2",
            Self::Xz => ".xz",
        }
    }
}

/// A file whose bytes are counted as they are read.
struct Counted {
    file: File,
    state: Arc<State>,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(to)?;
        self.state.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// `state` counts the bytes of the file itself.
pub(super) fn open(path: &Path, compression: Compression, state: &Arc<State>) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let file = Counted { file, state: state.clone() };
    let input = BufReader::with_capacity(1 << 16, file);
    Ok(match compression {
        Compression::None => Box::new(input.into_inner()),
        Compression::Gzip => Box::new(Members(Some(GzDecoder::new(input)))),
        Compression::Zstandard => Box::new(Frames { input, decoder: FrameDecoder::new(), open: false }),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(input)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(input, true, MAX_XZ_KIB)),
    })
}

/// Members of gzip one after the other, and zeros behind them: tapes and some object stores pad
/// files.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(to)?;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            let Some(mut input) = self.0.take().map(GzDecoder::into_inner) else { break };
            loop {
                let bytes = input.fill_buf()?;
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                let end = bytes.is_empty();
                if zeros == 0 {
                    if !end {
                        self.0 = Some(GzDecoder::new(input));
                    }
                    break;
                }
                input.consume(zeros);
            }
        }
        Ok(0)
    }
}

/// Zstandard frames one after the other, skippable ones skipped.
struct Frames<R> {
    input: R,
    decoder: FrameDecoder,
    /// Whether a frame has begun.
    open: bool,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let broken = |e| io::Error::other(format!("this is not whole Zstandard: {e}"));
        loop {
            if !self.open {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.decoder.init(&mut self.input) {
                    Ok(()) => self.open = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        io::copy(&mut (&mut self.input).take(u64::from(length)), &mut io::sink())?;
                        continue;
                    }
                    Err(e) => return Err(broken(e)),
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(broken)?;
            }
            let read = self.decoder.read(to)?;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            let sums = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if let (Some(wanted), Some(found)) = sums
                && wanted != found
            {
                return Err(io::Error::other("the checksum of a Zstandard frame is wrong"));
            }
            self.open = false;
        }
    }
}

/// A stream that ends with an error where one record takes too much of it.
pub(super) struct Budget<R> {
    input: R,
    left: Rc<Cell<u64>>,
}

/// What is left of a [`Budget`].
pub(super) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    /// Before the next record.
    pub(super) fn renew(&self) {
        self.0.set(MAX_RECORD_BYTES);
    }
}

impl<R: Read> Budget<R> {
    pub(super) fn new(input: R) -> (Self, Allowance) {
        let left = Rc::new(Cell::new(MAX_RECORD_BYTES));
        (Self { input, left: left.clone() }, Allowance(left))
    }
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(to)?;
        match self.left.get().checked_sub(read as u64) {
            Some(left) => self.left.set(left),
            None => {
                let limit = MAX_RECORD_BYTES >> 20;
                return Err(io::Error::other(format!(
                    "a record is longer than {limit} MiB; is a quotation mark never closed?"
                )));
            }
        }
        Ok(read)
    }
}
