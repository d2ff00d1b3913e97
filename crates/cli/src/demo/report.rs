//! What a run showed, for people and for programs.

use super::Voice;
use super::timeline::Moment;
use crate::render::units;
use holdfast_host::machine::Mode;
use serde::Serialize;

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Where the nodes lived.
    pub(super) mode: Mode,
    /// What was done to the primary.
    pub(super) fault: &'static str,
    /// What ran on the volume.
    pub(super) workload: &'static str,
    /// Writes that were acknowledged to the clients.
    pub(super) acknowledged_writes: u64,
    /// Of these, gone or changed at the end.
    pub(super) lost_writes: u64,
    /// What the service's own check of all its data found wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service_check: Option<String>,
    /// Every byte of the volume is the same on both nodes.
    pub(super) replicas_identical: bool,
    /// Where the first differing byte is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_difference: Option<u64>,
    /// From the fault to the first write acknowledged by the new primary.
    pub(super) failover_ms: f64,
    /// Without an acknowledgement for any client, around the fault.
    pub(super) longest_pause_ms: f64,
    /// Payload sent to make the returned node equal.
    pub(super) resync_bytes: u64,
    /// Writes tried at the old primary after the other took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) late_attempts: Option<u64>,
    /// Of these, acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) late_acknowledgements: Option<u64>,
    /// What happened when.
    pub(super) timeline: Vec<Moment>,
    /// In one line.
    pub(super) verdict: String,
}

impl Report {
    /// Everything is as it should be.
    pub(super) fn good(&self) -> bool {
        self.lost_writes == 0
            && self.acknowledged_writes > 0
            && self.service_check.is_none()
            && self.replicas_identical
            && self.late_acknowledgements.unwrap_or(0) == 0
    }

    /// Writes the verdict.
    pub(super) fn judge(&mut self) {
        let mut wrong = Vec::new();
        if self.acknowledged_writes == 0 {
            wrong.push("nothing was acknowledged".to_owned());
        }
        if self.lost_writes > 0 {
            wrong.push(format!("{} acknowledged writes are lost", self.lost_writes));
        }
        if let Some(what) = &self.service_check {
            wrong.push(format!("the service finds its data damaged: {what}"));
        }
        if let Some(late) = self.late_acknowledgements.filter(|n| *n > 0) {
            wrong.push(format!(
                "the old primary acknowledged {late} writes after it was replaced"
            ));
        }
        if !self.replicas_identical {
            let at = self
                .first_difference
                .map(|at| format!(", first at byte {at}"))
                .unwrap_or_default();
            wrong.push(format!("the replicas differ{at}"));
        }
        let late = match self.late_attempts {
            Some(n) => format!("; none of {n} writes tried at the old primary was acknowledged"),
            None => String::new(),
        };
        self.verdict = if wrong.is_empty() {
            format!(
                "PASS: {} writes acknowledged, none lost; back after {:.0} ms; {} resynced; replicas identical{late}",
                self.acknowledged_writes,
                self.failover_ms,
                units::bytes(self.resync_bytes)
            )
        } else {
            format!("FAIL: {}", wrong.join("; "))
        };
    }

    /// Tells it: people a table and the verdict, programs one JSON object.
    pub(super) fn tell(&self, voice: Voice) -> anyhow::Result<()> {
        voice.say("\n  ms since the fault");
        for moment in &self.timeline {
            voice.say(&format!("  {:>10.1}  {}", moment.ms, moment.what));
        }
        voice.say(&format!("\n{}", self.verdict));
        if voice.json {
            println!("{}", serde_json::to_string(self)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            mode: Mode::Loopback,
            fault: "stop",
            workload: "records",
            acknowledged_writes: 12,
            lost_writes: 0,
            service_check: None,
            replicas_identical: true,
            first_difference: None,
            failover_ms: 1234.5,
            longest_pause_ms: 1234.5,
            resync_bytes: 4096,
            late_attempts: Some(9),
            late_acknowledgements: Some(0),
            timeline: Vec::new(),
            verdict: String::new(),
        }
    }

    #[test]
    fn each_fault_of_a_run_makes_it_bad_and_is_said() {
        let mut report = good();
        report.judge();
        assert!(report.good() && report.verdict.starts_with("PASS: 12 writes"));
        type Spoil = fn(&mut Report);
        let spoil: [(Spoil, &str); 5] = [
            (|r| r.lost_writes = 3, "3 acknowledged writes are lost"),
            (|r| r.acknowledged_writes = 0, "nothing"),
            (|r| r.replicas_identical = false, "the replicas differ"),
            (
                |r| r.late_acknowledgements = Some(1),
                "after it was replaced",
            ),
            (|r| r.service_check = Some("ERR bad 7".into()), "ERR bad 7"),
        ];
        for (spoil, said) in spoil {
            let mut report = good();
            spoil(&mut report);
            report.judge();
            assert!(!report.good(), "{said}");
            assert!(
                report.verdict.starts_with("FAIL: ") && report.verdict.contains(said),
                "{}",
                report.verdict
            );
        }
    }
}
