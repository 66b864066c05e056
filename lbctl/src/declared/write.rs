//! From messages to what a person or a program reads: the fields that can be set, in the order of the API, those that name a
//! row first.

use lb_proto::v1::{self, change::Row};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value as Field};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{
    Object,
    shapes::{BACKEND, SEGMENT, SERVICE, SETTINGS, SHAPES, Shape, VIP, labels, of_message},
};

/// A value that keeps the order of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => serializer.serialize_u64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => list.serialize(serializer),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (name, value) in entries {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

/// In one line, for people.
impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(text) if text.is_empty() => f.write_str("none"),
            Self::Text(text) => text.escape_debug().fmt(f),
            Self::List(list) if list.is_empty() => f.write_str("none"),
            Self::List(list) => {
                let all: Vec<String> = list.iter().map(ToString::to_string).collect();
                f.write_str(&all.join(", "))
            }
            Self::Map(entries) if entries.is_empty() => f.write_str("by default"),
            Self::Map(entries) => match entries.as_slice() {
                // Ports, as the command line takes them.
                [(first, Self::Text(protocol)), ends @ ..] if first == "protocol" => match ends {
                    [(_, Self::Number(low)), (_, Self::Number(high))] if low == high => write!(f, "{low}/{protocol}"),
                    [(_, Self::Number(low)), (_, Self::Number(high))] => write!(f, "{low}-{high}/{protocol}"),
                    _ => write!(f, "any/{protocol}"),
                },
                // A mapping around one list or mapping says nothing more than what is in it.
                [(name, inner @ (Self::List(_) | Self::Map(_)))] => match inner {
                    Self::Map(_) => write!(f, "{name} ({inner})"),
                    _ => inner.fmt(f),
                },
                entries => {
                    let all: Vec<String> = entries.iter().map(|(name, value)| format!("{name} {value}")).collect();
                    f.write_str(&all.join(" "))
                }
            },
        }
    }
}

/// A whole table, as a file that says it.
pub(crate) fn document(objects: &[Object], settings: Option<&Object>) -> Shown {
    let list = |shape: &'static Shape| {
        let of = objects.iter().filter(|object| object.shape == shape).map(|object| Shown::Map(object.shown()));
        (shape.plural.to_owned(), Shown::List(of.collect()))
    };
    let settings = settings.map(|object| (SETTINGS.plural.to_owned(), Shown::Map(object.shown())));
    Shown::Map(settings.into_iter().chain(SHAPES.into_iter().map(list)).collect())
}

impl Shown {
    /// Only the kinds of which there are rows: with the others 'apply --prune' would take all of theirs away.
    pub(crate) fn without_empty_lists(self) -> Self {
        match self {
            Self::Map(entries) => {
                let is_any = |(_, value): &(String, Self)| *value != Self::List(Vec::new());
                Self::Map(entries.into_iter().filter(is_any).collect())
            }
            other => other,
        }
    }
}

/// Which fields of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fields {
    /// Those that can be set.
    Settable,
    /// Those that the cluster sets, too, but for the revision, which every change moves.
    All,
}

impl Object {
    /// Its fields that can be set and that are.
    pub(crate) fn shown(&self) -> Vec<(String, Shown)> {
        self.fields(Fields::Settable)
    }

    /// Its fields that are set.
    pub(crate) fn fields(&self, which: Fields) -> Vec<(String, Shown)> {
        let all = match which {
            Fields::Settable => self.shape.settable(),
            Fields::All => self.shape.descriptor().fields().filter(|field| field.name() != "revision").collect(),
        };
        let of = all.into_iter().filter(|field| self.message.has_field(field));
        let shown = of.map(|field| (field.name().to_owned(), shown(&self.message.get_field(&field), &field)));
        // An empty text stands for "none", which a field that is left out does as well.
        shown.filter(|(_, value)| *value != Shown::Text(String::new())).collect()
    }
}

fn shown(value: &Field, field: &FieldDescriptor) -> Shown {
    match value {
        Field::Bool(value) => Shown::Bool(*value),
        Field::U32(value) => Shown::Number((*value).into()),
        Field::U64(value) => Shown::Number(*value),
        Field::String(text) => Shown::Text(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => Shown::Text(text.to_owned()),
            _ => Shown::List(bytes.iter().map(|byte| Shown::Number((*byte).into())).collect()),
        },
        Field::EnumNumber(number) => {
            let Kind::Enum(kind) = field.kind() else { return Shown::Number(0) };
            let label = labels(&kind).into_iter().find(|(value, _)| value == number);
            Shown::Text(label.map_or_else(|| number.to_string(), |(_, label)| label))
        }
        Field::List(list) => Shown::List(list.iter().map(|value| shown(value, field)).collect()),
        Field::Message(message) => Shown::Map(all_of(message)),
        other => unreachable!("the API has no field with {other}"),
    }
}

