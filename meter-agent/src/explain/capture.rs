//! A pcap or pcapng file, frame by frame, in bounded memory.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use pcap_parser::{
    Block, Linktype, PcapBlockOwned, PcapError, create_reader,
    traits::{PcapNGPacketBlock as _, PcapReaderIterator},
};

/// Bytes of the longest block that is read. Linux' longest super-packet is less.
const BUFFER: usize = 1024 * 1024;
/// Interfaces of one section that are remembered.
const MAX_INTERFACES: usize = 1024;

/// A capture file can't be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no such file, or it must not be read.
    #[error("open {path}")]
    Open {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is of another kind.
    #[error("{path}: is neither a pcap nor a pcapng file")]
    Unknown {
        /// As it was given.
        path: PathBuf,
    },
    /// The frames are of another link layer.
    #[error("{path}: holds frames of link type {linktype}, expected Ethernet (1)")]
    LinkType {
        /// As it was given.
        path: PathBuf,
        /// By the list of tcpdump.org.
        linktype: i32,
    },
    /// A part of it is wrong.
    #[error("{path}: {what} behind frame {frame}")]
    Damaged {
        /// As it was given.
        path: PathBuf,
        /// How many frames were read before.
        frame: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// An open file.
pub(super) struct Capture {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator + Send>,
    /// Link types of the interfaces, of which a pcap file has one.
    interfaces: Vec<Linktype>,
    /// The last frame.
    bytes: Vec<u8>,
    frames: u64,
}

/// One frame.
pub(super) struct Frame<'c> {
    /// What was captured of it.
    pub(super) bytes: &'c [u8],
    /// How long it was.
    pub(super) length: u32,
}

/// What a block means.
enum Found {
    Frame { interface: usize, length: u32 },
    Nothing,
}

impl Capture {
    pub(super) fn open(path: &Path) -> Result<Self, CaptureError> {
        let path = path.to_owned();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(CaptureError::Open { path, source }),
        };
        match create_reader(BUFFER, file) {
            Ok(reader) => Ok(Self { path, reader, interfaces: Vec::new(), bytes: Vec::new(), frames: 0 }),
            Err(PcapError::ReadError) => {
                let source = io::Error::other("it can't be read");
                Err(CaptureError::Open { path, source })
            }
            Err(_) => Err(CaptureError::Unknown { path }),
        }
    }

    /// Returns the next frame; `None` at the end of the file.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let length = loop {
            match self.next_block()? {
                None => return Ok(None),
                Some(Found::Nothing) => {}
                Some(Found::Frame { interface, length }) => match self.interfaces.get(interface) {
                    Some(&Linktype::ETHERNET) => break length,
                    Some(&Linktype(linktype)) => {
                        return Err(CaptureError::LinkType { path: self.path.clone(), linktype });
                    }
                    None => return Err(self.damaged("a frame of an unknown interface")),
                },
            }
        };
        self.frames += 1;
        Ok(Some(Frame { bytes: &self.bytes, length }))
    }

    fn next_block(&mut self) -> Result<Option<Found>, CaptureError> {
        loop {
            let available = self.reader.data().len();
            let what = match self.reader.next() {
                Ok((offset, block)) => {
                    let found = read(block, &mut self.interfaces, &mut self.bytes);
                    self.reader.consume(offset);
                    return Ok(Some(found));
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => {
                    if self.reader.refill().is_err() {
                        "an error of the disk"
                    } else if self.reader.data().len() > available || self.reader.reader_exhausted() {
                        continue;
                    } else {
                        // A buffer that doesn't get fuller never will.
                        "a block that is too long"
                    }
                }
                Err(PcapError::UnexpectedEof) => "the file ends inside a block",
                Err(PcapError::BufferTooSmall) => "a block that is too long",
                Err(_) => "a block that can't be read",
            };
            return Err(self.damaged(what));
        }
    }

    fn damaged(&self, what: &'static str) -> CaptureError {
        CaptureError::Damaged { path: self.path.clone(), frame: self.frames, what }
    }
}

/// Reads a block; the bytes of a frame go to `bytes`.
fn read(block: PcapBlockOwned<'_>, interfaces: &mut Vec<Linktype>, bytes: &mut Vec<u8>) -> Found {
    let mut keep = |data: &[u8]| {
        bytes.clear();
        bytes.extend_from_slice(data);
    };
    match block {
        PcapBlockOwned::LegacyHeader(header) => interfaces.push(header.network),
        PcapBlockOwned::Legacy(frame) => {
            keep(frame.data);
            return Found::Frame { interface: 0, length: frame.origlen };
        }
        // Interfaces are numbered anew in each section.
        PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) if interfaces.len() < MAX_INTERFACES => {
            interfaces.push(interface.linktype);
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(frame)) => {
            keep(frame.packet_data());
            let interface = usize::try_from(frame.if_id).unwrap_or(usize::MAX);
            return Found::Frame { interface, length: frame.origlen };
        }
        PcapBlockOwned::NG(Block::SimplePacket(frame)) => {
            keep(frame.packet_data());
            return Found::Frame { interface: 0, length: frame.origlen };
        }
        PcapBlockOwned::NG(_) => {}
    }
    Found::Nothing
}
