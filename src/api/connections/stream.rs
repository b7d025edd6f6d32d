//! The bytes of a connection, watched: nothing is waited for without an end.

use std::future::{Future, Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::service::Counting;
use super::{Connection, Reason};

/// Puts a socket under the eyes of its connection.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct Acceptor;

impl<S> Accept<TcpStream, Counting<S>> for Acceptor {
    type Stream = Watched;
    type Service = Counting<S>;
    type Future = Ready<io::Result<(Watched, Counting<S>)>>;

    fn accept(&self, socket: TcpStream, service: Counting<S>) -> Self::Future {
        ready(Ok((Watched::new(socket, service.connection.clone()), service)))
    }
}

/// A socket that fails once its connection is over.
pub(in crate::api) struct Watched {
    socket: TcpStream,
    connection: Arc<Connection>,
    /// Never later than what is waited for; when it rings, that is looked at again.
    alarm: Pin<Box<Sleep>>,
    /// When a head began, and after how many requests.
    head: Option<(u64, Instant)>,
    /// The peer takes nothing since then.
    stalled_since: Option<Instant>,
}

impl Watched {
    fn new(socket: TcpStream, connection: Arc<Connection>) -> Self {
        let alarm = Box::pin(sleep_until(connection.opened + connection.gate.limits.head));
        Self { socket, connection, alarm, head: None, stalled_since: None }
    }

    /// Bytes came: of a request in hand, or of the head of the next.
    fn came(&mut self) {
        let begun = self.connection.begun.load(Ordering::Relaxed);
        let quiet = self.connection.in_hand.load(Ordering::Acquire) == 0;
        let multiplexed = self.connection.multiplexed.load(Ordering::Relaxed);
        if quiet && !multiplexed && self.head.is_none_or(|(after, _)| after != begun) {
            self.head = Some((begun, Instant::now()));
        }
    }

    /// What is waited for, and until when. In hand: for nothing, and that is looked at again.
    fn awaited(&self) -> (Instant, Option<Reason>) {
        let (connection, limits) = (&self.connection, self.connection.gate.limits);
        if let Some(since) = self.stalled_since {
            return (since + limits.stall, Some(Reason::Stalled));
        }
        if connection.in_hand.load(Ordering::Acquire) > 0 {
            return (Instant::now() + limits.idle.min(limits.stall), None);
        }
        match (connection.begun.load(Ordering::Relaxed), self.head) {
            (0, _) => (connection.opened + limits.head, Some(Reason::Head)),
            (begun, Some((after, at))) if begun == after => (at + limits.head, Some(Reason::Head)),
            _ => (connection.quiet_since() + limits.idle, Some(Reason::Idle)),
        }
    }

    /// Ready once the connection is over.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.connection.waker.register(context.waker());
        if self.connection.evicted.load(Ordering::Acquire) {
            self.connection.gate.count(Reason::Evicted);
            return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
        }
        loop {
            let (until, reason) = self.awaited();
            if let Some(reason) = reason.filter(|_| until <= Instant::now()) {
                self.connection.gate.count(reason);
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            if self.alarm.is_elapsed() || self.alarm.deadline() > until {
                self.alarm.as_mut().reset(until);
            }
            if self.alarm.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn wrote<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled_since = None;
            return written;
        }
        self.stalled_since.get_or_insert_with(Instant::now);
        self.poll_over(context).map(Err)
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_read(context, into) {
            Poll::Pending => self.poll_over(context).map(Err),
            read => {
                self.came();
                read
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.wrote(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, bytes);
        self.wrote(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.wrote(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
