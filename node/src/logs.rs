//! Log lines, to standard error: text for people, JSON for machines.
//!
//! `--log-level` is a level, then exceptions (`info,reelkv::raft=debug`), as tracing-subscriber
//! reads them with two differences. A bare word must be a level: `inof` would else be taken for a
//! part of the program, and silence everything. And exceptions alone leave the rest at `info`.

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Libraries that tell more than an operator wants, and what is kept of them unless the level names
/// them. A name stands for all that begin with it: `hyper` is `hyper_util` too. openraft warns of
/// every message that does not arrive, several times a second while a node is down; who notices a
/// silent node says so once (`rpc::transport`, `server`).
const QUIET: [(&str, LevelFilter); 6] = [
    ("openraft", LevelFilter::ERROR),
    ("lsm_tree", LevelFilter::WARN),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("tonic", LevelFilter::WARN),
    ("sled", LevelFilter::WARN),
];

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text, in colours if standard error is a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, then exceptions separated by commas.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Why nothing can be logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The level cannot be read.
    #[error("--log-level: {0}")]
    Level(String),
    /// The process has its log already.
    #[error("logging was started before")]
    Started,
}

/// Sends the process's log lines to standard error. To be called once.
///
/// # Errors
/// A level that cannot be read, or a second call.
pub fn start(config: &LogConfig) -> Result<(), LogError> {
    let subscriber = subscriber(config, io::stderr, io::stderr().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Started)
}

/// Whether a level can be read, else why not.
pub(crate) fn check_level(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

fn subscriber(
    config: &LogConfig,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
    colours: bool,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError> {
    let filter = filter(&config.level).map_err(LogError::Level)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match config.format {
        LogFormat::Text => Box::new(lines.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).finish()),
    })
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    let mut base = LevelFilter::INFO;
    let mut named = Vec::new();
    for directive in level
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
    {
        if directive.contains(['=', '[']) {
            named.push(directive);
        } else {
            base = directive.parse().map_err(|_| {
                format!("{directive:?} is not a level; there are off, error, warn, info, debug and trace, and part=level")
            })?;
        }
    }
    let kept = QUIET
        .iter()
        .filter(|(library, _)| !named.iter().any(|directive| directive.starts_with(library)));
    let mut directives = vec![base.to_string()];
    directives.extend(kept.map(|(library, most)| format!("{library}={}", base.min(*most))));
    directives.extend(named.iter().map(|directive| (*directive).to_owned()));
    EnvFilter::try_new(directives.join(",")).map_err(|error| format!("{level:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of a few events.
    fn logged(level: &str, format: LogFormat) -> String {
        let page = Page::default();
        let writer = page.clone();
        let config = LogConfig {
            level: level.to_owned(),
            format,
        };
        let subscriber = subscriber(&config, move || writer.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: "reelkv::server", "own-error");
            tracing::info!(target: "reelkv::server", shard = 7, "own-info");
            tracing::debug!(target: "reelkv::raft", "raft-debug");
            tracing::warn!(target: "openraft::core", "openraft-warn");
            tracing::warn!(target: "h2::proto", "h2-warn");
            tracing::info!(target: "openraft::core", "openraft-info");
            tracing::info!(target: "hyper_util::client", "hyper-info");
        });
        String::from_utf8(page.0.lock().clone()).unwrap()
    }

    fn events(level: &str) -> Vec<&'static str> {
        const ALL: [&str; 7] = [
            "own-error",
            "own-info",
            "raft-debug",
            "openraft-warn",
            "openraft-info",
            "h2-warn",
            "hyper-info",
        ];
        let text = logged(level, LogFormat::Text);
        ALL.into_iter().filter(|event| text.contains(event)).collect()
    }

    #[test]
    fn libraries_are_quiet_unless_the_level_names_them() {
        assert_eq!(events("info"), ["own-error", "own-info", "h2-warn"]);
        assert_eq!(
            events("trace"),
            ["own-error", "own-info", "raft-debug", "h2-warn"]
        );
        assert_eq!(
            events("info,openraft=info"),
            [
                "own-error",
                "own-info",
                "openraft-warn",
                "openraft-info",
                "h2-warn"
            ]
        );
        assert_eq!(
            events("info, openraft::core=debug ,hyper=debug"),
            [
                "own-error",
                "own-info",
                "openraft-warn",
                "openraft-info",
                "h2-warn",
                "hyper-info"
            ]
        );
    }

    #[test]
    fn a_low_level_silences_libraries_too() {
        assert_eq!(events("error"), ["own-error"]);
        assert_eq!(events("off"), Vec::<&str>::new());
    }

    #[test]
    fn exceptions_alone_leave_the_rest_at_info() {
        assert_eq!(
            events("reelkv::raft=debug"),
            ["own-error", "own-info", "raft-debug", "h2-warn"]
        );
        assert_eq!(events(""), events("info"));
    }

    #[test]
    fn a_level_that_cannot_be_read_names_the_flag_in_one_line() {
        for level in ["inof", "reelkv::raft=loud", "info,debgu", "reelkv[=info"] {
            let config = LogConfig {
                level: level.to_owned(),
                format: LogFormat::Text,
            };
            let refused = subscriber(&config, io::sink, false)
                .err()
                .map(|error| error.to_string());
            let refused = refused.unwrap_or_else(|| panic!("{level:?} was accepted"));
            assert!(refused.starts_with("--log-level: \""), "{refused}");
            assert_eq!(refused.lines().count(), 1, "{refused}");
        }
    }

    #[test]
    fn text_has_no_colours_off_a_terminal_and_json_has_one_object_a_line() {
        let text = logged("info", LogFormat::Text);
        assert!(text.contains(" INFO reelkv::server: own-info shard=7"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");

        let json = logged("info", LogFormat::Json);
        let lines: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3, "{json}");
        assert_eq!(lines[1]["message"], "own-info");
        assert_eq!(lines[1]["shard"], 7);
    }
}
