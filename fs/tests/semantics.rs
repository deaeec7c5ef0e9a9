//! `docs/SEMANTICS.md` against the tests: every rule names tests that exist and say so, and no test tells of a rule that there
//! isn't.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A rule's first sentence, and the words of its last column.
struct Rule {
    sentence: String,
    shown_by: BTreeSet<String>,
}

/// Names of tests, each with the rules that its comment tells.
type Tests = BTreeMap<String, BTreeMap<u32, String>>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The rules of the document by their numbers, which ascend by one.
fn rules() -> BTreeMap<u32, Rule> {
    let text = fs::read_to_string(repository().join("docs/SEMANTICS.md")).unwrap();
    let (mut rules, mut in_rules) = (BTreeMap::new(), false);
    for line in text.lines() {
        let is_heading = line == "| | rule | source | test |";
        in_rules = is_heading || in_rules && line.starts_with('|');
        if !in_rules || is_heading || line.starts_with("|--") {
            continue;
        }
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", number, rule, _source, shown_by, ""] = cells[..] else { panic!("no rule: {line}") };
        let number: u32 = number.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let words = shown_by.split(|letter: char| !letter.is_alphanumeric() && letter != '_').map(str::to_owned);
        let rule = Rule { sentence: sentence(&rule.replace('\u{1}', "|")).to_owned(), shown_by: words.collect() };
        assert_eq!(number as usize, rules.len() + 1, "numbers ascend by one");
        rules.insert(number, rule);
    }
    assert!(rules.len() > 50);
    assert!(!text.contains("\n| rule |"), "a table of rules has no numbers");
    rules
}

/// The first sentence: up to a full stop that is not in code.
fn sentence(text: &str) -> &str {
    let mut in_code = false;
    for (at, letter) in text.char_indices() {
        in_code ^= letter == '`';
        let rest = &text[at + letter.len_utf8()..];
        if letter == '.' && !in_code && (rest.is_empty() || rest.starts_with(' ')) {
            return &text[..=at];
        }
    }
    text
}

/// The tests of the repository.
fn tests() -> Tests {
    let mut tests = Tests::new();
    let mut folders: Vec<_> =
        ["fs", "layerdb", "snapshotter", "cli", "tests"].map(|name| repository().join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                read_tests(&fs::read_to_string(path).unwrap(), &mut tests);
            }
        }
    }
    assert!(tests.len() > 300);
    tests
}

fn read_tests(source: &str, tests: &mut Tests) {
    let (mut comment, mut is_test) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]";
        } else {
            // A test that runs on several engines is called by those that say which.
            is_test |= line.contains("(scene: &mut Scene)");
            let name = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
            if let (true, Some(name)) = (is_test, name) {
                tests.entry(name.to_owned()).or_default().extend(told(&comment));
            }
            (comment, is_test) = (Vec::new(), false);
        }
    }
}

/// `Rule N: sentence`, which may go on over lines; an empty line or the next rule ends it.
fn told(comment: &[&str]) -> BTreeMap<u32, String> {
    let mut rules: BTreeMap<u32, String> = BTreeMap::new();
    let mut current = None;
    for line in comment {
        let begins = line.strip_prefix("Rule ").and_then(|rest| rest.split_once(": "));
        if let Some((number, text)) = begins {
            let number = number.parse().unwrap();
            rules.insert(number, text.to_owned());
            current = Some(number);
        } else if line.is_empty() {
            current = None;
        } else if let Some(text) = current.and_then(|number| rules.get_mut(&number)) {
            text.push(' ');
            text.push_str(line);
        }
    }
    rules
}

#[test]
fn every_rule_names_tests_that_tell_it_and_no_test_tells_another() {
    let (rules, tests) = (rules(), tests());
    let mut wrong = Vec::new();
    for (number, rule) in &rules {
        let named: Vec<_> = rule.shown_by.iter().filter_map(|word| tests.get_key_value(word)).collect();
        if named.is_empty() {
            wrong.push(format!("rule {number} names no test"));
        }
        for word in rule.shown_by.iter().filter(|word| word.matches('_').count() > 1 && !tests.contains_key(*word)) {
            wrong.push(format!("rule {number} names {word}, which is no test"));
        }
        for (name, told) in named {
            if told.get(number) != Some(&rule.sentence) {
                wrong.push(format!("{name} does not say: Rule {number}: {}", rule.sentence));
            }
        }
    }
    for (name, told) in &tests {
        for number in told.keys() {
            if rules.get(number).is_none_or(|rule| !rule.shown_by.contains(name)) {
                wrong.push(format!("{name} tells of rule {number}, which does not name it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
