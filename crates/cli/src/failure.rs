//! What can go wrong with a command, and the exit status for it.

use holdfast_config::ConfigErrors;
use holdfast_node::api_types::{ApiError, ErrorCode};
use std::path::PathBuf;

/// The table at the end of `holdfast --help`; the numbers a DRBD user knows where there is one.
pub(crate) const EXIT_STATUS_HELP: &str = "\
Exit status:
   0  what was asked for is so
   1  a check failed: copies differ, records are missing, a simulated seed broke a rule
   2  the command line is wrong
  10  the configuration, or a name in the command, is wrong
  11  refused as things are: nothing was changed
  12  no daemon answers
  13  not done in time; it may still come to be
  14  no majority of voters
  16  a disk or a file does not do what it should
  17  this node lacks newer data; the message says how to force
  20  internal error
 130  a signal ended it

Environment:
  HOLDFAST_CONFIG, HOLDFAST_NAME, HOLDFAST_SOCKET  like --config, --name, --socket
  HOLDFAST_LOG                                     what the daemon logs: error, warn, info, debug";

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// A name or option that makes no sense with this configuration.
    #[error("{message}\n  fix: {fix}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do instead.
        fix: String,
    },
    /// Nobody listens at the socket.
    #[error(
        "no daemon answers at {}: {reason}\n  fix: start it with `holdfast node --config FILE --name NAME`, \
         or say where it is with --socket",
        socket.display()
    )]
    Unreachable {
        /// Where it should.
        socket: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The daemon says no.
    #[error("{0}")]
    Api(ApiError),
    /// A condition did not come to be in time.
    #[error("not within {seconds} s: {waiting}")]
    TimedOut {
        /// The time given.
        seconds: u64,
        /// What it still waits for.
        waiting: String,
    },
    /// What was checked is not so.
    #[error("{0}")]
    CheckFailed(String),
    /// A signal.
    #[error("ended by a signal; nothing is left behind")]
    Interrupted,
    /// Anything else.
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Failure {
    /// The exit status: see [`EXIT_STATUS_HELP`].
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::CheckFailed(_) => 1,
            Self::Interrupted => 130,
            Self::Config(_) | Self::Usage { .. } => 10,
            Self::Unreachable { .. } => 12,
            Self::TimedOut { .. } => 13,
            Self::Internal(_) => 20,
            Self::Api(error) => match error.code {
                ErrorCode::BadRequest => 10,
                ErrorCode::Refused => 11,
                ErrorCode::TimedOut => 13,
                ErrorCode::NoQuorum => 14,
                ErrorCode::Storage => 16,
                ErrorCode::NoUpToDateData => 17,
                ErrorCode::Internal => 20,
            },
        }
    }

    /// Tells the user; as one JSON object on standard output if that was asked for.
    pub(crate) fn tell(&self, json: bool) {
        // A failed check has printed what it found as its one object.
        if json && !matches!(self, Self::CheckFailed(_)) {
            println!(
                "{}",
                serde_json::json!({ "error": self.as_api_error(), "exit_status": self.exit_status() })
            );
            return;
        }
        eprintln!("holdfast: {self}");
        if let Self::Api(ApiError { fix: Some(fix), .. }) = self {
            eprintln!("  fix: {fix}");
        }
    }

    fn as_api_error(&self) -> ApiError {
        let code = match self {
            Self::Api(error) => return error.clone(),
            Self::Config(_) | Self::Usage { .. } => ErrorCode::BadRequest,
            Self::TimedOut { .. } => ErrorCode::TimedOut,
            Self::Unreachable { .. } | Self::CheckFailed(_) | Self::Interrupted => {
                ErrorCode::Refused
            }
            Self::Internal(_) => ErrorCode::Internal,
        };
        let text = self.to_string();
        let (message, fix) = match text.split_once("\n  fix: ") {
            Some((message, fix)) => (message.to_owned(), Some(fix.to_owned())),
            None => (text, None),
        };
        ApiError { code, message, fix }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_status_is_in_the_table() {
        let api = |code| {
            Failure::Api(ApiError {
                code,
                message: "m".into(),
                fix: None,
            })
        };
        let failures = [
            Failure::CheckFailed("m".into()),
            Failure::Interrupted,
            Failure::Usage {
                message: "m".into(),
                fix: "f".into(),
            },
            Failure::Unreachable {
                socket: "s".into(),
                reason: "r".into(),
            },
            Failure::TimedOut {
                seconds: 1,
                waiting: "w".into(),
            },
            Failure::Internal(anyhow::anyhow!("m")),
            api(ErrorCode::BadRequest),
            api(ErrorCode::Refused),
            api(ErrorCode::NoUpToDateData),
            api(ErrorCode::NoQuorum),
            api(ErrorCode::TimedOut),
            api(ErrorCode::Storage),
            api(ErrorCode::Internal),
        ];
        for failure in failures {
            let row = format!("\n{:>4}  ", failure.exit_status());
            assert!(EXIT_STATUS_HELP.contains(&row), "{failure:?}");
        }
    }

    #[test]
    fn message_and_fix_are_apart_in_json() {
        let error = Failure::Usage {
            message: "no such node".into(),
            fix: "another".into(),
        }
        .as_api_error();
        assert_eq!(
            (error.message.as_str(), error.fix.as_deref()),
            ("no such node", Some("another"))
        );
    }
}
