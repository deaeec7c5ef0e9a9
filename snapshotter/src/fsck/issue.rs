//! What can be wrong with snapshots: one variant for each defect.

use std::fmt;

use mica_layerdb::DiffId;
use mica_layerdb::fsck::{Defect, Severity};
use serde::{Deserialize, Serialize};

/// A defect of the snapshotter's rows and folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", tag = "issue")]
pub enum SnapshotIssue {
    /// A snapshot's record makes no sense.
    DamagedSnapshot {
        /// The key, escaped.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A row that should be a number's has another key.
    DamagedNumber {
        /// The family.
        family: String,
        /// The key, escaped.
        key: String,
    },
    /// A snapshot's parent is not there.
    MissingParent {
        /// The snapshot.
        key: String,
        /// Its parent.
        parent: String,
    },
    /// A snapshot builds upon one that is not committed.
    UncommittedParent {
        /// The snapshot.
        key: String,
        /// Its parent.
        parent: String,
    },
    /// Nothing leads from a parent to its child.
    MissingChildRow {
        /// The parent.
        parent: String,
        /// The child.
        child: String,
    },
    /// A parent's child is not there.
    StrayChildRow {
        /// The row's key.
        row: Vec<u8>,
    },
    /// Nothing leads from a label to its snapshot.
    MissingLabelRow {
        /// The snapshot.
        key: String,
        /// The label.
        label: String,
    },
    /// A label's snapshot is not there, or has another value.
    StrayLabelRow {
        /// The row's key.
        row: Vec<u8>,
    },
    /// Two snapshots have one number, so one folder and one pin.
    SharedNumber {
        /// The number.
        number: u64,
        /// One of them.
        key: String,
        /// The other one.
        other: String,
    },
    /// Numbers in use could be given away once more.
    LowCounter {
        /// The counter.
        counter: u64,
        /// The highest number in use.
        highest: u64,
    },
    /// The journal of mounts says another thing of a snapshot than its record.
    WrongOp {
        /// The snapshot.
        key: String,
        /// Its number.
        number: u64,
    },
    /// Nobody knows what a committed snapshot takes.
    MissingUsage {
        /// The snapshot.
        key: String,
        /// Its number.
        number: u64,
    },
    /// A committed snapshot doesn't keep the layers it is made of.
    WrongPin {
        /// The snapshot.
        key: String,
        /// Its number.
        number: u64,
        /// Its layers, bottom first.
        expected: Vec<DiffId>,
    },
    /// Usage, journal or pin of a number that no snapshot has.
    StrayNumber {
        /// The number.
        number: u64,
    },
    /// The changes of a snapshot are not there.
    MissingFolder {
        /// The snapshot.
        key: String,
        /// Its number.
        number: u64,
    },
    /// A folder of changes that no snapshot has.
    StrayFolder {
        /// The number.
        number: u64,
    },
    /// A lock or pin of a mount of an image that has ended.
    EndedMount {
        /// The lock.
        name: String,
    },
    /// `daemon.json` names a daemon that doesn't run.
    StaleDaemonRecord {},
}

impl SnapshotIssue {
    /// Whether what is wrong can be made anew from what is right.
    pub(super) fn is_derived(&self) -> bool {
        use SnapshotIssue as I;
        !matches!(
            self,
            I::DamagedSnapshot { .. }
                | I::DamagedNumber { .. }
                | I::MissingParent { .. }
                | I::UncommittedParent { .. }
                | I::SharedNumber { .. }
                | I::MissingFolder { .. }
        )
    }
}

impl Defect for SnapshotIssue {
    fn name(&self) -> String {
        self.details()["issue"].as_str().unwrap_or_default().to_owned()
    }

    fn severity(&self) -> Severity {
        use SnapshotIssue as I;
        match self {
            I::DamagedSnapshot { .. } | I::DamagedNumber { .. } | I::SharedNumber { .. } => Severity::Fatal,
            I::MissingParent { .. }
            | I::UncommittedParent { .. }
            | I::MissingChildRow { .. }
            | I::StrayChildRow { .. }
            | I::LowCounter { .. }
            | I::WrongOp { .. }
            | I::WrongPin { .. }
            | I::MissingFolder { .. } => Severity::Error,
            I::MissingLabelRow { .. }
            | I::StrayLabelRow { .. }
            | I::MissingUsage { .. }
            | I::StrayNumber { .. }
            | I::StrayFolder { .. }
            | I::EndedMount { .. }
            | I::StaleDaemonRecord {} => Severity::Warning,
        }
    }

    fn advice(&self) -> &'static str {
        use SnapshotIssue as I;
        match self {
            I::DamagedSnapshot { .. } | I::DamagedNumber { .. } | I::SharedNumber { .. } => {
                "stop the daemon, keep a copy of meta/, remove the snapshot with its containers in the engine, and pull again"
            }
            I::MissingParent { .. } | I::UncommittedParent { .. } => {
                "remove the snapshot in the engine, and pull its image again"
            }
            I::MissingFolder { .. } => "the changes are lost: remove the container, or the snapshot, in the engine",
            _ => "--repair puts it right while no daemon runs",
        }
    }

    fn details(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl fmt::Display for SnapshotIssue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SnapshotIssue as I;
        match self {
            I::DamagedSnapshot { key, reason } => write!(out, "the record of snapshot \"{key}\" is damaged: {reason}"),
            I::DamagedNumber { family, key } => write!(out, "the key \"{key}\" of {family} is no number"),
            I::MissingParent { key, parent } => write!(out, "snapshot {key} builds upon {parent}, which is gone"),
            I::UncommittedParent { key, parent } => {
                write!(out, "snapshot {key} builds upon {parent}, which is not committed")
            }
            I::MissingChildRow { parent, child } => {
                write!(out, "nothing says that snapshot {child} builds upon {parent}")
            }
            I::StrayChildRow { row } => write!(out, "a snapshot that is gone is a child: {}", row.escape_ascii()),
            I::MissingLabelRow { key, label } => write!(out, "nothing says that snapshot {key} has label {label}"),
            I::StrayLabelRow { row } => write!(out, "a label leads to a wrong snapshot: {}", row.escape_ascii()),
            I::SharedNumber { number, key, other } => {
                write!(out, "snapshots {key} and {other} both have number {number}")
            }
            I::LowCounter { counter, highest } => {
                write!(out, "the counter of numbers is {counter}, and {highest} is in use")
            }
            I::WrongOp { key, number } => write!(out, "the journal of mounts is wrong about snapshot {key} ({number})"),
            I::MissingUsage { key, .. } => write!(out, "nobody knows what snapshot {key} takes"),
            I::WrongPin { key, .. } => write!(out, "snapshot {key} does not keep the layers it is made of"),
            I::StrayNumber { number } => write!(out, "there are rows of number {number}, which no snapshot has"),
            I::MissingFolder { key, number } => {
                write!(out, "the changes of snapshot {key} (snapshots/{number}) are gone")
            }
            I::StrayFolder { number } => write!(out, "snapshots/{number} belongs to no snapshot"),
            I::EndedMount { name } => write!(out, "the mount {name} of an image has ended and left its mark"),
            I::StaleDaemonRecord {} => write!(out, "daemon.json names a daemon that doesn't run"),
        }
    }
}
