//! Real containers on real engines. A scenario is written once and played on both containerds.

mod commit;
mod containers;
mod docker;
mod forms;
mod harness;
mod images;
mod integrity;
mod kills;
mod layers;
mod mounting;
mod podman;
mod removal;
mod requests;
mod restart;
mod stage;
mod stores;
