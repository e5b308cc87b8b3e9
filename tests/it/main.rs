//! Everything that needs a broker and neither ends it nor measures it: one program, one node, whose parts run side by
//! side. Names of queues, exchanges and users are each test's own.

#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/bed.rs"]
mod bed;
#[path = "../support/broker.rs"]
mod broker;
#[path = "../fuzz/damage.rs"]
#[allow(dead_code)] // the fuzzers use all of it
mod damage;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/presence.rs"]
mod presence;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../torture/proxy.rs"]
#[allow(dead_code)] // the fault rig uses all of it
mod proxy;

mod admin;
mod broker_versions;
mod check;
mod command_line;
mod common_rejection;
mod console;
mod coupon_members;
mod deadlines;
mod demo;
mod limits;
mod links;
mod lost_acks;
mod outcomes;
mod own_faults;
mod parked;
mod publisher;
mod python_client;
mod readme;
mod remedies;
mod secrets;
mod series;
mod service;
mod topology;
mod traces;
mod two_operators;
mod typed;
mod ungranted_query;
mod unknown_effects;
mod untrusted;
mod waiting;
