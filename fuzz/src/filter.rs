//! containerd's filter language: filters, one a line, are read and tried on a snapshot.

use std::collections::BTreeMap;
use std::time::SystemTime;

use mica_snapshotter::filter::Filter;
use mica_snapshotter::{Info, Kind};

pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let filters: Vec<String> = text.lines().map(str::to_owned).collect();
    match Filter::parse(&filters) {
        Ok(filter) => {
            filter.matches(&info());
        }
        Err(error) => {
            assert!(error.position <= error.filter.len(), "{error:?}");
            assert!(error.filter.is_char_boundary(error.position), "{error:?}");
        }
    }
}

fn info() -> Info {
    Info {
        kind: Kind::Active,
        name: "name/one".to_owned(),
        parent: "parent".to_owned(),
        labels: BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c.d/e".to_owned(), "aaaaaaaaaaaaaaaa!".to_owned())]),
        created: SystemTime::UNIX_EPOCH,
        updated: SystemTime::UNIX_EPOCH,
    }
}
