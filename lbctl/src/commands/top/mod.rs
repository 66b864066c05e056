//! `lbctl top`: the cluster as it works, on a terminal. [`data`] reads it once a second, [`screen`] draws it and knows the keys.

mod data;
mod screen;

use std::io::{IsTerminal as _, stdout};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};
use tokio::{sync::mpsc, time::Instant};

use self::{
    data::Data,
    screen::{Go, Screen},
};
use crate::{cli::Format, exit::Failure, session::Session};

pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    if session.format() != Format::Table || !stdout().is_terminal() {
        let instead =
            "top draws on a terminal: 'lbctl stats --rates' and 'lbctl status' have the same as text and as data";
        return Err(Failure::Usage(instead.to_owned()));
    }
    let mut terminal = ratatui::try_init()?;
    let shown = show(session, &mut terminal).await;
    ratatui::try_restore()?;
    shown
}

/// Until somebody leaves.
async fn show(session: &Session, terminal: &mut DefaultTerminal) -> Result<(), Failure> {
    let (sender, mut events) = mpsc::unbounded_channel();
    // It waits for keys, and ends with the process.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    let mut screen = Screen::default();
    let (mut known, mut trouble) = (None::<Data>, None::<String>);
    let mut reading = Box::pin(data::read(session, Instant::now()));
    loop {
        terminal.draw(|frame| screen.draw(frame, known.as_ref(), trouble.as_deref()))?;
        tokio::select! {
            event = events.recv() => match event {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press && screen.press(key) == Go::Away => return Ok(()),
                // Another size: it is drawn anew.
                Some(_) => {}
            },
            read = &mut reading => {
                let next = Instant::now() + data::EVERY;
                match read {
                    Ok(data) => (known, trouble) = (Some(data.behind(known.as_ref())), None),
                    Err(failure) => trouble = Some(failure.to_string()),
                }
                reading.set(data::read(session, next));
            }
        }
    }
}
