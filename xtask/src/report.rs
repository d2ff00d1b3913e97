//! What passed, what failed, what was skipped and why.

use anyhow::Result;
use std::time::Instant;

/// Why something cannot be tested here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A program is not installed, and could be.
    Program,
    /// Only root may do this.
    Root,
    /// The kernel gives no namespaces.
    Namespaces,
    /// The kernel has no FUSE or no loop device here.
    Device,
    /// The network outside this machine is needed and not there.
    Network,
    /// cargo-deny takes longer to build than everything else together, so it is not installed on the way.
    CargoDeny,
}

impl Reason {
    const ALL: [(&str, Self); 6] = [
        ("no-program", Self::Program),
        ("no-root", Self::Root),
        ("no-namespaces", Self::Namespaces),
        ("no-device", Self::Device),
        ("no-network", Self::Network),
        ("no-cargo-deny", Self::CargoDeny),
    ];

    /// Its word in the output.
    pub(crate) fn word(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, r)| *r == self)
            .map_or("", |(word, _)| word)
    }

    /// The reason of this word.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(w, _)| *w == word).map(|(_, r)| *r)
    }

    /// A property of the machine that no step of a CI job can mend.
    pub(crate) const fn acceptable_in_ci(self) -> bool {
        match self {
            Self::Root | Self::Namespaces | Self::Device | Self::Network | Self::CargoDeny => true,
            Self::Program => false,
        }
    }
}

/// The tally of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// Parts with the seconds they took.
    times: Vec<(&'static str, u64)>,
}

/// Are skips failures here?
fn strict() -> bool {
    std::env::var("CI").is_ok_and(|v| v == "true" || v == "1")
}

impl Report {
    /// Runs one part; an error of its own is a failure.
    pub(crate) fn part(&mut self, name: &'static str, part: fn(&mut Self) -> Result<()>) {
        println!("\n== {name}");
        let start = Instant::now();
        if let Err(error) = part(self) {
            self.fail(format!("{name}: {error:#}"));
        }
        self.times.push((name, start.elapsed().as_secs()));
    }

    /// So many tests passed.
    pub(crate) fn pass(&mut self, count: u64) {
        self.passed += count;
    }

    /// One failed.
    pub(crate) fn fail(&mut self, what: String) {
        println!("FAILED {what}");
        self.failed.push(what);
    }

    /// One was not run.
    pub(crate) fn skip(&mut self, what: &str, reason: Reason, detail: &str) {
        let line = format!("{what}: {} ({detail})", reason.word());
        if strict() && !reason.acceptable_in_ci() {
            self.fail(format!("{line}, and with CI=true that may not be"));
        } else {
            println!("SKIPPED {line}");
            self.skipped.push(line);
        }
    }

    /// One check that either passes or fails with these lines.
    pub(crate) fn check(&mut self, what: &str, findings: &[String]) {
        if findings.is_empty() {
            self.pass(1);
            println!("ok {what}");
            return;
        }
        for finding in findings {
            println!("  {finding}");
        }
        self.fail(format!("{what}: {} findings", findings.len()));
    }

    /// Prints the summary; true if nothing failed.
    pub(crate) fn finish(self) -> bool {
        println!("\n== summary");
        if !self.times.is_empty() {
            let times: Vec<String> = self
                .times
                .iter()
                .map(|(name, s)| format!("{name} {s} s"))
                .collect();
            println!("times: {}", times.join(", "));
        }
        for line in &self.skipped {
            println!("skipped {line}");
        }
        for line in &self.failed {
            println!("failed {line}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
        self.failed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        for (word, reason) in Reason::ALL {
            assert_eq!(Reason::from_word(word), Some(reason));
            assert_eq!(reason.word(), word);
        }
        assert_eq!(Reason::from_word("because"), None);
    }

    #[test]
    fn a_failed_check_fails_the_run() {
        let mut report = Report::default();
        report.check("good", &[]);
        report.check("bad", &["a finding".into()]);
        assert_eq!((report.passed, report.failed.len()), (1, 1));
        assert!(!report.finish());
        assert!(Report::default().finish());
    }
}
