//! What has to be sent so that a table becomes what a file says: rows that are not there are created, those that are get
//! exactly the fields of the file, and with pruning those go that the file does not have. Which of that changes anything is
//! the cluster's to say: it knows what each default is.

use std::collections::{BTreeMap, BTreeSet};

use lb_proto::v1;
use prost_reflect::{DynamicMessage, Value as Field};

use super::{
    Document, Object,
    shapes::{BACKEND, SERVICE, SHAPES, Shape, canonical, descriptor},
};

/// One mutation, and the row that it is for.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) object: Object,
    pub(crate) mutation: v1::Mutation,
}

impl Planned {
    /// Which row it is for.
    pub(crate) fn row(&self) -> (&'static str, Vec<String>) {
        (self.object.shape.plural, self.object.key())
    }
}

/// What becomes of rows that stand in the way of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// Those that it does not have stay.
    Stay,
    /// They go, of the kinds that it lists.
    Go,
    /// So do those of which something is otherwise that never changes: they are made anew, with the flows that they had lost.
    MadeAnew,
}

/// The mutations from a table to a file, or what cannot be changed: one line each.
pub(crate) fn plan(wanted: &Document, table: &[Object], others: Others) -> Result<Vec<Planned>, Vec<String>> {
    let key = |object: &Object| (object.shape.plural, object.key());
    let present: BTreeMap<_, _> = table.iter().map(|object| (key(object), object)).collect();
    let named: BTreeSet<_> = wanted.objects.iter().map(key).collect();
    let differs = |object: &&Object| present.get(&key(object)).is_some_and(|found| !fixed(object, found).is_empty());
    let anew: BTreeSet<String> = match others {
        Others::MadeAnew => wanted.objects.iter().filter(differs).map(|object| object.text("name")).collect(),
        Others::Stay | Others::Go => BTreeSet::new(),
    };
    // Services alone have what never changes; their backends go with them.
    let is_anew = |object: &Object| {
        (object.shape == &SERVICE && anew.contains(&object.text("name")))
            || (object.shape == &BACKEND && anew.contains(&object.text("service")))
    };
    let is_pruned = |object: &&Object| {
        is_anew(object)
            || (others != Others::Stay && wanted.listed.contains(&object.shape) && !named.contains(&key(object)))
    };
    // Those that need others go before them.
    let rank = |object: &Object| SHAPES.iter().position(|shape| *shape == object.shape);
    let mut gone: Vec<&Object> = table.iter().filter(is_pruned).collect();
    gone.sort_by_key(|object| std::cmp::Reverse(rank(object)));
    let mut planned: Vec<Planned> = gone.into_iter().map(|object| planned(object, "delete", delete(object))).collect();
    let mut faults = Vec::new();
    for object in &wanted.objects {
        match present.get(&key(object)).filter(|found| !is_anew(found)) {
            None => planned.push(self::planned(object, "create", create(object))),
            Some(found) => {
                faults.extend(fixed(object, found));
                planned.push(self::planned(object, "update", update(object)));
            }
        }
    }
    planned.extend(wanted.settings.iter().map(|settings| self::planned(settings, "update", settings.message.clone())));
    if faults.is_empty() { Ok(planned) } else { Err(faults) }
}

/// What a file wants otherwise that is never changed.
fn fixed(object: &Object, found: &Object) -> Vec<String> {
    let shown = |object: &Object, field: &str| {
        let value = object.message.get_field_by_name(field)?;
        Some(value.as_str().map_or_else(|| value.to_string(), canonical))
    };
    // A field that is not there leaves it as it is.
    let is_given = |field: &&&str| object.message.has_field_by_name(field);
    let told = |field: &&str| {
        let (wanted, now) = (shown(object, field)?, shown(found, field)?);
        let name = object.name();
        (wanted != now).then(|| {
            format!(
                "line {}: '{field}' of {name} is {now} for as long as it exists, and the file says {wanted}: remove it first, or \
                 give the new one another name",
                object.line
            )
        })
    };
    object.shape.fixed.iter().filter(is_given).filter_map(told).collect()
}

fn planned(object: &Object, verb: &str, request: DynamicMessage) -> Planned {
    let mut mutation = DynamicMessage::new(descriptor("lb.v1.Mutation"));
    mutation.set_field_by_name(&format!("{verb}_{}", object.shape.singular), Field::Message(request));
    let mutation = mutation.transcode_to().expect("a message is what its descriptor says");
    Planned { object: object.clone(), mutation }
}

fn create(object: &Object) -> DynamicMessage {
    let mut request = request("Create", object.shape);
    request.set_field_by_name(object.shape.singular, Field::Message(object.message.clone()));
    request
}

fn delete(object: &Object) -> DynamicMessage {
    let mut request = request("Delete", object.shape);
    for key in object.shape.key {
        request.set_field_by_name(key, Field::String(object.text(key)));
    }
    request
}

/// With a mask of all fields: those that the file does not have get their defaults.
fn update(object: &Object) -> DynamicMessage {
    let mut request = DynamicMessage::new(object.shape.update());
    let mut mask = Vec::new();
    for field in object.shape.settable() {
        let Some(of_request) = object.shape.update().get_field_by_name(field.name()) else { continue };
        if object.message.has_field(&field) {
            request.set_field(&of_request, object.message.get_field(&field).into_owned());
        }
        if !object.shape.key.contains(&field.name()) {
            mask.push(Field::String(field.name().to_owned()));
        }
    }
    let mut paths = DynamicMessage::new(descriptor("google.protobuf.FieldMask"));
    paths.set_field_by_name("paths", Field::List(mask));
    request.set_field_by_name("update_mask", Field::Message(paths));
    request
}

fn request(verb: &str, shape: &Shape) -> DynamicMessage {
    let name = shape.descriptor().name().to_owned();
    DynamicMessage::new(descriptor(&format!("lb.v1.{verb}{name}Request")))
}
