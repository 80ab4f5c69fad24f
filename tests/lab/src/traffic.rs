//! Transfers of a known size, each with a deadline, over real sockets in the namespaces.

use std::{
    io::{self, ErrorKind, IoSlice, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, ControlMessage, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, bind,
        sendmsg, socket,
    },
};

use crate::{
    count::Count,
    error::{Doing as _, Error, Result},
    netns::Netns,
};

/// Which end of a TCP connection sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The one that connected.
    Client,
    /// The one that listened.
    Server,
}

/// What a transfer sent and what arrived, in payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Datagrams, or 1 for a stream; and payload bytes.
    pub sent: Count,
    /// The same, as the receiver got them.
    pub received: Count,
}

/// Bytes of one write to a stream: several super-packets.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Connects two namespaces by TCP: the client's socket and the server's.
///
/// # Errors
///
/// When `server` can't be bound, or the connection is not there within `within`.
pub fn connect(
    client: &Netns,
    listener: &Netns,
    server: SocketAddr,
    within: Duration,
) -> Result<(TcpStream, TcpStream)> {
    let bound = listener
        .run_in(|| listen(server, Instant::now() + within))?
        .doing(|| format!("listen on {server} in {}", listener.name()))?;
    // Applies to `accept` as well.
    socket2::SockRef::from(&bound).set_read_timeout(Some(within)).doing(|| "set a timeout".to_owned())?;
    let connected = client
        .run_in(|| TcpStream::connect_timeout(&server, within))?
        .doing(|| format!("connect to {server} from {}", client.name()))?;
    let accepted = bound.accept().doing(|| format!("accept on {server}"))?.0;
    for stream in [&connected, &accepted] {
        stream.set_read_timeout(Some(within)).doing(|| "set a timeout".to_owned())?;
        stream.set_write_timeout(Some(within)).doing(|| "set a timeout".to_owned())?;
    }
    Ok((connected, accepted))
}

/// Listens, as soon as nobody else does: a child that another thread is about to start holds a copy of the listener from
/// before until it is the program that it is to be.
fn listen(server: SocketAddr, deadline: Instant) -> io::Result<TcpListener> {
    loop {
        match TcpListener::bind(server) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            bound => return bound,
        }
    }
}

/// Sends `bytes` through a TCP connection between two namespaces, and closes it from both ends.
///
/// # Errors
///
/// When the connection is not made, or the last byte not received, within `within`.
pub fn tcp(
    client: &Netns,
    listener: &Netns,
    server: SocketAddr,
    bytes: u64,
    sender: Sender,
    within: Duration,
) -> Result<Transferred> {
    let (client, server) = connect(client, listener, server, within)?;
    let (source, sink) = match sender {
        Sender::Client => (client, server),
        Sender::Server => (server, client),
    };
    let deadline = Instant::now() + within;
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&source, bytes, deadline, within));
        let received = receive(&sink, deadline, within)?;
        sink.shutdown(Shutdown::Write).doing(|| "close the connection".to_owned())?;
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Transferred {
            sent: Count { frames: 1, bytes: sent },
            received: Count { frames: 1, bytes: received },
        })
    })
}

fn send(mut stream: &TcpStream, bytes: u64, deadline: Instant, within: Duration) -> Result<u64> {
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        in_time(deadline, "the sending of a stream", within)?;
        let length = usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK);
        let written =
            uninterrupted(|| stream.write(&chunk[..length])).doing(|| "send a stream".to_owned())?;
        sent += u64::try_from(written).unwrap_or(0);
    }
    stream.shutdown(Shutdown::Write).doing(|| "close the connection".to_owned())?;
    // The other end's FIN: after it both ends are silent.
    receive(stream, deadline, within)?;
    Ok(sent)
}

fn receive(mut stream: &TcpStream, deadline: Instant, within: Duration) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        in_time(deadline, "the end of a stream", within)?;
        match uninterrupted(|| stream.read(&mut buffer)).doing(|| "receive a stream".to_owned())? {
            0 => return Ok(received),
            length => received += u64::try_from(length).unwrap_or(0),
        }
    }
}

/// Calls again where a signal ended the call. One with a timeout ends so for any signal, such as those by which a
/// virtual machine's processes are stopped and go on.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn in_time(deadline: Instant, what: &str, after: Duration) -> Result<()> {
    if Instant::now() > deadline {
        return Err(Error::Deadline { what: what.to_owned(), after });
    }
    Ok(())
}

/// Sends UDP datagrams of these sizes and receives what arrives; a full socket buffer loses some, as ever.
///
/// # Errors
///
/// When an address can't be bound, or the first datagram has not arrived within `within`.
pub fn udp(
    client: &Netns,
    listener: &Netns,
    server: SocketAddr,
    sizes: &[usize],
    within: Duration,
) -> Result<Transferred> {
    let (source, sink) = udp_pair(client, listener, server)?;
    let payload = vec![0x5a; sizes.iter().copied().max().unwrap_or(0)];
    let send = || -> Result<Count> {
        let mut sent = Count::default();
        for &size in sizes {
            let length = source.send(&payload[..size]).doing(|| format!("send a datagram to {server}"))?;
            sent.add(1, u64::try_from(length).unwrap_or(0));
        }
        Ok(sent)
    };
    exchange(&sink, send, within)
}

