//! How values become records and records become values. The records are generated from `proto/record.proto`; which field of
//! a value is which field of its record is said once, beside the value, by `recorded!` and `numbered!`.
//!
//! A field or a value that this build does not know is from a newer one: it is refused as too new, and never guessed at or
//! taken for damage.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use prost::Message;
use uuid::Uuid;

/// The records.
#[allow(clippy::all, missing_docs, unreachable_pub, unused_qualifications, reason = "generated")]
pub(crate) mod record {
    include!(concat!(env!("OUT_DIR"), "/lb.store.v1.rs"));
}

/// The highest feature level that this build knows. No command above the table's level is proposed.
///
/// Where `LBD_NEXT_FEATURE_LEVEL` is set, a debug build knows one more, which allows nothing new: for the test of rolling
/// upgrades.
pub fn feature_level() -> u32 {
    const LEVEL: u32 = 11;
    static NEXT: LazyLock<bool> =
        LazyLock::new(|| cfg!(debug_assertions) && env::var_os("LBD_NEXT_FEATURE_LEVEL").is_some());
    LEVEL + u32::from(*NEXT)
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not protobuf at all.
    #[error("not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field holds what it cannot.
    #[error("field {0} is missing or holds a value that it cannot have")]
    Field(&'static str),
    /// From a newer build.
    #[error("it needs feature level {needed}, and this build knows {known}: install a newer lbd")]
    TooNew {
        /// What it needs.
        needed: u32,
        /// What this build knows.
        known: u32,
    },
}

impl DecodeError {
    /// It needs at least this level, and more than this build knows.
    pub(crate) fn too_new(needed: u32) -> Self {
        Self::TooNew { needed: needed.max(feature_level() + 1), known: feature_level() }
    }

    /// The field that is wrong, where the value alone could not tell.
    pub(crate) fn named(self, field: &'static str) -> Self {
        match self {
            Self::Field("") => Self::Field(field),
            other => other,
        }
    }
}

/// A value that cannot be what the record says.
pub(crate) const WRONG: DecodeError = DecodeError::Field("");

/// Decodes a record of which every field is known.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    let record = M::decode(bytes)?;
    // What was skipped is not written again.
    if record.encoded_len() == bytes.len() { Ok(record) } else { Err(DecodeError::too_new(0)) }
}

/// A value that stands in a record's field.
pub(crate) trait Field<R>: Sized {
    /// As it stands there.
    fn put(&self) -> R;
    /// The inverse of [`Self::put`].
    fn read(record: R) -> Result<Self, DecodeError>;
}

/// Says which fields of a value are which fields of its record.
macro_rules! recorded {
    ($value:ty => $record:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Field<$crate::codec::record::$record> for $value {
            fn put(&self) -> $crate::codec::record::$record {
                #[allow(clippy::needless_update, reason = "other values have other fields of the same record")]
                $crate::codec::record::$record {
                    $($field: $crate::codec::Field::put(&self.$field),)*
                    ..Default::default()
                }
            }

            fn read(record: $crate::codec::record::$record) -> Result<Self, $crate::codec::DecodeError> {
                Ok(Self {
                    $($field: $crate::codec::Field::read(record.$field)
                        .map_err(|error| error.named(stringify!($field)))?,)*
                })
            }
        }

        $crate::codec::required!($value => $record);
    };
}

/// A value with settings that stand in the same record as the rest of it.
macro_rules! recorded_with_settings {
    ($value:ty => $record:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Field<$crate::codec::record::$record> for $value {
            fn put(&self) -> $crate::codec::record::$record {
                $crate::codec::record::$record {
                    $($field: $crate::codec::Field::put(&self.$field),)*
                    ..$crate::codec::Field::put(&self.settings)
                }
            }

            fn read(mut record: $crate::codec::record::$record) -> Result<Self, $crate::codec::DecodeError> {
                Ok(Self {
                    $($field: $crate::codec::Field::read(std::mem::take(&mut record.$field))
                        .map_err(|error| error.named(stringify!($field)))?,)*
                    settings: $crate::codec::Field::read(record)?,
                })
            }
        }
    };
}