fn all_of(message: &DynamicMessage) -> Vec<(String, Shown)> {
    let descriptor = message.descriptor();
    let of = descriptor.fields().filter(|field| is_said(message, field));
    of.map(|field| (field.name().to_owned(), shown(&message.get_field(&field), &field))).collect()
}

/// Whether a field of a part of a row is written: a list also where it is empty, because it is what the part is about.
fn is_said(message: &DynamicMessage, field: &FieldDescriptor) -> bool {
    field.is_list() || message.has_field(field)
}

/// One row that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) shape: &'static str,
    pub(crate) key: Vec<String>,
    pub(crate) name: String,
    pub(crate) before: Option<Vec<(String, Shown)>>,
    pub(crate) after: Option<Vec<(String, Shown)>>,
}

/// What changes of those fields.
pub(crate) fn changes(changes: &[v1::Change], which: Fields) -> Vec<Changed> {
    let of = |change: &v1::Change| {
        macro_rules! sides {
            ($shape:expr, $of:expr) => {
                (
                    $of.before.as_ref().map(|row| of_message($shape, row)),
                    $of.after.as_ref().map(|row| of_message($shape, row)),
                )
            };
        }
        let (before, after) = match change.row.as_ref()? {
            Row::Vip(of) => sides!(&VIP, of),
            Row::Service(of) => sides!(&SERVICE, of),
            Row::Backend(of) => sides!(&BACKEND, of),
            Row::Segment(of) => sides!(&SEGMENT, of),
            Row::Settings(of) => sides!(&SETTINGS, of),
        };
        let named = after.as_ref().or(before.as_ref())?;
        let (shape, key, name) = (named.shape.plural, named.key(), named.name());
        let rest = |object: &Object| {
            let key = object.shape.key;
            object.fields(which).into_iter().filter(|(name, _)| !key.contains(&name.as_str())).collect::<Vec<_>>()
        };
        // A VIP that its owner has to let go of first is marked.
        let is_going = which == Fields::Settable
            && after.as_ref().is_some_and(|row| {
                row.message.get_field_by_name("deleting").and_then(|value| value.as_bool()).unwrap_or_default()
            });
        let (before, after) = (before.as_ref().map(rest), after.as_ref().filter(|_| !is_going).map(rest));
        (before != after).then_some(Changed { shape, key, name, before, after })
    };
    changes.iter().filter_map(of).collect()
}

impl Changed {
    /// In one line, as a diff has it in several.
    pub(crate) fn line(&self) -> (char, String) {
        let mut lines = self.lines().into_iter();
        let (sign, name) = lines.next().unwrap_or((' ', self.name.clone()));
        let fields: Vec<String> = lines.map(|(_, line)| line.trim_start().to_owned()).collect();
        (sign, if fields.is_empty() { name } else { format!("{name}  {}", fields.join(", ")) })
    }

    /// As the lines of a diff, each with its sign: what comes, what goes, what becomes what.
    pub(crate) fn lines(&self) -> Vec<(char, String)> {
        let field = |(name, value): &(String, Shown)| format!("    {name}: {value}");
        match (&self.before, &self.after) {
            (None, None) => Vec::new(),
            (None, Some(after)) => {
                let first = ('+', self.name.clone());
                [first].into_iter().chain(after.iter().map(|of| ('+', field(of)))).collect()
            }
            (Some(_), None) => vec![('-', self.name.clone())],
            (Some(before), Some(after)) => {
                let value = |of: &[(String, Shown)], name: &str| {
                    of.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
                };
                let mut names: Vec<&String> = before.iter().chain(after).map(|(name, _)| name).collect();
                names.sort_unstable();
                names.dedup();
                let differs = |name: &&String| value(before, name) != value(after, name);
                let side = |of: Option<Shown>| of.map_or("none".to_owned(), |value| value.to_string());
                let line = |name: &String| {
                    ('~', format!("    {name}: {} -> {}", side(value(before, name)), side(value(after, name))))
                };
                [('~', self.name.clone())].into_iter().chain(names.into_iter().filter(differs).map(line)).collect()
            }
        }
    }
}
