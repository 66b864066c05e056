//! The screen, and what the keys do.

use lb_proto::{label, v1};
use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::data::Data;

/// Between two columns.
const GAP: u16 = 1;
/// Rows that a page key goes by.
const PAGE: u16 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Tab {
    #[default]
    Vips,
    Backends,
    Nodes,
    Drops,
}

impl Tab {
    const ALL: [Self; 4] = [Self::Vips, Self::Backends, Self::Nodes, Self::Drops];

    fn name(self) -> &'static str {
        match self {
            Self::Vips => "VIPs",
            Self::Backends => "backends",
            Self::Nodes => "nodes",
            Self::Drops => "drops",
        }
    }

    fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    /// The heads of its columns, and their widths: together they fit into 80.
    fn columns(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Vips => {
                &[("VIP", 16), ("OWNER", 10), ("PACKETS/S", 10), ("MBIT/S", 7), ("NEW/S", 7), ("PROBLEM", 22)]
            }
            Self::Backends => {
                &[("BACKEND", 16), ("SERVICE", 12), ("HEALTH", 12), ("PACKETS/S", 10), ("NEW/S", 8), ("WHY", 16)]
            }
            Self::Nodes => &[
                ("NODE", 10),
                ("STATE", 12),
                ("VIPS", 6),
                ("AWAY", 9),
                ("RECEIVED/S", 11),
                ("FORWARDED/S", 12),
                ("DROPPED/S", 10),
            ],
            Self::Drops => &[("DROPPED", 28), ("SINCE THE START", 18), ("IN A SECOND", 12)],
        }
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    On,
    Away,
}

/// Where the reader is.
#[derive(Debug, Default)]
pub(super) struct Screen {
    tab: Tab,
    table: TableState,
    /// What has most comes first; else the order is that of the table.
    by_rate: bool,
    /// Only rows that have this in them.
    filter: String,
    /// Letters go to the filter.
    is_filtering: bool,
}

/// A row, before it is drawn.
struct Shown {
    cells: Vec<String>,
    rate: f64,
    is_bad: bool,
}

