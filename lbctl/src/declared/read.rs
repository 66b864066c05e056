//! From a file to messages. All that is wrong is said at once, each with its line; nothing is left out without a word.

use std::collections::HashMap;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value as Field};

use super::{
    Document, Object,
    shapes::{SETTINGS, SHAPES, Shape, labels},
    tree::{self, Node, Value},
};

/// So many faults are told.
const MOST_FAULTS: usize = 20;
/// Names that differ by more are no likely mistake for each other.
const NEAR: f64 = 0.7;

/// What a file says, or what is wrong with it: one line each.
pub(crate) fn read(text: &str) -> Result<Document, Vec<String>> {
    let root = tree::parse(text).map_err(|fault| vec![fault])?;
    let mut reader = Reader::default();
    let document = reader.document(&root);
    if reader.faults.is_empty() {
        return Ok(document);
    }
    let more = reader.faults.len().saturating_sub(MOST_FAULTS);
    reader.faults.sort_by_key(|(line, _)| *line);
    let told = reader.faults.into_iter().take(MOST_FAULTS).map(|(line, fault)| format!("line {line}: {fault}"));
    Err(told.chain((more > 0).then(|| format!("and {more} more"))).collect())
}

#[derive(Default)]
struct Reader {
    faults: Vec<(u64, String)>,
}

impl Reader {
    fn fault(&mut self, line: u64, fault: impl Into<String>) {
        self.faults.push((line, fault.into()));
    }