/// A message that must be there.
macro_rules! required {
    ($value:ty => $record:ident) => {
        impl $crate::codec::Field<Option<$crate::codec::record::$record>> for $value {
            fn put(&self) -> Option<$crate::codec::record::$record> {
                Some($crate::codec::Field::put(self))
            }

            fn read(record: Option<$crate::codec::record::$record>) -> Result<Self, $crate::codec::DecodeError> {
                $crate::codec::Field::read(record.ok_or($crate::codec::WRONG)?)
            }
        }
    };
}

/// A closed set, whose members have the same names in the record.
macro_rules! numbered {
    ($value:ident: $($member:ident),+ $(,)?) => {
        impl $crate::codec::Field<i32> for $value {
            fn put(&self) -> i32 {
                match self { $(Self::$member => $crate::codec::record::$value::$member.into(),)+ }
            }

            fn read(number: i32) -> Result<Self, $crate::codec::DecodeError> {
                match $crate::codec::record::$value::try_from(number) {
                    $(Ok($crate::codec::record::$value::$member) => Ok(Self::$member),)+
                    Ok(_) => Err($crate::codec::WRONG),
                    Err(_) => Err($crate::codec::DecodeError::too_new(0)),
                }
            }
        }
    };
}

pub(crate) use {numbered, recorded, recorded_with_settings, required};

/// Values that stand in records as they are.
macro_rules! plain {
    ($($value:ty),+) => {
        $(impl Field<$value> for $value {
            fn put(&self) -> $value {
                self.clone()
            }

            fn read(record: $value) -> Result<Self, DecodeError> {
                Ok(record)
            }
        })+
    };
}

plain!(bool, u32, u64, String, Vec<u8>);

impl Field<u32> for u8 {
    fn put(&self) -> u32 {
        (*self).into()
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        number.try_into().map_err(|_| WRONG)
    }
}

impl Field<u32> for u16 {
    fn put(&self) -> u32 {
        (*self).into()
    }

    fn read(number: u32) -> Result<Self, DecodeError> {
        number.try_into().map_err(|_| WRONG)
    }
}

impl Field<Vec<u8>> for u128 {
    fn put(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn read(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        bytes.as_slice().try_into().map(Self::from_be_bytes).map_err(|_| WRONG)
    }
}

impl Field<Vec<u8>> for Uuid {
    fn put(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn read(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        Self::from_slice(&bytes).map_err(|_| WRONG)
    }
}

impl Field<Vec<u8>> for IpAddr {
    fn put(&self) -> Vec<u8> {
        match self {
            Self::V4(address) => address.octets().to_vec(),
            Self::V6(address) => address.octets().to_vec(),
        }
    }

    fn read(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        if let Ok(octets) = <[u8; 4]>::try_from(bytes.as_slice()) {
            return Ok(Self::from(octets));
        }
        <[u8; 16]>::try_from(bytes.as_slice()).map(Self::from).map_err(|_| WRONG)
    }
}

impl Field<String> for SocketAddr {
    fn put(&self) -> String {
        self.to_string()
    }

    fn read(text: String) -> Result<Self, DecodeError> {
        text.parse().map_err(|_| WRONG)
    }
}

impl<R, T: Field<R>> Field<Option<R>> for Option<T> {
    fn put(&self) -> Option<R> {
        self.as_ref().map(Field::put)
    }

    fn read(record: Option<R>) -> Result<Self, DecodeError> {
        record.map(Field::read).transpose()
    }
}

impl<R, T: Field<R>> Field<Vec<R>> for Vec<T> {
    fn put(&self) -> Vec<R> {
        self.iter().map(Field::put).collect()
    }

    fn read(records: Vec<R>) -> Result<Self, DecodeError> {
        records.into_iter().map(Field::read).collect()
    }
}

/// Where no entries stand for "as it was".
impl<R, T: Field<R>> Field<Vec<R>> for Option<Vec<T>> {
    fn put(&self) -> Vec<R> {
        self.iter().flatten().map(Field::put).collect()
    }

    fn read(records: Vec<R>) -> Result<Self, DecodeError> {
        if records.is_empty() { Ok(None) } else { Field::read(records).map(Some) }
    }
}

/// Where 0 stands for none.
impl Field<u64> for Option<u64> {
    fn put(&self) -> u64 {
        self.unwrap_or_default()
    }

    fn read(number: u64) -> Result<Self, DecodeError> {
        Ok((number != 0).then_some(number))
    }
}
