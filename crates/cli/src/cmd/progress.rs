//! Progress of a long request, on standard error so that standard output holds only the answer.

use crate::render::units;
use holdfast_node::api_types::Progress;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between two lines of figures where standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    terminal: bool,
    silent: bool,
    start: Instant,
    /// What was shown last, and when.
    last: Option<(String, Instant)>,
    /// Bytes done when the present kind of work was first seen, and when.
    origin: Option<(u64, Instant)>,
}

impl Shown {
    /// `silent`: the user wants JSON only.
    pub(crate) fn new(silent: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            terminal,
            silent,
            start: Instant::now(),
            last: None,
            origin: None,
        }
    }

    /// Shows where it stands now.
    pub(crate) fn show(&mut self, progress: &Progress) {
        if self.silent {
            return;
        }
        let now = Instant::now();
        let news = self
            .last
            .as_ref()
            .is_none_or(|(what, _)| *what != progress.what);
        if news {
            self.origin = progress.done_bytes.map(|b| (b, now));
        }
        if self.terminal {
            let line = self.line(progress, now);
            // Carriage return and erase: the line is written over itself.
            eprint!("\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
        } else if news
            || self
                .last
                .as_ref()
                .is_some_and(|(_, at)| now - *at >= LINE_INTERVAL)
        {
            eprintln!("{}", self.line(progress, now));
        } else {
            return;
        }
        self.last = Some((progress.what.clone(), now));
    }

    fn line(&self, progress: &Progress, now: Instant) -> String {
        let mut line = format!("{:>4}s {}", (now - self.start).as_secs(), progress.what);
        if let (Some(done), Some(total)) = (progress.done_bytes, progress.total_bytes) {
            line += &format!(
                " {} {} of {}",
                units::percent(done, total),
                units::bytes(done),
                units::bytes(total)
            );
            if let Some((first, since)) = self.origin {
                let seconds = (now - since).as_secs();
                if let Some(rate) = done
                    .saturating_sub(first)
                    .checked_div(seconds)
                    .filter(|r| *r > 0)
                {
                    let left = total.saturating_sub(done).div_ceil(rate);
                    line += &format!(", {}/s, {} left", units::bytes(rate), units::duration(left));
                }
            }
        }
        line
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.terminal && self.last.is_some() {
            eprintln!();
        }
    }
}
