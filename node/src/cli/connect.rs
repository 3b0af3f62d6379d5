//! How commands reach the cluster.

use std::time::Duration;

use clap::Args;
use reelkv_client::{Client, ErrorKind, Keyspace};

use super::failure::Failure;

/// How long a call may take when nobody says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The longest time that may be asked for.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectArgs {
    /// Nodes to begin with; the others are learned from them
    #[arg(
        long,
        env = "REELKV_ADDR",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:7301",
        help_heading = "Connection"
    )]
    pub(crate) addr: Vec<String>,
    /// How long each request may take, all its tries included, e.g. 500ms, 10s, 2m [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Connection")]
    pub(crate) timeout: Option<Duration>,
}

impl ConnectArgs {
    /// A client whose calls take at most `--timeout`.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        self.client_within(TIMEOUT_DEFAULT).await
    }

    /// Likewise, for calls that may take longer when nobody says otherwise.
    pub(crate) async fn client_within(&self, default: Duration) -> Result<Client, Failure> {
        let timeout = self.timeout.unwrap_or(default);
        let client = Client::builder().addrs(&self.addr).timeout(timeout);
        Ok(client.build().await?)
    }

    /// A client that has not contacted anybody yet.
    pub(crate) async fn lazy_client(&self) -> Result<Client, Failure> {
        let timeout = self.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let client = Client::builder().addrs(&self.addr).timeout(timeout).lazy();
        Ok(client.build().await?)
    }

    /// The keyspace called `name`, on a new client.
    pub(crate) async fn keyspace(&self, name: &str) -> Result<Keyspace, Failure> {
        let client = self.client().await?;
        let error = match client.keyspace(name).await {
            Ok(keyspace) => return Ok(keyspace),
            Err(error) => error,
        };
        // Without a cluster there are no keyspaces either, but another thing is to be done about it.
        if *error.kind() == ErrorKind::UnknownKeyspace
            && let Ok(directory) = client.admin().directory().await
            && directory.cluster_id.is_empty()
        {
            let addrs = self.addr.join(",");
            return Err(Failure::no(format!(
                "{addrs} belongs to no cluster yet; make one with `reelkv cluster init`"
            )));
        }
        Err(error.into())
    }
}

/// Reads `500ms`, `10s`, `1.5m`, `2h`; a number alone means seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        unit => return Err(format!("{unit:?} is none of the units ms, s, m, h")),
    };
    let is_plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number: f64 = match digits.parse() {
        Ok(number) if is_plain => number,
        _ => return Err("expected a time like 500ms, 10s or 2m".to_owned()),
    };
    match Duration::try_from_secs_f64(number * unit_s) {
        Ok(time) if time >= Duration::from_millis(1) && time <= DURATION_MAX => Ok(time),
        _ => Err("must be between 1ms and 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        let read = [
            ("500ms", 500),
            ("10s", 10_000),
            ("3", 3_000),
            ("1.5m", 90_000),
            ("2h", 7_200_000),
        ];
        for (text, ms) in read {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "s", "-1s", "10 s", "1d", "0", "0ms", "25h", "1e3s", "inf", "NaN", "1.2.3s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