impl Screen {
    /// What a key does.
    pub(super) fn press(&mut self, key: KeyEvent) -> Go {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Go::Away;
        }
        if self.is_filtering {
            match key.code {
                KeyCode::Enter => self.is_filtering = false,
                KeyCode::Esc => (self.is_filtering, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            return Go::On;
        }
        match key.code {
            KeyCode::Char('q') => return Go::Away,
            KeyCode::Esc if self.filter.is_empty() => return Go::Away,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('/') => self.is_filtering = true,
            KeyCode::Char('s') => self.by_rate = !self.by_rate,
            KeyCode::Tab | KeyCode::Right => self.go_to(self.tab.next()),
            KeyCode::BackTab | KeyCode::Left => self.go_to(self.tab.next().next().next()),
            KeyCode::Char(number @ '1'..='4') => self.go_to(Tab::ALL[number as usize - '1' as usize]),
            KeyCode::Down | KeyCode::Char('j') => self.table.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.table.select_previous(),
            KeyCode::PageDown => self.table.scroll_down_by(PAGE),
            KeyCode::PageUp => self.table.scroll_up_by(PAGE),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        Go::On
    }

    fn go_to(&mut self, tab: Tab) {
        self.tab = tab;
        self.table = TableState::default();
    }

    /// `trouble`: why what is shown is not of now.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, data: Option<&Data>, trouble: Option<&str>) {
        let rows = [
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ];
        let [head, health, tabs, body, foot] = Layout::vertical(rows).areas(frame.area());
        let (bold, quiet) = (Style::new().add_modifier(Modifier::BOLD), Style::new().add_modifier(Modifier::DIM));
        frame.render_widget(Paragraph::new(self.foot(data)).style(quiet), foot);
        let names = Tab::ALL.into_iter().enumerate().flat_map(|(at, tab)| {
            let style = if tab == self.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            [Span::styled(format!(" {} {} ", at + 1, tab.name()), style), Span::raw(" ")]
        });
        frame.render_widget(Line::from_iter(names), tabs);
        let Some(data) = data else {
            let text = trouble.unwrap_or("asking...").to_owned();
            return frame.render_widget(Paragraph::new(text), head);
        };
        let status = &data.status;
        let leader = if status.leader.is_empty() { "nobody" } else { &status.leader };
        let of =
            format!("  seen by {}  leader {leader} (term {})  revision {}", status.node, status.term, status.revision);
        frame.render_widget(Line::from_iter([Span::styled(status.cluster.clone(), bold), Span::raw(of)]), head);
        let (text, colour) = match (trouble, status.warnings.as_slice()) {
            (Some(trouble), _) => (format!("not of now: {trouble}"), Color::Red),
            (None, []) => ("all is well".to_owned(), Color::Green),
            (None, [one]) => (one.clone(), Color::Red),
            (None, [first, more @ ..]) => (format!("{first}  (and {} more: lbctl status)", more.len()), Color::Red),
        };
        frame.render_widget(Span::styled(text, Style::new().fg(colour)), health);
        self.draw_table(frame, body, data);
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: ratatui::layout::Rect, data: &Data) {
        let mut rows = match self.tab {
            Tab::Vips => vips(data),
            Tab::Backends => backends(data),
            Tab::Nodes => nodes(data),
            Tab::Drops => drops(data),
        };
        let wanted = self.filter.to_lowercase();
        rows.retain(|row| row.cells.iter().any(|cell| cell.to_lowercase().contains(&wanted)));
        if self.by_rate {
            rows.sort_by(|a, b| b.rate.total_cmp(&a.rate));
        }
        let columns = self.tab.columns();
        let head = Row::new(columns.iter().map(|(name, _)| Cell::from(*name)))
            .style(Style::new().add_modifier(Modifier::BOLD));
        let fixed: u16 = columns.iter().map(|(_, width)| width + GAP).sum();
        // The last column has what is left of a wide terminal.
        let room = |at: usize| match columns.get(at) {
            Some((_, width)) if at + 1 == columns.len() => width + area.width.saturating_sub(fixed - GAP),
            Some((_, width)) => *width,
            None => 0,
        };
        let rows = rows.into_iter().map(|Shown { cells, is_bad, .. }| {
            let cells = cells.into_iter().enumerate().map(|(at, cell)| fitting(cell, room(at).into()));
            Row::new(cells).style(if is_bad { Style::new().fg(Color::Red) } else { Style::new() })
        });
        let table = Table::new(rows, (0..columns.len()).map(|at| Constraint::Length(room(at))))
            .column_spacing(GAP)
            .header(head)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn foot(&self, data: Option<&Data>) -> String {
        if self.is_filtering {
            return format!("rows with: {}_   Enter keeps it, Esc ends it", self.filter);
        }
        let order = if self.by_rate { "by name" } else { "by rate" };
        let filter = if self.filter.is_empty() { String::new() } else { format!("   rows with: {}", self.filter) };
        let cut = match data {
            Some(Data { status, backends, .. })
                if self.tab == Tab::Backends && backends.len() < status.backends as usize =>
            {
                format!("   the first {} of {}", backends.len(), status.backends)
            }
            _ => String::new(),
        };
        format!("q ends  1-4 Tab tables  arrows rows  s {order}  / filter{filter}{cut}")
    }
}

/// A rate as people read it; a dash where it is not known.
fn rate(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 1e6 => format!("{:.2} M", value / 1e6),
        Some(value) if value >= 1e4 => format!("{:.1} k", value / 1e3),
        Some(value) => format!("{value:.0}"),
    }
}

/// What is cut says so.
fn fitting(mut cell: String, room: usize) -> String {
    const CUT: &str = "...";
    if cell.chars().count() > room {
        let kept = cell.char_indices().nth(room.saturating_sub(CUT.len())).map_or(cell.len(), |(at, _)| at);
        cell.truncate(kept);
        cell.push_str(CUT);
    }
    cell
}

fn vips(data: &Data) -> Vec<Shown> {
    let shown = |vip: &v1::Vip| {
        let of = data.rates.as_ref().and_then(|rates| rates.vips.get(&vip.address));
        let owner = if vip.owner.is_empty() { "nobody".to_owned() } else { vip.owner.clone() };
        let problem =
            if vip.moving_to.is_empty() { vip.problem.clone() } else { format!("moves to {}", vip.moving_to) };
        let megabits = of.map_or_else(|| "-".to_owned(), |of| format!("{:.1}", of.bytes_per_second * 8.0 / 1e6));
        let (packets, new) = (of.map(|of| of.packets_per_second), of.map(|of| of.new_flows_per_second));
        Shown {
            cells: vec![vip.address.clone(), owner, rate(packets), megabits, rate(new), problem],
            rate: packets.unwrap_or_default(),
            is_bad: !vip.problem.is_empty(),
        }
    };
    data.status.vip_owners.iter().map(shown).collect()
}

fn backends(data: &Data) -> Vec<Shown> {
    let shown = |backend: &v1::Backend| {
        let key = (backend.service.clone(), backend.address.clone());
        let of = data.rates.as_ref().and_then(|rates| rates.backends.get(&key));
        let (packets, new) = (of.map(|of| of.packets_per_second), of.map(|of| of.new_flows_per_second));
        let health = match backend.state() {
            v1::AdminState::Drain => "drain",
            v1::AdminState::Down => "disabled",
            _ => label::<v1::Health>(backend.health),
        };
        Shown {
            cells: vec![
                backend.address.clone(),
                backend.service.clone(),
                health.to_owned(),
                rate(packets),
                rate(new),
                backend.health_reason.clone(),
            ],
            rate: packets.unwrap_or_default(),
            is_bad: matches!(backend.health(), v1::Health::Unreachable | v1::Health::Unhealthy),
        }
    };
    data.backends.iter().map(shown).collect()
}

fn nodes(data: &Data) -> Vec<Shown> {
    let shown = |node: &v1::Node| {
        let of = data.rates.as_ref().and_then(|rates| rates.nodes.get(&node.name));
        let (state, is_bad) = match node {
            node if !node.heard => ("not heard", true),
            node if !node.unfit.is_empty() => ("unfit", true),
            node if node.draining => ("drained", false),
            node if node.ready || node.role() == v1::Role::Witness => {
                (if node.leader { "leads" } else { "ready" }, false)
            }
            _ => ("not ready", true),
        };
        let away = match node.round_trip_us {
            0 => "-".to_owned(),
            us => format!("{:.2} ms", f64::from(us) / 1e3),
        };
        let rates = [
            of.map(|of| of.received_per_second),
            of.map(|of| of.forwarded_per_second),
            of.map(|of| of.dropped_per_second),
        ];
        let cells =
            [vec![node.name.clone(), state.to_owned(), node.vips.to_string(), away], rates.map(rate).into()].concat();
        Shown { cells, rate: rates[1].unwrap_or_default(), is_bad }
    };
    data.status.nodes.iter().map(shown).collect()
}

fn drops(data: &Data) -> Vec<Shown> {
    let shown = |drop: &v1::DropCount| {
        let of = data.rates.as_ref().and_then(|rates| rates.drops.get(&drop.reason)).copied();
        let cells = vec![drop.reason.clone(), drop.packets.to_string(), rate(of)];
        Shown { cells, rate: of.unwrap_or_default(), is_bad: false }
    };
    data.stats.drops.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn data(packets: u64) -> Data {
        let vip =
            |last: u8| v1::Vip { address: format!("192.0.2.{last}"), owner: "lb1".to_owned(), ..v1::Vip::default() };
        let status = v1::GetStatusResponse {
            cluster: "lab".to_owned(),
            node: "lb2".to_owned(),
            vip_owners: vec![
                vip(1),
                v1::Vip { problem: "no node is able to own it".to_owned(), owner: String::new(), ..vip(2) },
            ],
            nodes: vec![v1::Node {
                name: "lb1".to_owned(),
                heard: true,
                ready: true,
                leader: true,
                ..v1::Node::default()
            }],
            ..v1::GetStatusResponse::default()
        };
        let stats = v1::GetStatsResponse {
            nodes: vec![v1::NodeCount { node: "lb1".to_owned(), received: packets, ..v1::NodeCount::default() }],
            vips: vec![v1::VipCount { address: "192.0.2.2".to_owned(), packets, ..v1::VipCount::default() }],
            drops: vec![v1::DropCount { reason: "no_service".to_owned(), packets }],
            ..v1::GetStatsResponse::default()
        };
        Data::sample(status, stats)
    }

    /// The lines of a terminal of 80 by 24.
    fn lines(screen: &mut Screen, data: Option<&Data>, trouble: Option<&str>) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen.draw(frame, data, trouble)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..24).map(line).collect()
    }

    fn press(screen: &mut Screen, keys: &[KeyCode]) -> Go {
        keys.iter().fold(Go::On, |_, key| screen.press(KeyEvent::from(*key)))
    }

    #[test]
    fn it_fits_into_80_by_24_and_goes_by_keys() {
        let mut screen = Screen::default();
        assert_eq!(lines(&mut screen, None, None)[0], "asking...");
        let data = data(50_000);
        let shown = lines(&mut screen, Some(&data), None);
        assert!(shown[0].starts_with("lab  seen by lb2  leader nobody") && shown[1] == "all is well", "{shown:#?}");
        assert_eq!(shown[3], "VIP              OWNER      PACKETS/S  MBIT/S  NEW/S   PROBLEM");
        assert!(
            shown[4].starts_with("192.0.2.1        lb1        -") && shown[5].contains("no node is able to own"),
            "{shown:#?}"
        );
        assert!(shown[23].starts_with("q ends"), "{shown:#?}");
        press(
            &mut screen,
            &[KeyCode::Char('/'), KeyCode::Char('.'), KeyCode::Char('2'), KeyCode::Backspace, KeyCode::Char('1')],
        );
        press(&mut screen, &[KeyCode::Enter]);
        let shown = lines(&mut screen, Some(&data), None);
        assert!(
            shown[4].starts_with("192.0.2.1") && shown[5].is_empty() && shown[23].ends_with("rows with: .1"),
            "{shown:#?}"
        );
        assert_eq!(press(&mut screen, &[KeyCode::Esc, KeyCode::Char('3')]), Go::On);
        assert!(lines(&mut screen, Some(&data), None)[4].starts_with("lb1        leads"));
        press(&mut screen, &[KeyCode::Tab]);
        assert!(lines(&mut screen, Some(&data), None)[4].starts_with("no_service"));
        press(&mut screen, &[KeyCode::Left, KeyCode::Left, KeyCode::Down, KeyCode::PageDown, KeyCode::End]);
        assert!(lines(&mut screen, Some(&data), Some("it is gone"))[1].starts_with("not of now: it is gone"));
        assert_eq!(press(&mut screen, &[KeyCode::Char('q')]), Go::Away);
    }

    #[test]
    fn rates_come_with_the_second_look_and_order_the_rows() {
        let mut screen = Screen::default();
        let (before, later) = (data(0), data(20_000).later());
        let now = later.behind(Some(&before));
        assert_eq!(press(&mut screen, &[KeyCode::Char('s')]), Go::On);
        let shown = lines(&mut screen, Some(&now), None);
        assert!(shown[4].starts_with("192.0.2.2"), "{shown:#?}");
        assert_eq!(
            [rate(None), rate(Some(12.4)), rate(Some(12_340.0)), rate(Some(3.2e6))],
            ["-", "12", "12.3 k", "3.20 M"]
        );
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(fitting("2001:db8::1".into(), 11), "2001:db8::1");
        assert_eq!(fitting("2001:db8:1::1".into(), 11), "2001:db8...");
        assert_eq!(fitting("größe".into(), 4), "g...");
        let mut known = data(7);
        known.status.vip_owners[1].problem = "no node is able to own it, and nobody knows why".to_owned();
        let shown = lines(&mut Screen::default(), Some(&known), None);
        let row = shown.iter().find(|line| line.contains("192.0.2.2")).unwrap();
        assert!(row.ends_with("...") && row.len() == 80, "{row:?}");
    }
}
