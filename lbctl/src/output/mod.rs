//! Data for people (tables) and for programs (JSON, YAML): one object keyed by the plural noun, and in it the API's own
//! messages, fields as in the .proto files and enums in lower case. What the API gains is printed without a change here.

pub(crate) mod progress;
pub(crate) mod views;

use std::io::{self, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{
    cli::Format,
    exit::{Failure, complain},
};

/// Stands in a cell where there is nothing.
pub(crate) const NOTHING: &str = "-";

/// Something with a row in a table.
pub(crate) trait Row: Serialize {
    const COLUMNS: &'static [&'static str];
    /// Those that only a wide table has: the others fit into 80 columns.
    const WIDE: &'static [&'static str] = &[];
    fn cells(&self) -> Vec<String>;
    /// Those that are left out where no row has anything in them.
    const RARE: &'static [&'static str] = &[];
    /// What names it, as commands take it.
    fn name(&self) -> String {
        self.cells().swap_remove(0)
    }
}

/// Something that is told in a few lines.
pub(crate) trait Summary: Serialize {
    fn summary(&self) -> String;
}

/// Prints a list.
pub(crate) fn list<T: Row>(format: Format, noun: &'static str, rows: &[T]) -> Result<(), Failure> {
    match format {
        Format::Name => print(&rows.iter().map(|row| row.name() + "\n").collect::<String>()),
        Format::Table | Format::Wide => {
            let all: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
            let has_any = |at: usize| all.iter().any(|cells| cells.get(at).is_some_and(|cell| cell != NOTHING));
            let shown: Vec<usize> =
                columns::<T>(format).filter(|at| !T::RARE.contains(&T::COLUMNS[*at]) || has_any(*at)).collect();
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(shown.iter().map(|at| T::COLUMNS[*at].to_uppercase()));
            for cells in &all {
                table.add_row(shown.iter().filter_map(|at| cells.get(*at)));
            }
            // On a terminal the last column, which is often a reason, is broken between words and not in them.
            if format != Format::Wide
                && io::stdout().is_terminal()
                && let Ok((columns, _)) = ratatui::crossterm::terminal::size()
            {
                table.set_width(columns);
                table.set_content_arrangement(ContentArrangement::Dynamic);
                let firm = shown.len().saturating_sub(1);
                table.set_constraints(std::iter::repeat_n(ColumnConstraint::ContentWidth, firm));
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

/// Where each column stands that this format has.
fn columns<T: Row>(format: Format) -> impl Iterator<Item = usize> {
    (0..T::COLUMNS.len()).filter(move |at| format == Format::Wide || !T::WIDE.contains(&T::COLUMNS[*at]))
}

/// Prints a row by itself, as it comes.
pub(crate) fn row<T: Row>(format: Format, row: &T) -> Result<(), Failure> {
    let cells = row.cells();
    let shown: Vec<&str> = columns::<T>(format).filter_map(|at| cells.get(at).map(String::as_str)).collect();
    print(&(shown.join("  ") + "\n"))
}

/// Prints an object as JSON or YAML.
pub(crate) fn object(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(io::Error::other)?,
        _ => serde_json::to_string_pretty(value).map_err(io::Error::other)? + "\n",
    };
    print(&text)
}

/// Prints one of many as it comes, so that whoever reads them need not wait for the end: a line of JSON, or a document of YAML.
pub(crate) fn one_of_many(format: Format, value: &impl Serialize) -> Result<(), Failure> {
    match format {
        Format::Yaml => {
            print("---\n")?;
            object(format, value)
        }
        _ => print(&(serde_json::to_string(value).map_err(io::Error::other)? + "\n")),
    }
}

/// What a change came to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Change {
    #[serde(skip)]
    pub(crate) what: String,
    /// It removes something: unchanged means that there is none.
    #[serde(skip)]
    pub(crate) removes: bool,
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
        Format::Json | Format::Yaml => object(format, change),
        _ if change.unchanged && change.removes => print(&format!("{}: unchanged: there is none\n", change.what)),
        _ if change.unchanged => print(&format!("{}: unchanged\n", change.what)),
        _ => print(&format!("{} (revision {})\n", change.what, change.revision)),
    };
    printed.map_err(Failure::after_change)
}

/// Prints a line of what changes behind its sign: what comes (+), what goes (-), what becomes something else (~). In colours where
/// a person looks at it.
pub(crate) fn signed(sign: char, line: &str) -> Result<(), Failure> {
    let style = Style::new().fg_color(Some(match sign {
        '+' => AnsiColor::Green.into(),
        '-' => AnsiColor::Red.into(),
        _ => AnsiColor::Yellow.into(),
    }));
    let mut stdout = anstream::AutoStream::auto(io::stdout().lock());
    writeln!(stdout, "{style}{sign} {line}{style:#}")?;
    stdout.flush()?;
    Ok(())
}

/// How much something wants to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    Now,
    Soon,
    None,
}

/// Prints a line whose beginning is coloured where a person looks at it.
pub(crate) fn heeded(attention: Attention, beginning: &str, rest: &str) -> Result<(), Failure> {
    let style = match attention {
        Attention::Now => Style::new().bold().fg_color(Some(AnsiColor::Red.into())),
        Attention::Soon => Style::new().bold().fg_color(Some(AnsiColor::Yellow.into())),
        Attention::None => Style::new().bold(),
    };
    let mut stdout = anstream::AutoStream::auto(io::stdout().lock());
    writeln!(stdout, "{style}{beginning}{style:#}{rest}")?;
    stdout.flush()?;
    Ok(())
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
