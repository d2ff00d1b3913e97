//! A small deterministic world of several nodes, scenarios in it, random faults in it, and tests of the parts.

mod failures;
mod members;
mod parts;
mod random;
mod resize;
mod scenarios;
mod schedules;
mod world;
