//! Services and addresses: on one host at a time, started only where the device is open for the application, in order, and gone
//! before the replica stops being primary in good order.

use holdfast_control::HostStep;

/// The host of one resource on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Epoch in which the replicas opened.
    open: Option<u64>,
    /// Steps of a start done: device, mount, services, addresses.
    up: [bool; 4],
}

/// Where what is.
#[derive(Clone, Debug)]
pub struct Services {
    /// Clocks keep the stated bound.
    claimed: bool,
    places: Vec<Place>,
    /// The newest epoch that opened anywhere.
    newest: u64,
}

const NAMES: [&str; 4] = ["device", "mount", "services", "addresses"];

impl Services {
    /// On so many hosts; whether clocks are such that one host at a time is claimed.
    pub fn new(hosts: usize, claimed: bool) -> Self {
        Self {
            claimed,
            places: vec![Place::default(); hosts],
            newest: 0,
        }
    }

    /// The replicas on a node are open for the application.
    pub fn opened(&mut self, node: usize, epoch: u64) {
        self.places[node].open = Some(epoch);
        self.newest = self.newest.max(epoch);
    }

    /// The control plane orders a step.
    pub fn ordered(&self, node: usize, step: HostStep) -> Result<(), String> {
        let place = self.places[node];
        let Some(index) = start_index(step) else {
            return self.ordered_stop(node, step);
        };
        let Some(epoch) = place.open else {
            return Err(format!(
                "services: {step:?} on node {node}, whose device is not open"
            ));
        };
        if self.claimed && epoch < self.newest {
            return Err(format!(
                "services: {step:?} on node {node} in epoch {epoch}, but {} has opened",
                self.newest
            ));
        }
        match place.up[..index].iter().position(|up| !up) {
            Some(missing) => Err(format!(
                "services: {step:?} on node {node} before its {}",
                NAMES[missing]
            )),
            None => Ok(()),
        }
    }

    fn ordered_stop(&self, node: usize, step: HostStep) -> Result<(), String> {
        let Some(index) = stop_index(step) else {
            return Ok(());
        };
        match self.places[node].up[index + 1..].iter().position(|up| *up) {
            Some(above) => Err(format!(
                "services: {step:?} on node {node}, but its {} are still there",
                NAMES[index + 1 + above]
            )),
            None => Ok(()),
        }
    }

    /// What is on a host now.
    pub fn are(&mut self, now: u64, node: usize, up: [bool; 4]) -> Result<(), String> {
        self.places[node].up = up;
        if !self.claimed || up == [false; 4] {
            return Ok(());
        }
        let other = |(n, p): &(usize, &Place)| *n != node && p.up != [false; 4];
        match self.places.iter().enumerate().find(other) {
            Some((other, _)) => Err(format!(
                "G5: services: at {now} nodes {node} and {other} both have side effects"
            )),
            None => Ok(()),
        }
    }

    /// The replicas on a node are told to stop being primary; `planned` if nothing forces it.
    pub fn steps_down(&mut self, node: usize, planned: bool) -> Result<(), String> {
        let place = &mut self.places[node];
        place.open = None;
        match place.up.iter().position(|up| *up) {
            Some(left) if planned => Err(format!(
                "services: node {node} stops being primary in good order, but its {} are still there",
                NAMES[left]
            )),
            _ => Ok(()),
        }
    }

    /// The daemon of a node is gone.
    pub fn gone(&mut self, node: usize) {
        self.places[node].open = None;
    }
}

fn start_index(step: HostStep) -> Option<usize> {
    match step {
        HostStep::OpenDevice => Some(0),
        HostStep::Mount => Some(1),
        HostStep::StartServices => Some(2),
        HostStep::AddVips => Some(3),
        _ => None,
    }
}

fn stop_index(step: HostStep) -> Option<usize> {
    match step {
        HostStep::CloseDevice { .. } => Some(0),
        HostStep::Unmount { .. } => Some(1),
        HostStep::StopServices { .. } => Some(2),
        HostStep::RemoveVips { .. } => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_and_stop_have_an_order_and_a_place() {
        let mut s = Services::new(2, true);
        assert!(s.ordered(0, HostStep::OpenDevice).is_err(), "not open");
        s.opened(0, 1);
        s.ordered(0, HostStep::OpenDevice).unwrap();
        assert!(s.ordered(0, HostStep::Mount).is_err(), "no device yet");
        s.are(1, 0, [true, true, true, true]).unwrap();
        assert!(s.ordered(0, HostStep::Unmount { forced: false }).is_err());
        s.ordered(0, HostStep::RemoveVips { forced: false })
            .unwrap();
        assert!(s.clone().steps_down(0, true).is_err());
        s.clone().steps_down(0, false).unwrap();
        assert!(
            s.are(2, 1, [true, false, false, false])
                .unwrap_err()
                .contains("G5")
        );
        s.are(3, 0, [false; 4]).unwrap();
        s.steps_down(0, true).unwrap();
        s.opened(1, 2);
        s.opened(0, 1);
        assert!(
            s.ordered(0, HostStep::OpenDevice).is_err(),
            "epoch 2 has opened"
        );
        let mut wild = Services::new(2, false);
        wild.are(1, 0, [true; 4]).unwrap();
        wild.are(1, 1, [true; 4]).unwrap();
    }
}
