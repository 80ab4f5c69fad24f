//! A tap: a netdev whose other end is a file descriptor.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::fs::OpenOptionsExt as _,
};

use nix::libc;

use crate::{
    error::{Doing as _, Result},
    frame::VnetHeader,
    mac::Mac,
    netns::Netns,
};

/// Room for the largest frame that a tap hands out, its virtio-net header included.
pub const MAX_READ: usize = 1 << 18;

/// How frames cross the file descriptor of a tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TapMode {
    /// Each read and write is one frame as it is on a wire: the kernel cuts super-packets and fills in checksums
    /// before it hands them out.
    #[default]
    Wire,
    /// As `Wire`; what is written goes through GRO, so the host's TC ingress sees merged super-packets.
    WireGro,
    /// Each frame has a virtio-net header of 10 bytes before it, and super-packets cross whole, with `gso_size` and
    /// without a number of segments: what a hypervisor does for a guest with offloads.
    Vnet,
}

/// A tap to make.
#[derive(Debug, Clone, Copy)]
pub struct TapOptions<'a> {
    /// The netdev's name.
    pub name: &'a str,
    /// How frames cross.
    pub mode: TapMode,
    /// The netdev's hardware address.
    pub mac: Mac,
    /// The netdev's MTU.
    pub mtu: u32,
}

/// A tap; the netdev lives as long as this.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    mode: TapMode,
}

mod ioctl {
    //! `linux/if_tun.h` and `linux/if.h`.

    use nix::libc::{c_int, ifreq};

    nix::ioctl_write_ptr_bad!(set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), ifreq);
    nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', 208, size_of::<c_int>()));
}

/// UDP segmentation for IPv4 and IPv6, which the kernel takes only together (Linux 6.2).
const TUN_F_USO: i32 = 0x20 | 0x40;
/// Checksums, and TCP segmentation for IPv4 and IPv6, ECN or not.
const TUN_F_TCP: i32 = 0x01 | 0x02 | 0x04 | 0x08;

/// Frames that wait for the reader. A stream's window fits in it many times over; what does not fit is dropped by
/// the kernel and shows in `tx_dropped`.
const QUEUE: u32 = 20_000;

/// How long GRO may hold a frame to merge the next ones with it, in nanoseconds: writes come one by one, and without
/// this each would be a batch of its own.
const GRO_HOLD_NS: u32 = 200_000;

impl Tap {
    /// Makes a tap in a namespace and sets it up.
    ///
    /// # Errors
    ///
    /// When the name is taken or `/dev/net/tun` is missing.
    pub fn new(netns: &Netns, options: &TapOptions<'_>) -> Result<Self> {
        let TapOptions { name, mode, mac, mtu } = *options;
        let file = netns
            .run_in(|| open(name, mode))?
            .doing(|| format!("make tap {name} in {} (/dev/net/tun)", netns.name()))?;
        netns
            .ip(&format!("link set {name} address {mac} mtu {mtu} txqueuelen {QUEUE}\nlink set {name} up"))?;
        if mode == TapMode::WireGro {
            // Netdevs of another namespace are not in our /sys; `ip netns exec` mounts theirs.
            let script = format!("echo {GRO_HOLD_NS} > /sys/class/net/{name}/gro_flush_timeout");
            netns.run("ip", &["netns", "exec", netns.name(), "sh", "-c", &script])?;
        }
        Ok(Self { file, name: name.to_owned(), mode })
    }

    /// The netdev's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How frames cross.
    #[must_use]
    pub const fn mode(&self) -> TapMode {
        self.mode
    }

    /// Takes one frame that the host sent; with [`TapMode::Vnet`], its header comes first.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Lets the host receive one frame; with [`TapMode::Vnet`], its header comes first.
    ///
    /// # Errors
    ///
    /// `EIO` when the netdev is down, `EINVAL` when the frame is too short or its header is wrong.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }

    /// Lets the host receive a TCP super-packet, or with `gso_size` 0 an ordinary frame, of a guest that leaves the
    /// checksum at `checksum` (offsets of its start and of the field from there) to the host.
    ///
    /// # Errors
    ///
    /// As [`Tap::write`]; the tap must be of [`TapMode::Vnet`].
    pub fn write_gso(&self, gso: Gso, frame: &[u8]) -> io::Result<()> {
        let mut data = Vec::with_capacity(VnetHeader::LEN + frame.len());
        const NEEDS_CHECKSUM: u8 = 1;
        data.extend([NEEDS_CHECKSUM, gso.kind.number()]);
        for field in [gso.header, gso.size, gso.checksum_start, gso.checksum_offset] {
            data.extend(field.to_ne_bytes());
        }
        data.extend(frame);
        self.write(&data)
    }
}

/// What a guest says of a super-packet, in the words of `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy)]
pub struct Gso {
    /// The protocol.
    pub kind: GsoKind,
    /// Bytes of headers, from the Ethernet header to the payload; a hint only.
    pub header: u16,
    /// Payload bytes in each frame but the last.
    pub size: u16,
    /// Where the transport header starts.
    pub checksum_start: u16,
    /// Where the checksum is, from there: 16 for TCP, 6 for UDP.
    pub checksum_offset: u16,
}

/// The protocol of a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// Not a super-packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, each segment a datagram.
    Udp,
}

impl GsoKind {
    const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Tcp4 => 1,
            Self::Tcp6 => 4,
            Self::Udp => 5,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(name: &str, mode: TapMode) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mode_flags = match mode {
        TapMode::Wire => 0,
        TapMode::WireGro => libc::IFF_NAPI,
        TapMode::Vnet => libc::IFF_VNET_HDR,
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | mode_flags;
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags).map_err(|_| invalid())?,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(invalid());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(|_| invalid())?;
    }
    // SAFETY: TUNSETIFF reads and writes the `ifreq`, which is ours alone for the call and has a name that ends in 0.
    unsafe { ioctl::set_iff(file.as_raw_fd(), &raw const request) }?;
    if mode == TapMode::Vnet {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        let offload = |features| unsafe { ioctl::set_offload(file.as_raw_fd(), features) };
        offload(TUN_F_TCP | TUN_F_USO).or_else(|_| offload(TUN_F_TCP))?;
    }
    Ok(file)
}
