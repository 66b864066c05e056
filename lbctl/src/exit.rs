//! How a command fails, and with which exit code: the one place where the two are mapped.

use std::process::ExitCode;

use lb_proto::REQUEST_ID_METADATA;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused it; its message says what to try.
    Refused(String),
    /// Something on the command line is wrong that its parser cannot know.
    Usage(String),
    /// No endpoint can be reached.
    Unreachable(String),
    /// No quorum, or no answer in time.
    Undecided {
        message: String,
        /// With it a retry is safe.
        request_id: Option<String>,
    },
    /// Writing the output.
    Output(std::io::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unreachable(_) => ExitCode::from(3),
            Self::Undecided { .. } => ExitCode::from(4),
            // Whoever read our output has read enough.
            Self::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Self::Output(_) => ExitCode::FAILURE,
        }
    }

    /// From an answer to the request with that id.
    pub(crate) fn from_status(status: &Status, request_id: Option<&str>) -> Self {
        match status.code() {
            // `Unknown` is a connection that broke in the middle: the server never says so itself.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                let of_server = status.metadata().get(REQUEST_ID_METADATA).and_then(|id| id.to_str().ok());
                let request_id = request_id.or(of_server).map(ToOwned::to_owned);
                Self::Undecided { message: status.message().to_owned(), request_id }
            }
            _ => Self::Refused(status.message().to_owned()),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(message) | Self::Usage(message) | Self::Unreachable(message) => f.write_str(message),
            Self::Undecided { message, request_id: None } => f.write_str(message),
            Self::Undecided { message, request_id: Some(id) } => {
                write!(f, "{message}\nThe change may or may not have happened. To retry safely: --request-id {id}")
            }
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}
