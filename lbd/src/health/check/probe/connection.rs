//! What a connection is to the protocols above it.

use tokio::io::{AsyncRead, AsyncWrite};

pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
