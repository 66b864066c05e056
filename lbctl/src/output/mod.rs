//! Data for people (tables) and for programs (JSON, YAML): one object keyed by the plural noun, and in it the API's own
//! messages, fields as in the .proto files and enums in lower case. What the API gains is printed without a change here.

pub(crate) mod views;

use std::io::{self, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::{
    cli::Format,
    exit::{Failure, complain},
};

/// Something with a row in a table.
pub(crate) trait Row: Serialize {
    const COLUMNS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

/// Something that is told in a few lines.
pub(crate) trait Summary: Serialize {
    fn summary(&self) -> String;
}

/// Prints a list.
pub(crate) fn list<T: Row>(format: Format, noun: &'static str, rows: &[T]) -> Result<(), Failure> {
    match format {
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(T::COLUMNS.iter().map(|column| column.to_uppercase()));
            for row in rows {
                table.add_row(row.cells());
            }
            print(
                &table
                    .lines()
                    .map(|line| line.trim_end().strip_prefix(" ").unwrap_or_default().to_owned() + "\n")
                    .collect::<String>(),
            )
        }
        format => object(format, &std::collections::BTreeMap::from([(noun, rows)])),
    }
}

/// Prints an object as JSON or YAML.
pub(crate) fn object(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(io::Error::other)?,
        Format::Json | Format::Table => serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n",
    };
    print(&text)
}

/// Prints an object as JSON, in one line.
pub(crate) fn line(value: &impl Serialize) -> Result<(), Failure> {
    print(&(serde_json::to_string(value).map_err(io::Error::other)? + "\n"))
}

/// What a change came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Change {
    #[serde(skip)]
    pub(crate) what: String,
    pub(crate) revision: u64,
    pub(crate) unchanged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) request_id: String,
    /// What it does not do that its caller may expect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<String>,
}

/// Prints what a change came to.
pub(crate) fn change(format: Format, change: &Change) -> Result<(), Failure> {
    change.warnings.iter().for_each(|warning| complain(&format!("lbctl: warning: {warning}")));
    let printed = match format {
        Format::Table if change.unchanged => print(&format!("{}: unchanged\n", change.what)),
        Format::Table => print(&format!("{} (revision {})\n", change.what, change.revision)),
        format => object(format, change),
    };
    printed.map_err(Failure::after_change)
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()?;
    Ok(())
}
