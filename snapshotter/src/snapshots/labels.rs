//! Labels: what is accepted, and how they are changed.

use std::collections::BTreeMap;

use mica_layerdb::Batch;

use super::Info;
use super::core::Core;
use super::form;
use crate::error::{Error, Result};
use crate::store::{self, Rows};

/// Names the committed snapshot that an extraction is to lead to (the chain id).
pub(super) const TARGET: &str = "containerd.io/snapshot.ref";
/// Names the layer that an extraction is to take in.
pub(super) const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

/// containerd's limit for a label with its value.
const LABEL_BYTES: usize = 4096;

type Labels = BTreeMap<String, String>;

/// Refuses labels that are too long and drops those without a value.
pub(super) fn accept(mut labels: Labels) -> Result<Labels> {
    labels.retain(|_, value| !value.is_empty());
    match labels.iter().find(|(label, value)| label.len() + value.len() > LABEL_BYTES) {
        None => Ok(labels),
        Some((label, value)) => {
            let shown: String = label.chars().take(64).collect();
            let bytes = label.len() + value.len();
            Err(Error::Invalid {
                what: format!("label {shown}"),
                reason: format!("with its value it has {bytes} bytes, {LABEL_BYTES} are allowed"),
            })
        }
    }
}

/// The labels that an update leads to.
fn changed(old: &Labels, info: &Info, fieldpaths: &[String]) -> Result<Labels> {
    if fieldpaths.is_empty() {
        return accept(info.labels.clone());
    }
    let mut labels = old.clone();
    for path in fieldpaths {
        if path == "labels" {
            labels.clone_from(&info.labels);
        } else if let Some(label) = path.strip_prefix("labels.") {
            // A missing one counts as one without a value.
            labels.insert(label.to_owned(), info.labels.get(label).cloned().unwrap_or_default());
        } else {
            return Err(Error::FieldPath { key: info.name.clone(), path: path.clone() });
        }
    }
    accept(labels)
}

impl Core {
    pub(super) fn update(&self, info: &Info, fieldpaths: &[String]) -> Result<Info> {
        let _turn = self.keys.lock(&info.name)?;
        let old = self.record(&info.name)?;
        let mut record = old.clone();
        record.labels = changed(&old.labels, info, fieldpaths)?;
        form::check(&record.labels)?;
        record.updated = store::now().max(old.updated + 1);
        let mut batch = Batch::new();
        Rows::delete(&mut batch, &info.name, &old);
        self.rows.put(&mut batch, &info.name, &record)?;
        self.rows.commit(batch)?;
        Ok(record.info(&info.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
    }

    fn info(text: &str) -> Info {
        let now = std::time::SystemTime::now();
        Info {
            kind: crate::snapshots::Kind::Active,
            name: "snapshot".into(),
            parent: String::new(),
            labels: labels(text),
            created: now,
            updated: now,
        }
    }

    #[test]
    fn changed_follows_the_mask() {
        let old = labels("a=1 b=2 c.d/e=3");
        let table: &[(&str, &[&str], &str)] = &[
            ("x=9", &[], "x=9"),
            ("", &[], ""),
            ("x=9 y=", &["labels"], "x=9"),
            ("a=9 b=9", &["labels.a"], "a=9 b=2 c.d/e=3"),
            ("", &["labels.a"], "b=2 c.d/e=3"),
            ("a=", &["labels.a"], "b=2 c.d/e=3"),
            ("c.d/e=9", &["labels.c.d/e", "labels.b"], "a=1 c.d/e=9"),
            ("x=9 a=8", &["labels", "labels.b"], "x=9 a=8"),
        ];
        for (new, mask, expected) in table {
            let mask: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
            assert_eq!(changed(&old, &info(new), &mask).unwrap(), labels(expected), "{new:?} {mask:?}");
        }
    }

    #[test]
    fn changed_refuses_other_fields_by_name() {
        for path in ["name", "parent", "kind", "created", "label", "labels2", ""] {
            let error = changed(&labels(""), &info("a=1"), &["labels".into(), path.into()]).unwrap_err();
            assert!(matches!(&error, Error::FieldPath { path: named, .. } if named == path), "{error}");
            assert!(error.to_string().contains("snapshot"), "{error}");
        }
    }

    #[test]
    fn accept_has_containerds_limit() {
        let fits = BTreeMap::from([("l".repeat(96), "v".repeat(4000))]);
        assert_eq!(accept(fits.clone()).unwrap(), fits);
        let error = accept(BTreeMap::from([("l".repeat(97), "v".repeat(4000))])).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::InvalidArgument);
        assert!(error.to_string().contains("4097"), "{error}");
    }
}