    fn document(&mut self, root: &Node) -> Document {
        let mut document = Document::default();
        let entries: &[_] = match &root.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            other => {
                let kinds = kinds().join(", ");
                self.fault(root.line, format!("it is {}, and not a mapping with {kinds}", other.kind()));
                &[]
            }
        };
        for (key, node) in entries {
            if let Some(shape) = SHAPES.into_iter().find(|shape| shape.plural == key) {
                document.listed.push(shape);
                document.objects.extend(self.rows(shape, node));
            } else if key == SETTINGS.plural {
                document.settings = self.row(&SETTINGS, node);
            } else {
                let near = nearest(key, kinds());
                self.fault(node.line, format!("there is no '{key}' in a table{near}"));
            }
        }
        self.no_row_twice(&document.objects);
        // Each after what it needs, wherever it stands.
        document.objects.sort_by_key(|object| SHAPES.iter().position(|shape| *shape == object.shape));
        document
    }

    fn rows(&mut self, shape: &'static Shape, node: &Node) -> Vec<Object> {
        match &node.value {
            Value::List(rows) => rows.iter().filter_map(|row| self.row(shape, row)).collect(),
            Value::Null => Vec::new(),
            other => {
                self.fault(node.line, format!("'{}' is {}, and not a list", shape.plural, other.kind()));
                Vec::new()
            }
        }
    }

    fn row(&mut self, shape: &'static Shape, node: &Node) -> Option<Object> {
        let message = self.message(&shape.descriptor(), node, Some(shape))?;
        let object = Object { shape, line: node.line, message };
        for key in shape.key {
            if object.text(key).is_empty() {
                self.fault(node.line, format!("a {} needs '{key}'", shape.singular));
                return None;
            }
        }
        Some(object)
    }

    fn no_row_twice(&mut self, objects: &[Object]) {
        let mut first = HashMap::new();
        for object in objects {
            if let Some(line) = first.insert((object.shape.plural, object.key()), object.line) {
                self.fault(object.line, format!("{} stands in line {line} already", object.name()));
            }
        }
    }

    /// A message; `shape` where it is a whole row.
    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
        shape: Option<&Shape>,
    ) -> Option<DynamicMessage> {
        let what = descriptor.name().to_lowercase();
        let Value::Map(entries) = &node.value else {
            self.fault(
                node.line,
                format!("it is {}, and not a mapping with the fields of a {what}", node.value.kind()),
            );
            return None;
        };
        let mut message = DynamicMessage::new(descriptor.clone());
        for (name, value) in entries {
            match descriptor.get_field_by_name(name) {
                None => {
                    let settable = |field: &FieldDescriptor| shape.is_none_or(|shape| shape.is_settable(field));
                    let names = descriptor.fields().filter(settable).map(|field| field.name().to_owned()).collect();
                    let near = nearest(name, names);
                    let what = shape.map_or(what.as_str(), |shape| shape.singular);
                    self.fault(value.line, format!("there is no field '{name}' in a {what}{near}"));
                }
                Some(field) if shape.is_some_and(|shape| !shape.is_settable(&field)) => {
                    self.fault(value.line, format!("'{name}' is set by the cluster: leave it out"));
                }
                Some(field) => {
                    if let Some(value) = self.field(&field, value) {
                        message.set_field(&field, value);
                    }
                }
            }
        }
        Some(message)
    }

    fn field(&mut self, field: &FieldDescriptor, node: &Node) -> Option<Field> {
        match &node.value {
            // As if it were not there.
            Value::Null => None,
            Value::List(rows) if field.is_list() => {
                Some(Field::List(rows.iter().filter_map(|row| self.single(field, row)).collect()))
            }
            other if field.is_list() => {
                self.fault(node.line, format!("'{}' is {}, and not a list", field.name(), other.kind()));
                None
            }
            _ => self.single(field, node),
        }
    }

    fn single(&mut self, field: &FieldDescriptor, node: &Node) -> Option<Field> {
        let name = field.name();
        let wanted = match (field.kind(), &node.value) {
            (Kind::Message(descriptor), _) => {
                return self.message(&descriptor, node, None).map(Field::Message);
            }
            (Kind::String, Value::Text(text)) => return Some(Field::String(text.clone())),
            (Kind::String, Value::Integer(_) | Value::Float(_) | Value::Bool(_)) => "a text: put it in quotes",
            (Kind::String, _) => "a text",
            (Kind::Bool, Value::Bool(value)) => return Some(Field::Bool(*value)),
            (Kind::Bool, _) => "true or false",
            (Kind::Uint32, Value::Integer(value)) => match u32::try_from(*value) {
                Ok(value) => return Some(Field::U32(value)),
                Err(_) => "a number from 0 to 4294967295",
            },
            (Kind::Uint64, Value::Integer(value)) => match u64::try_from(*value) {
                Ok(value) => return Some(Field::U64(value)),
                Err(_) => "a number from 0 to 18446744073709551615",
            },
            (Kind::Uint32 | Kind::Uint64, _) => "a whole number",
            (Kind::Bytes, Value::Text(text)) => return Some(Field::Bytes(text.clone().into_bytes().into())),
            (Kind::Bytes, Value::List(bytes)) => {
                let byte = |node: &Node| match node.value {
                    Value::Integer(value) => u8::try_from(value).ok(),
                    _ => None,
                };
                match bytes.iter().map(byte).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => return Some(Field::Bytes(bytes.into())),
                    None => "a text, or a list of numbers from 0 to 255",
                }
            }
            (Kind::Bytes, _) => "a text, or a list of numbers from 0 to 255",
            (Kind::Enum(kind), Value::Text(text)) => {
                let all = labels(&kind);
                let wanted = text.replace('-', "_");
                if let Some((number, _)) = all.iter().skip(1).find(|(_, label)| *label == wanted) {
                    return Some(Field::EnumNumber(*number));
                }
                let names: Vec<String> = all.into_iter().skip(1).map(|(_, label)| label).collect();
                let (near, names) = (nearest(&wanted, names.clone()), names.join(", "));
                self.fault(node.line, format!("'{name}' is {names}, and not '{text}'{near}"));
                return None;
            }
            (Kind::Enum(kind), _) => {
                let names: Vec<String> = labels(&kind).into_iter().skip(1).map(|(_, label)| label).collect();
                self.fault(node.line, format!("'{name}' is {}, and not {}", names.join(", "), node.value.kind()));
                return None;
            }
            (other, _) => unreachable!("the API has no field of the kind {other:?}"),
        };
        let found = match &node.value {
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            other => other.kind().to_owned(),
        };
        self.fault(node.line, format!("'{name}' is {found}, and must be {wanted}"));
        None
    }
}

fn kinds() -> Vec<String> {
    SHAPES.iter().map(|shape| shape.plural).chain([SETTINGS.plural]).map(ToOwned::to_owned).collect()
}

/// The name that may have been meant, as the end of a sentence.
fn nearest(name: &str, of: Vec<String>) -> String {
    let near = of.into_iter().map(|known| (strsim::jaro_winkler(name, &known), known));
    let best = near.filter(|(score, _)| *score >= NEAR).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, known)| format!(" (did you mean '{known}'?)")).unwrap_or_default()
}