/// Sends `payload` bytes of UDP `times` times, each time by one system call that the kernel cuts into datagrams of
/// `segment` bytes, the last one shorter where it does not divide (`UDP_SEGMENT`).
///
/// # Errors
///
/// When an address can't be bound, the kernel refuses (more than 64 segments, more than 65,507 bytes), or the first
/// datagram has not arrived within `within`.
pub fn udp_gso(
    client: &Netns,
    listener: &Netns,
    server: SocketAddr,
    (payload, segment): (usize, u16),
    times: u32,
    within: Duration,
) -> Result<Transferred> {
    let (source, sink) = udp_pair(client, listener, server)?;
    let datagrams = payload.div_ceil(usize::from(segment).max(1));
    let send = || -> Result<Count> {
        let mut sent = Count::default();
        for _ in 0..times {
            let length = send_segmented(&source, payload, segment)?;
            sent.add(u64::try_from(datagrams).unwrap_or(0), length);
        }
        Ok(sent)
    };
    exchange(&sink, send, within)
}

/// Sends `payload` bytes from a connected socket by one system call, which the kernel cuts into datagrams of `segment` bytes.
/// Returns the bytes.
///
/// # Errors
///
/// The kernel refuses it (more than 64 segments, more than 65,507 bytes over IPv4, a segment beyond the MTU).
pub fn send_segmented(socket: &UdpSocket, payload: usize, segment: u16) -> Result<u64> {
    let payload = vec![0x5a; payload];
    let message = [IoSlice::new(&payload)];
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let length = sendmsg::<()>(socket.as_raw_fd(), &message, &control, MsgFlags::empty(), None)
        .doing(|| format!("send datagrams of {segment} bytes by UDP_SEGMENT"))?;
    Ok(u64::try_from(length).unwrap_or(0))
}

/// Returns a connected socket in one namespace and the one in the other that receives from it.
pub(crate) fn udp_pair(
    client: &Netns,
    listener: &Netns,
    server: SocketAddr,
) -> Result<(UdpSocket, UdpSocket)> {
    let sink = listener
        .run_in(|| UdpSocket::bind(server))?
        .doing(|| format!("bind {server} in {}", listener.name()))?;
    // A burst has to fit; the kernel's limit stands where it is lower.
    socket2::SockRef::from(&sink).set_recv_buffer_size(4 << 20).doing(|| "set a buffer".to_owned())?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = client
        .run_in(|| UdpSocket::bind(any).and_then(|socket| socket.connect(server).map(|()| socket)))?
        .doing(|| format!("connect to {server} from {}", client.name()))?;
    Ok((source, sink))
}

/// Receives while `send` sends, and then until all has arrived or nothing came for a moment.
fn exchange(
    sink: &UdpSocket,
    send: impl FnOnce() -> Result<Count> + Send,
    within: Duration,
) -> Result<Transferred> {
    const LAST: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + within;
    thread::scope(|scope| {
        let mut sending = Some(scope.spawn(send));
        let mut sent = None;
        let mut received = Count::default();
        let mut buffer = vec![0; 1 << 16];
        sink.set_read_timeout(Some(LAST)).doing(|| "set a timeout".to_owned())?;
        loop {
            match uninterrupted(|| sink.recv(&mut buffer)) {
                Ok(length) => received.add(1, u64::try_from(length).unwrap_or(0)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // A send that fails is the answer: nothing will come.
                    if let Some(thread) = sending.take_if(|thread| thread.is_finished()) {
                        sent = Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
                    }
                    if let Some(sent) = sent
                        && received.frames > 0
                    {
                        return Ok(Transferred { sent, received });
                    }
                }
                Err(error) => return Err(error).doing(|| "receive datagrams".to_owned()),
            }
            in_time(deadline, "the arrival of datagrams", within)?;
        }
    })
}

/// Sends whole frames from a netdev, well formed or not (`AF_PACKET`). They pass the netdev's TC egress.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    netdev: String,
}

impl RawSocket {
    /// Opens a socket on a netdev.
    ///
    /// # Errors
    ///
    /// When there is no such netdev.
    pub fn open(netns: &Netns, netdev: &str) -> Result<Self> {
        let opened = netns.run_in(|| -> nix::Result<OwnedFd> {
            // Protocol 0 receives nothing.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &link_address(if_nametoindex(netdev)?))?;
            Ok(socket)
        })?;
        let socket = opened.doing(|| format!("open a packet socket on {netdev} in {}", netns.name()))?;
        Ok(Self { socket, netdev: netdev.to_owned() })
    }

    /// Sends one frame, Ethernet header first.
    ///
    /// # Errors
    ///
    /// When the frame is longer than the MTU allows or shorter than its header, or the netdev is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let message = [IoSlice::new(frame)];
        sendmsg::<()>(self.socket.as_raw_fd(), &message, &[], MsgFlags::empty(), None)
            .map(drop)
            .doing(|| format!("send a frame of {} bytes on {}", frame.len(), self.netdev))
    }

    /// Makes each frame be preceded by a `struct virtio_net_hdr` of 10 bytes, so that super-packets can be sent
    /// (`PACKET_VNET_HDR`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn with_vnet_header(self) -> Result<Self> {
        const PACKET_VNET_HDR: libc::c_int = 15;
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(4);
        // SAFETY: the kernel reads `length` bytes, the size of `on`, which outlives the call.
        let answer = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                (&raw const on).cast(),
                length,
            )
        };
        nix::errno::Errno::result(answer).doing(|| format!("set PACKET_VNET_HDR on {}", self.netdev))?;
        Ok(self)
    }
}

fn link_address(ifindex: u32) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or(17),
        sll_protocol: 0,
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).ok();
    // SAFETY: the pointer is to a complete `sockaddr_ll` of this length whose family says so, and `from_raw` copies it.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), length) }
        .expect("the family and the length are those of a packet address")
}
