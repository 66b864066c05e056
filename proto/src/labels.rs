//! Enums of the API as people and programs are shown them: in lower case, without the enum's own name.

use crate::v1;

/// Of a number that this version of the API does not have.
const UNKNOWN: &str = "unknown";

/// An enum of the API.
pub trait Label: TryFrom<i32> {
    /// The value's name: "active" of `ADMIN_STATE_ACTIVE`.
    fn label(self) -> &'static str;
}

/// The label of a field's number.
pub fn label<E: Label>(value: i32) -> &'static str {
    E::try_from(value).map_or(UNKNOWN, Label::label)
}

#[cfg(feature = "serde")]
pub(crate) fn by_label<E: Label, S: serde::Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(label::<E>(*value))
}

#[cfg(feature = "serde")]
pub(crate) fn optional_by_label<E: Label, S: serde::Serializer>(
    value: &Option<i32>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => by_label::<E, S>(value, serializer),
        None => serializer.serialize_none(),
    }
}

include!(concat!(env!("OUT_DIR"), "/labels.rs"));
