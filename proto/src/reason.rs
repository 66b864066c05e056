//! Why a call has failed, as programs are told.

use tonic::Code;

/// The reasons, each with its code and the word that stands for it.
macro_rules! reasons {
    ($($(#[$comment:meta])* $name:ident = $code:ident, $label:literal;)*) => {
        /// What a `google.rpc.ErrorInfo` of the domain [`ERROR_DOMAIN`](crate::ERROR_DOMAIN) has as its reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$comment])* $name,)*
        }

        impl Reason {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code of the errors that have it.
            pub fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// The word.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// A field's value can never be right.
    InvalidArgument = InvalidArgument, "INVALID_ARGUMENT";
    /// What is named is not there.
    NotFound = NotFound, "NOT_FOUND";
    /// It is there already.
    AlreadyExists = AlreadyExists, "ALREADY_EXISTS";
    /// It cannot be done as things are.
    FailedPrecondition = FailedPrecondition, "FAILED_PRECONDITION";
    /// The node belongs to no cluster yet.
    WaitingToBeAdded = FailedPrecondition, "WAITING_TO_BE_ADDED";
    /// Not all nodes know it yet.
    FeatureLevel = FailedPrecondition, "FEATURE_LEVEL";
    /// A bound of the table is reached.
    ResourceExhausted = ResourceExhausted, "RESOURCE_EXHAUSTED";
    /// The node has as much to do as it takes.
    Busy = ResourceExhausted, "BUSY";
    /// A disk has too little room.
    NoSpace = ResourceExhausted, "NO_SPACE";
    /// A stream was read too slowly.
    TooSlow = ResourceExhausted, "TOO_SLOW";
    /// No node leads.
    NoLeader = Unavailable, "NO_LEADER";
    /// The node cannot write to its store.
    StoreBroken = Unavailable, "STORE_BROKEN";
    /// The node ends.
    Stopping = Unavailable, "STOPPING";
    /// It was not decided in time.
    TimedOut = DeadlineExceeded, "TIMED_OUT";
    /// The caller is known, and may not do that.
    PermissionDenied = PermissionDenied, "PERMISSION_DENIED";
    /// The caller is nobody.
    Unauthenticated = Unauthenticated, "UNAUTHENTICATED";
}

impl Reason {
    /// That of an error's details.
    pub fn of(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.label() == label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NOT_FOUND` of `NotFound`.
    fn shouted(code: Code) -> String {
        let mut name = String::new();
        for letter in format!("{code:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }

    #[test]
    fn the_documents_have_each_reason_at_its_code() {
        let document = include_str!("../../docs/api.md");
        for reason in Reason::ALL {
            let (code, label) = (shouted(reason.code()), reason.label());
            let row = document.lines().find(|line| line.starts_with(&format!("| `{code}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/api.md has no row of {code}"));
            assert!(row.contains(&format!("`{label}`")), "docs/api.md has no {label} at {code}");
            assert_eq!(Reason::of(label), Some(*reason));
        }
    }
}
