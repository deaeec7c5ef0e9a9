#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::time::SystemTime;

use super::*;
use crate::snapshots::Kind;

fn info(name: &str, parent: &str, kind: Kind, labels: &[(&str, &str)]) -> Info {
    let labels: BTreeMap<String, String> = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let created = SystemTime::UNIX_EPOCH;
    Info { kind, name: name.into(), parent: parent.into(), labels, created, updated: created }
}

fn sample() -> Vec<Info> {
    vec![
        info("base", "", Kind::Committed, &[("l", "1"), ("containerd.io/gc.root", "yes")]),
        info("k8s.io/7/sha256:ab cd", "base", Kind::Committed, &[("l", "2")]),
        info("run", "base", Kind::Active, &[("empty.ness", ""), ("q\"u", "a,b c")]),
        info("look", "run", Kind::View, &[]),
    ]
}

/// The initials of those chosen.
fn chosen(filters: &[&str]) -> String {
    let filters: Vec<String> = filters.iter().map(|filter| (*filter).into()).collect();
    let filter = Filter::parse(&filters).unwrap();
    sample().iter().filter(|info| filter.matches(info)).filter_map(|info| info.name.chars().next()).collect()
}

#[test]
fn filter_by_each_field_and_operator_chooses_what_containerd_would() {
    let table: &[(&[&str], &str)] = &[
        (&[], "bkrl"),
        (&[""], "bkrl"),
        (&["", "name==base"], "bkrl"),
        (&["name==base"], "b"),
        (&["name==base", "name==run"], "br"),
        (&["name==base,name==run"], ""),
        (&[r#"name=="k8s.io/7/sha256:ab cd""#], "k"),
        (&["kind==active"], "r"),
        (&["kind==view"], "l"),
        (&["kind!=committed"], "rl"),
        (&["parent==base"], "kr"),
        (&["parent==base,kind==committed"], "k"),
        (&[r#"parent!="""#], "krl"),
        (&[r#"parent=="""#], "b"),
        (&["parent"], "bkrl"),
        (&["labels.l"], "bk"),
        (&["labels.l==2"], "k"),
        (&["labels.l!=2"], "brl"),
        (&[r#"labels.absent!="""#], ""),
        (&[r#"labels."containerd.io/gc.root""#], "b"),
        (&[r#"labels."containerd.io/gc.root"==yes"#], "b"),
        (&["labels.empty.ness"], "r"),
        (&[r#"labels.empty.ness=="""#], "r"),
        (&[r#"labels."q\"u"=="a,b c""#], "r"),
        (&["name~=^[br]"], "br"),
        (&["name~=|/7/|"], "k"),
        (&[r"name~=/\/7\//"], "k"),
        (&[r#"labels.l~=".""#], "bk"),
        (&["labels.l~=^$"], "rl"),
        (&["nothing"], ""),
        (&["nothing==x"], ""),
        (&["nothing!=x"], "bkrl"),
        (&["name == base, kind == committed"], "b"),
        (&[r#""name"==base"#], "b"),
        (&[r#"name=="\x62\u0061\163e""#], "b"),
        (&["name!=1.5=~!"], "bkrl"),
    ];
    for (filters, expected) in table {
        assert_eq!(chosen(filters), *expected, "{filters:?}");
    }
}

#[test]
fn parse_of_a_wrong_filter_says_where_and_what() {
    let table = [
        ("==x", 0, "expected a field"),
        ("name=", 4, "unknown operator \"=\""),
        ("name===x", 4, "unknown operator \"===\""),
        ("name==", 6, "expected a value"),
        ("name==,kind", 6, "expected a value"),
        ("name x", 5, "expected an operator"),
        ("name ", 5, "expected an operator"),
        ("name==x y", 7, "unexpected ' '"),
        ("name==x,", 8, "expected a field"),
        ("labels.", 7, "expected a field"),
        ("labels..x", 7, "expected a field"),
        ("name==\"x", 6, "quote is not closed"),
        ("name==\"x\\\"", 6, "quote is not closed"),
        ("name==\"ab\\q\"", 9, "invalid escape"),
        ("name==\"\\xff\"", 6, "quoted text is not UTF-8"),
        ("name==\"\\x+f\"", 7, "invalid escape"),
        ("name==|x|", 6, "quotes other than"),
        ("name==.x", 6, "expected a value"),
        ("name~=(", 6, "invalid regular expression"),
        ("name~=(a{1000}){1000}", 6, "invalid regular expression"),
        ("na-me==x", 2, "expected an operator"),
        ("näme==x", 1, "expected an operator"),
    ];
    for (filter, position, reason) in table {
        let error = Filter::parse(&["kind==view".into(), filter.into()]).unwrap_err();
        assert_eq!((error.filter.as_str(), error.position), (filter, position), "{error}");
        assert!(error.reason.contains(reason), "{filter}: {error}");
        assert!(error.to_string().contains(&format!("position {position}")), "{error}");
    }
}

#[test]
fn indexes_of_a_filter_are_the_narrowest_or_none_at_all() {
    let parse = |filters: &[&str]| {
        Filter::parse(&filters.iter().map(|filter| (*filter).to_owned()).collect::<Vec<_>>()).unwrap()
    };
    let filter = parse(&["kind==view,parent==p,name==n", "parent==p,labels.\"a.b\"==c"]);
    assert_eq!(filter.indexes().unwrap(), [Index::Name("n"), Index::Label("a.b", "c")]);
    assert_eq!(parse(&["parent==p"]).indexes().unwrap(), [Index::Parent("p")]);
    for whole in [&[][..], &["name==n", ""], &["name==n", "kind==view"], &["parent==\"\""], &["name!=n"], &["name~=n"]]
    {
        assert_eq!(parse(whole).indexes(), None, "{whole:?}");
    }
}

#[test]
fn parse_of_any_short_text_never_panics() {
    let alphabet = ['n', '.', '"', '\\', '|', '/', '=', '!', '~', ',', ' ', 'ä', '0', 'x', 'u'];
    let mut texts = vec![String::new()];
    for _ in 0..4 {
        texts = texts.iter().flat_map(|text| alphabet.map(|next| format!("{text}{next}"))).collect();
        for text in &texts {
            for filter in [text.clone(), format!("name~={text}"), format!("name==\"{text}\"")] {
                if let Err(error) = Filter::parse(std::slice::from_ref(&filter)) {
                    assert!(filter.is_char_boundary(error.position), "{error}");
                }
            }
        }
    }
}
