//! The JSON schema of what a file may say (draft 2020-12), for editors and for those who generate files.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::shapes::{SETTINGS, SHAPES, Shape, labels};

/// The whole schema.
pub(crate) fn schema() -> Value {
    let rows = |shape: &&'static Shape| {
        let row = object(&shape.settable(), shape.key, shape);
        (shape.plural.to_owned(), json!({ "type": ["array", "null"], "items": row }))
    };
    let mut properties: Map<String, Value> = SHAPES.iter().map(rows).collect();
    properties.insert(SETTINGS.plural.to_owned(), object(&SETTINGS.settable(), &[], &SETTINGS));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A table of lbd, as 'lbctl apply' reads it and 'lbctl export' prints it",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn object(fields: &[FieldDescriptor], required: &[&str], shape: &Shape) -> Value {
    let mut object = of_fields(fields.iter().cloned());
    object["required"] = json!(required);
    object["title"] = json!(shape.singular);
    object
}

fn of_fields(fields: impl Iterator<Item = FieldDescriptor>) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let single = single(&field);
        let of = if field.is_list() { json!({ "type": "array", "items": single }) } else { single };
        // A field that is null is as one that is not there.
        let mut or_null = json!({ "anyOf": [of, { "type": "null" }] });
        if let Some(said) = comment(&field) {
            or_null["description"] = json!(said);
        }
        properties.insert(field.name().to_owned(), or_null);
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn single(field: &FieldDescriptor) -> Value {
    match field.kind() {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Uint32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        Kind::Uint64 => json!({ "type": "integer", "minimum": 0 }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bytes => json!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 255 } },
        ] }),
        Kind::Enum(kind) => {
            let names: Vec<String> = labels(&kind).into_iter().skip(1).map(|(_, label)| label).collect();
            json!({ "enum": names })
        }
        Kind::Message(message) => of_message(&message),
        other => unreachable!("the API has no field of the kind {other:?}"),
    }
}

fn of_message(message: &MessageDescriptor) -> Value {
    of_fields(message.fields())
}

/// What the API's files say of a field.
fn comment(field: &FieldDescriptor) -> Option<String> {
    let file = field.parent_file();
    let of = file.file_descriptor_proto().source_code_info.as_ref()?;
    let location = of.location.iter().find(|location| location.path == field.path())?;
    let text = location.leading_comments().split_whitespace().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}
