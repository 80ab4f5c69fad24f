//! A connection's bytes, and what their moving says of the client.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

use super::watch::Watch;

/// Bytes that the kernel keeps of an answer, which it doubles for its own needs.
const SEND_BUFFER: usize = 256 * 1024;

/// Who is at the other end, as far as a bound for each goes.
///
/// An IPv6 host has a /64 of addresses to itself, so they are one peer. All that a Unix socket lets in are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A host by its IPv4 address.
    V4([u8; 4]),
    /// A host or a network by the first half of its IPv6 address.
    V6([u16; 4]),
    /// Whoever may open the Unix socket.
    Local,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            // One's own host is no network of 2^64.
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Self::V4([127, 0, 0, 1]),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// Something that connections come from: a TCP or a Unix socket.
pub trait Listener: Send + 'static {
    /// What a connection is.
    type Stream: Stream;

    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// A connection's two ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the kernel forget what is not sent when the connection is closed, instead of trying for minutes.
    fn forget_unsent(&self) {}
}

impl Stream for TcpStream {
    fn forget_unsent(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(error = %error, "linger");
        }
    }
}

impl Stream for UnixStream {}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        // An answer is one write; waiting to fill a segment only delays it. A client that is gone already is found out
        // when it is read.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = %error, "no delay");
        }
        // Without a bound the kernel lets it grow to megabytes for a client that reads slowly.
        if let Err(error) = setsockopt(&stream, SndBuf, &SEND_BUFFER) {
            tracing::debug!(error = %error, "send buffer");
        }
        Ok((stream, address.ip().into()))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        self.accept().await.map(|(stream, _)| (stream, Peer::Local))
    }
}

/// A connection that tells its [`Watch`] what moves.
#[derive(Debug)]
pub(super) struct Watched<S: Stream> {
    stream: S,
    watch: Arc<Watch>,
}

impl<S: Stream> Watched<S> {
    pub(super) fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
    }

    fn moved(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = result {
            self.watch.wrote();
        }
        result
    }
}

impl<S: Stream> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.watch.breaks_off() {
            self.stream.forget_unsent();
        }
    }
}

impl<S: Stream> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.watch.read();
        }
        result
    }
}

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.moved(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.moved(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = result {
            self.watch.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nix::sys::socket::{getsockopt, setsockopt, sockopt::SndBuf};
    use tokio::net::{TcpListener, TcpStream};

    use super::{Listener as _, Peer, SEND_BUFFER};

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let peer = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(peer("10.1.2.3"), peer("::ffff:10.1.2.3"));
        assert_eq!(peer("127.0.0.1"), peer("::1"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:0:0:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_ne!(peer("10.1.2.3"), peer("10.1.2.4"));
    }

    #[tokio::test]
    async fn what_the_kernel_keeps_of_an_answer_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.next().await.unwrap();
        // The kernel takes what it is asked for up to its own limit, and doubles it. A size that was asked for stays.
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        setsockopt(&other, SndBuf, &SEND_BUFFER).unwrap();
        assert_eq!(getsockopt(&stream, SndBuf).unwrap(), getsockopt(&other, SndBuf).unwrap());
        assert!(getsockopt(&stream, SndBuf).unwrap() <= 2 * SEND_BUFFER);
    }
}
