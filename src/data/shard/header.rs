//! What is stored at the beginning of a shard: sizes, hashes and checksums, in 256 bytes.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use twox_hash::xxhash3_64::Hasher as Checksum;

use super::damaged;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"ELKSHARD";
pub(in crate::data) const VERSION: u32 = 2;
pub(in crate::data) const HEADER_BYTES: usize = 256;
/// Where the header's own checksum stands.
const HEADER_SUM: usize = HEADER_BYTES - 8;
pub(in crate::data) const OPENS_DOCUMENT: u64 = 1 << 63;

/// SHA-256 of a text up to some place.
pub(in crate::data) type Link = [u8; 32];

/// What stands at the beginning of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::data) struct Header {
    /// Four bytes per token instead of two.
    pub(in crate::data) wide: bool,
    /// Whether its text ends where the source file ends.
    pub(in crate::data) last: bool,
    /// Whether its paragraphs are alternately the first and the second text of a pair.
    pub(in crate::data) pairs: bool,
    pub(in crate::data) tokens: u64,
    pub(in crate::data) paragraphs: u64,
    pub(in crate::data) documents: u64,
    /// Words of the section of keys.
    pub(in crate::data) keys: u64,
    /// Paragraphs of the source file up to the shard's end, those of dropped documents included.
    pub(in crate::data) read: u64,
    /// Bytes of its text, that of dropped documents included.
    pub(in crate::data) bytes: u64,
    /// Duplicate documents that were dropped.
    pub(in crate::data) dropped: u64,
    /// Documents that were too long to be compared.
    pub(in crate::data) long: u64,
    /// Checksum (XXH3) of everything after the header.
    pub(in crate::data) checksum: u64,
    /// The chain before and after the shard.
    pub(in crate::data) start: Link,
    pub(in crate::data) end: Link,
    /// How many of its tokens are the unknown token. `None` in shards of earlier versions, which do not
    /// store this.
    pub(in crate::data) unknown: Option<Unknown>,
    /// Words of the section that says how often each token occurs. 0 where it would be no smaller
    /// than the tokens, and in shards of earlier versions: then the tokens are counted.
    pub(in crate::data) frequencies: u64,
}

/// The unknown tokens of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) struct Unknown {
    /// The id of the unknown token.
    pub(in crate::data) id: u32,
    /// How many tokens have this id.
    pub(in crate::data) tokens: u64,
}

/// Where the length of the section of frequencies stands.
const FREQUENCIES: usize = 168;

// Flags.
const WIDE: u32 = 1;
const LAST: u32 = 1 << 1;
const PAIRS: u32 = 1 << 2;
const COUNTS_UNKNOWN: u32 = 1 << 3;

impl Header {
    pub(in crate::data) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        let flags = [
            (self.wide, WIDE),
            (self.last, LAST),
            (self.pairs, PAIRS),
            (self.unknown.is_some(), COUNTS_UNKNOWN),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        out.extend_from_slice(&flags.to_le_bytes());
        for count in self.counts() {
            out.extend_from_slice(&count.to_le_bytes());
        }
        out.extend_from_slice(&self.start);
        out.extend_from_slice(&self.end);
        if let Some(unknown) = self.unknown {
            out.extend_from_slice(&unknown.tokens.to_le_bytes());
            out.extend_from_slice(&unknown.id.to_le_bytes());
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes[..out.len()].copy_from_slice(&out);
        bytes[FREQUENCIES..FREQUENCIES + 8].copy_from_slice(&self.frequencies.to_le_bytes());
        let sum = Checksum::oneshot(&bytes[..HEADER_SUM]);
        bytes[HEADER_SUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn counts(&self) -> [u64; 9] {
        let Self { tokens, paragraphs, documents, keys, read, bytes, dropped, long, checksum, .. } = *self;
        [tokens, paragraphs, documents, keys, read, bytes, dropped, long, checksum]
    }

    /// The header that stands at the beginning of `bytes`; else what is wrong with it.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(bytes) = bytes.get(..HEADER_BYTES).filter(|b| b.starts_with(MAGIC)) else {
            return Err("no header");
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let link = |at: usize| {
            let mut link = Link::default();
            link.copy_from_slice(&bytes[at..at + 32]);
            link
        };
        if word(8) != VERSION {
            return Err("another version");
        }
        if long(HEADER_SUM) != Checksum::oneshot(&bytes[..HEADER_SUM]) {
            return Err("its header was changed");
        }
        let has = |flag: u32| word(12) & flag != 0;
        Ok(Self {
            wide: has(WIDE),
            last: has(LAST),
            pairs: has(PAIRS),
            tokens: long(16),
            paragraphs: long(24),
            documents: long(32),
            keys: long(40),
            read: long(48),
            bytes: long(56),
            dropped: long(64),
            long: long(72),
            checksum: long(80),
            start: link(88),
            end: link(120),
            unknown: has(COUNTS_UNKNOWN).then(|| Unknown { tokens: long(152), id: word(160) }),
            frequencies: long(FREQUENCIES),
        })
    }

    /// The header of a file.
    pub(in crate::data) fn read(path: &Path) -> Result<Self> {
        Self::read_from(&mut File::open(path).map_err(Error::io("read", path))?, path)
    }

    pub(super) fn read_from(file: &mut File, path: &Path) -> Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact(&mut bytes).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => damaged(path, "no header"),
            _ => Error::io("read", path)(e),
        })?;
        Self::from_bytes(&bytes).map_err(|what| damaged(path, what))
    }

    pub(in crate::data) fn width(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    /// Where the paragraph ends begin: they are read as u64 and must be aligned.
    pub(super) fn ends_at(&self) -> Option<u64> {
        let bytes = self.tokens.checked_mul(self.width())?.checked_next_multiple_of(8)?;
        bytes.checked_add(HEADER_BYTES as u64)
    }

    pub(super) fn file_bytes(&self) -> Option<u64> {
        let words = self.paragraphs.checked_add(self.keys)?.checked_add(self.frequencies)?;
        self.ends_at()?.checked_add(words.checked_mul(8)?)
    }
}
