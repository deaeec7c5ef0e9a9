//! containerd's filter language.
//!
//! ```text
//! filter    = selector { "," selector }              all of them must hold
//! selector  = path [ operator value ]                without operator: the field is there
//! path      = field { "." field }
//! field     = quoted | one or more of A-Z a-z 0-9 _
//! operator  = "==" | "!=" | "~="                     the last one is a regular expression, found anywhere
//! value     = quoted | one or more of anything but white space and ","
//! quoted    = "..." with escapes as in Go; behind ~= also |...| and /.../
//! ```
//!
//! Of several filters one must hold; an empty one always does. Fields of a snapshot: `name`, `parent`, `kind` (`view`,
//! `active`, `committed`) and `labels.<name>`, where the name may be quoted or have dots. An absent field equals nothing,
//! but is compared as an empty text by `!=` and `~=`.

mod parse;
mod quote;

use regex::Regex;

use crate::snapshots::Info;

/// A filter that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason} at position {position}")]
pub struct FilterError {
    /// The filter.
    pub filter: String,
    /// Where in it, in bytes.
    pub position: usize,
    /// What is wrong.
    pub reason: String,
}

/// Chooses snapshots.
#[derive(Clone, Debug)]
pub struct Filter {
    /// One must hold; `None` always does.
    alternatives: Vec<Vec<Selector>>,
    all: bool,
}

#[derive(Clone, Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// One that snapshots don't have.
    Other,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A row of an index that has all snapshots which an alternative can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Index<'a> {
    Name(&'a str),
    Parent(&'a str),
    Label(&'a str, &'a str),
}

impl Filter {
    /// Reads filters, of which one must hold. Without any, everything is chosen.
    pub fn parse(filters: &[String]) -> Result<Filter, FilterError> {
        let all = filters.is_empty() || filters.iter().any(String::is_empty);
        let alternatives = filters
            .iter()
            .filter(|filter| !filter.is_empty())
            .map(|filter| parse::parse(filter))
            .collect::<Result<_, _>>()?;
        Ok(Filter { alternatives, all })
    }

    /// Whether a snapshot is chosen.
    pub fn matches(&self, info: &Info) -> bool {
        self.all || self.alternatives.iter().any(|selectors| selectors.iter().all(|selector| selector.matches(info)))
    }

    /// For each alternative an index that narrows it; `None` if one of them needs every snapshot looked at.
    pub(crate) fn indexes(&self) -> Option<Vec<Index<'_>>> {
        if self.all {
            return None;
        }
        self.alternatives.iter().map(|selectors| best(selectors)).collect()
    }
}

/// The narrowest index: a name chooses one, a label few, a parent some.
fn best(selectors: &[Selector]) -> Option<Index<'_>> {
    let indexes = selectors.iter().filter_map(Selector::index);
    indexes.min_by_key(|index| match index {
        Index::Name(_) => 0,
        Index::Label(..) => 1,
        Index::Parent(_) => 2,
    })
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = self.field.of(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }

    fn index(&self) -> Option<Index<'_>> {
        let Test::Equal(value) = &self.test else { return None };
        match &self.field {
            Field::Name => Some(Index::Name(value)),
            // Snapshots without a parent are in no index.
            Field::Parent if !value.is_empty() => Some(Index::Parent(value)),
            Field::Label(label) => Some(Index::Label(label, value)),
            _ => None,
        }
    }
}

impl Field {
    fn of_path(path: &[String]) -> Field {
        let Some((first, rest)) = path.split_first() else { return Field::Other };
        match first.as_str() {
            "name" => Field::Name,
            "parent" => Field::Parent,
            "kind" => Field::Kind,
            "labels" => Field::Label(rest.join(".")),
            _ => Field::Other,
        }
    }

    fn of<'a>(&self, info: &'a Info) -> Option<&'a str> {
        match self {
            Field::Name => Some(&info.name),
            Field::Parent => Some(&info.parent),
            Field::Kind => Some(info.kind.name()),
            Field::Label(label) => info.labels.get(label).map(String::as_str),
            Field::Other => None,
        }
    }
}

#[cfg(test)]
mod tests;
