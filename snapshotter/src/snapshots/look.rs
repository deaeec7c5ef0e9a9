//! Looking at snapshots. No locks: a call sees what the last batch before it left.

use std::collections::BTreeSet;

use super::Info;
use super::core::Core;
use crate::error::Result;
use crate::filter::{Filter, Index};

impl Core {
    pub(super) fn stat(&self, key: &str) -> Result<Info> {
        Ok(self.record(key)?.info(key))
    }

    pub(super) fn list(&self, filters: &[String]) -> Result<Vec<Info>> {
        let filter = Filter::parse(filters)?;
        let mut found = Vec::new();
        let mut look = |info: Info| {
            if filter.matches(&info) {
                found.push(info);
            }
        };
        match filter.indexes() {
            None => self.rows.each(|key, record| look(record.info(key)))?,
            Some(indexes) => {
                for key in self.indexed(&indexes)? {
                    // It may have gone since.
                    if let Some(record) = self.rows.get(&key)? {
                        look(record.info(&key));
                    }
                }
            }
        }
        Ok(found)
    }

    fn indexed(&self, indexes: &[Index<'_>]) -> Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        for index in indexes {
            match *index {
                Index::Name(name) => drop(keys.insert(name.to_owned())),
                Index::Parent(parent) => keys.extend(self.rows.children(parent)?),
                Index::Label(label, value) => keys.extend(self.rows.labelled(label, value)?),
            }
        }
        Ok(keys)
    }
}
