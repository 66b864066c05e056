//! Takes values out of a TOML table and collects what is wrong with them. What nobody has taken at the
//! end is an unknown key.

use std::{fmt, ops::RangeInclusive};

use toml::{Table, Value};

/// One fault and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) key: String,
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// One `[section]`, or the file.
pub(super) struct Section {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl Section {
    pub(super) fn root(table: Table) -> Self {
        Self { path: String::new(), table, known: Vec::new(), faults: Vec::new() }
    }

    /// A section; an absent one is empty.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        self.known.push(key);
        let table = match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.fault(key, &format!("is a section, [{key}], not a {}", other.type_str()));
                Table::new()
            }
        };
        Self { path: format!("{key}."), table, known: Vec::new(), faults: Vec::new() }
    }

    /// Whether it is there and nobody has taken it yet.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn required<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.known.push(key);
            self.fault(key, "is required");
            return None;
        }
        self.optional(key, parse)
    }

    pub(super) fn optional<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.take(key)?;
        match value.as_str().map(parse) {
            Some(Ok(value)) => Some(value),
            Some(Err(problem)) => {
                self.fault(key, &problem);
                None
            }
            None => {
                self.fault(key, &format!("is a text in quotes, not a {}", value.type_str()));
                None
            }
        }
    }

    /// A text or a list of texts.
    pub(super) fn list<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let values = match value {
            Value::Array(values) => values,
            single => vec![single],
        };
        let mut parsed = Vec::new();
        for value in values {
            match value.as_str().map(&parse) {
                Some(Ok(value)) => parsed.push(value),
                Some(Err(problem)) => self.fault(key, &problem),
                None => self.fault(key, &format!("holds texts in quotes, not a {}", value.type_str())),
            }
        }
        parsed
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Boolean(flag)) => flag,
            Some(other) => {
                self.fault(key, &format!("is true or false, not a {}", other.type_str()));
                default
            }
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Option<usize> {
        let value = self.take(key)?;
        self.integer_of(key, &range, value)
    }

    /// A number or a list of numbers.
    pub(super) fn integers(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Vec<usize> {
        let values = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(single) => vec![single],
        };
        values.into_iter().filter_map(|value| self.integer_of(key, &range, value)).collect()
    }

    fn integer_of(&mut self, key: &'static str, range: &RangeInclusive<usize>, value: Value) -> Option<usize> {
        match value {
            Value::Integer(number) => {
                let within = usize::try_from(number).ok().filter(|number| range.contains(number));
                if within.is_none() {
                    self.fault(key, &format!("{number} is not from {} to {}", range.start(), range.end()));
                }
                within
            }
            other => {
                self.fault(key, &format!("is a number, not a {}", other.type_str()));
                None
            }
        }
    }

    pub(super) fn fault(&mut self, key: &str, problem: &str) {
        self.faults.push(Fault { key: format!("{}{key}", self.path), problem: problem.to_owned() });
    }

    pub(super) fn has_fault(&self, key: &str) -> bool {
        self.faults.iter().any(|fault| fault.key == format!("{}{key}", self.path))
    }

    /// Takes over the faults of a section that has been read.
    pub(super) fn take_faults(&mut self, section: Self) {
        self.faults.extend(section.finish());
    }

    /// All faults, unknown keys among them.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            let known = self.known.join(", ");
            self.fault(&key, &format!("is not known here; known are: {known}"));
        }
        self.faults
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }
}
