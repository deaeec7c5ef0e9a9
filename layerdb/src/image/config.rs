//! Configurations that Mica makes itself (OCI image-spec, "Image Configuration").

use serde_json::{Map, Value, json};

use crate::digest::DiffId;
use crate::error::{Error, Result};

/// A configuration being made. What it was made from stays in it.
#[derive(Clone, Debug)]
pub(super) struct Document(Map<String, Value>);

/// Who did what to an image, for its history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    /// RFC 3339.
    pub(super) created: &'a str,
    pub(super) created_by: &'a str,
    pub(super) author: Option<&'a str>,
    pub(super) comment: Option<&'a str>,
    pub(super) empty_layer: bool,
}

impl Document {
    /// That of an image without any.
    pub(super) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Document {
        let mut document = Map::new();
        document.insert("os".into(), os.into());
        document.insert("architecture".into(), architecture.into());
        document.extend(variant.map(|variant| ("variant".to_owned(), variant.into())));
        document.insert("config".into(), json!({}));
        document.insert("history".into(), json!([]));
        Document(document)
    }

    /// One that came from elsewhere. What it says of a container that it was made in goes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Document, String> {
        let mut document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        for key in ["container", "container_config", "docker_version", "id", "parent"] {
            document.remove(key);
        }
        Ok(Document(document))
    }

    /// The member of what a container is run with.
    fn running(&mut self) -> &mut Map<String, Value> {
        let config = self.0.entry("config").or_insert_with(|| json!({}));
        if !config.is_object() {
            *config = json!({});
        }
        match config {
            Value::Object(config) => config,
            _ => unreachable!("it was made an object"),
        }
    }

    pub(super) fn set_created(&mut self, created: &str, author: Option<&str>) {
        self.0.insert("created".into(), created.into());
        self.0.extend(author.map(|author| ("author".to_owned(), author.into())));
    }

    pub(super) fn set_layers(&mut self, layers: &[DiffId]) {
        self.0.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": layers }));
    }

    /// How many layers the history speaks of.
    pub(super) fn history_layers(&self) -> usize {
        let steps = self.0.get("history").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        steps.iter().filter(|step| step["empty_layer"].as_bool() != Some(true)).count()
    }

    pub(super) fn clear_history(&mut self) {
        self.0.insert("history".into(), json!([]));
    }

    pub(super) fn add_step(&mut self, step: &Step<'_>) {
        let mut told = Map::new();
        told.insert("created".into(), step.created.into());
        told.insert("created_by".into(), step.created_by.into());
        told.extend(step.author.map(|author| ("author".to_owned(), author.into())));
        told.extend(step.comment.map(|comment| ("comment".to_owned(), comment.into())));
        if step.empty_layer {
            told.insert("empty_layer".into(), true.into());
        }
        if let Value::Array(steps) = self.0.entry("history").or_insert_with(|| json!([])) {
            steps.push(Value::Object(told));
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        Value::Object(self.0.clone()).to_string().into_bytes()
    }

    /// Applies instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR. As
    /// there, an ENTRYPOINT takes the CMD away that was there before.
    pub(super) fn apply(&mut self, changes: &[String]) -> Result<()> {
        let mut cmd_given = false;
        for change in changes {
            let bad = |reason: &str| Error::BadChange { change: change.clone(), reason: reason.to_owned() };
            let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
            let rest = rest.trim();
            let word = word.to_ascii_uppercase();
            if rest.is_empty() && !matches!(word.as_str(), "CMD" | "ENTRYPOINT") {
                return Err(bad("an instruction and its argument are needed, as in `ENV NAME=value`"));
            }
            let config = self.running();
            match word.as_str() {
                "CMD" => {
                    cmd_given = true;
                    config.insert("Cmd".into(), command(rest).map_err(|reason| bad(&reason))?);
                }
                "ENTRYPOINT" => {
                    config.insert("Entrypoint".into(), command(rest).map_err(|reason| bad(&reason))?);
                    if !cmd_given {
                        config.remove("Cmd");
                    }
                }
                "ENV" => set_environment(config, &pairs(rest).map_err(bad)?),
                "LABEL" => {
                    let labels = pairs(rest).map_err(bad)?.into_iter().map(|(name, value)| (name, value.into()));
                    object(config, "Labels").extend(labels);
                }
                "EXPOSE" => {
                    for port in rest.split_whitespace() {
                        let port =
                            port_of(port).ok_or_else(|| bad("a port is a number, with `/tcp`, `/udp` or `/sctp`"))?;
                        object(config, "ExposedPorts").insert(port, json!({}));
                    }
                }
                "VOLUME" => {
                    for path in paths(rest).map_err(|reason| bad(&reason))? {
                        object(config, "Volumes").insert(path, json!({}));
                    }
                }
                "USER" => drop(config.insert("User".into(), rest.into())),
                "STOPSIGNAL" => drop(config.insert("StopSignal".into(), rest.into())),
                "WORKDIR" => {
                    let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
                    let dir = if rest.starts_with('/') {
                        rest.to_owned()
                    } else {
                        format!("{}/{rest}", before.trim_end_matches('/'))
                    };
                    config.insert("WorkingDir".into(), dir.into());
                }
                _ => {
                    return Err(bad(
                        "known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object"),
    }
}

fn set_environment(config: &mut Map<String, Value>, pairs: &[(String, String)]) {
    let mut lines: Vec<String> = config
        .get("Env")
        .and_then(Value::as_array)
        .map(|lines| lines.iter().filter_map(|line| line.as_str().map(ToOwned::to_owned)).collect())
        .unwrap_or_default();
    for (name, value) in pairs {
        let line = format!("{name}={value}");
        match lines.iter_mut().find(|known| known.split_once('=').is_some_and(|(known, _)| known == name)) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
    }
    config.insert("Env".into(), json!(lines));
}

/// A JSON list of words, or a line for the shell.
fn command(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    if text.starts_with('[') {
        let words: Vec<String> = serde_json::from_str(text).map_err(|error| format!("it is no JSON list: {error}"))?;
        return Ok(json!(words));
    }
    Ok(json!(["/bin/sh", "-c", text]))
}

/// A JSON list of paths, or paths with spaces between them.
fn paths(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("it is no JSON list: {error}"));
    }
    Ok(text.split_whitespace().map(ToOwned::to_owned).collect())
}

/// `80` or `80/udp` as `80/tcp` or `80/udp`.
fn port_of(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = number.parse().ok()?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}

/// `NAME=value NAME="other value"`, or `NAME value to the end`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("a value is missing: `NAME=value`")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let mut found = Vec::new();
    for word in words(text)? {
        let (name, value) = word.split_once('=').ok_or("a value is missing: `NAME=value`")?;
        if name.is_empty() {
            return Err("a name is missing: `NAME=value`");
        }
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(found)
}

/// Words with spaces between them; quotes and backslashes keep spaces in a word.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => {
                let next = characters.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (character, Some(open)) if character == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (character, None) if character.is_whitespace() => words.extend(word.take()),
            (character, _) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

/// Seconds since the epoch as UTC (RFC 3339).
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Days are counted from 0000-03-01 on, in eras of 400 years, so that the leap day is the last of its year.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn applied(base: &Value, changes: &[&str]) -> Value {
        let mut document = Document::parse(base.to_string().as_bytes()).unwrap();
        document.apply(&changes.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let mut value: Value = serde_json::from_slice(&document.bytes()).unwrap();
        value["config"].take()
    }

    #[test]
    fn changes_are_those_of_a_dockerfile() {
        let base =
            json!({"config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "WorkingDir": "/srv", "Labels": null}});
        let config = applied(
            &base,
            &[
                "ENV A=2 B=\"two words\" C=a\\ b",
                "env D rest of line",
                "LABEL x=1 y='2 3'",
                "EXPOSE 80 53/udp",
                "VOLUME /a /b",
                "VOLUME [\"/c d\"]",
                "USER app:app",
                "WORKDIR sub",
                "STOPSIGNAL SIGINT",
                "CMD [\"run\", \"me\"]",
            ],
        );
        assert_eq!(config["Env"], json!(["PATH=/bin", "A=2", "B=two words", "C=a b", "D=rest of line"]));
        assert_eq!(config["Labels"], json!({"x": "1", "y": "2 3"}));
        assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["Volumes"], json!({"/a": {}, "/b": {}, "/c d": {}}));
        assert_eq!((&config["User"], &config["WorkingDir"]), (&json!("app:app"), &json!("/srv/sub")));
        assert_eq!((&config["Cmd"], &config["StopSignal"]), (&json!(["run", "me"]), &json!("SIGINT")));
        let config = applied(&base, &["ENTRYPOINT exec me"]);
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "exec me"]));
        assert_eq!(config.get("Cmd"), None);
        let config = applied(&base, &["CMD [\"kept\"]", "ENTRYPOINT [\"/e\"]"]);
        assert_eq!(config["Cmd"], json!(["kept"]));
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        for change in [
            "",
            "FROM x",
            "ENV",
            "ENV A",
            "LABEL =x",
            "LABEL a=\"b",
            "EXPOSE http",
            "EXPOSE 99999",
            "CMD [1]",
            "VOLUME [",
            "ENV A=\\",
        ] {
            let mut document = Document::new("linux", "amd64", None);
            let error = document.apply(&[change.to_owned()]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("change {change:?}: ")), "{error}");
        }
    }
}
