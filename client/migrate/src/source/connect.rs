//! Connections, and errors that name the server.

use std::time::Duration;

use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::error::MigrateError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What makes every session print and parse values alike, and wait for us however long we take.
///
/// `row_security = off` turns rows hidden by a policy into an error instead of a silent loss.
const SESSION_SETTINGS: &str = "
    SET standard_conforming_strings = on;
    SET search_path = pg_catalog;
    SET DateStyle = 'ISO, YMD';
    SET IntervalStyle = 'iso_8601';
    SET TimeZone = 'UTC';
    SET extra_float_digits = 1;
    SET bytea_output = 'hex';
    SET xmloption = 'content';
    SET lc_monetary = 'C';
    SET row_security = off;
    SET statement_timeout = 0;
    SET lock_timeout = 0;
    SET idle_in_transaction_session_timeout = 0";

/// A PostgreSQL database to connect to, any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    config: Config,
    name: String,
}

impl Server {
    /// From `postgres://user:password@host:port/database?host=/socket/directory` or `host=… user=…`.
    pub(crate) fn parse(url: &str) -> Result<Server, MigrateError> {
        let mut config: Config = url.parse().map_err(|error| {
            MigrateError::InvalidOptions(format!("the PostgreSQL URL: {}", chain(&error)))
        })?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.application_name("reelkv-migrate");
        let name = describe(&config);
        Ok(Server { config, name })
    }

    /// Host, port and database, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn connect(&self) -> Result<Session, MigrateError> {
        let (client, connection) = self
            .config
            .connect(NoTls)
            .await
            .map_err(|error| self.connect_error(&error))?;
        let server = self.name.clone();
        tokio::spawn(async move {
            // Whoever waits for an answer gets the error too, and reports it.
            if let Err(error) = connection.await {
                tracing::debug!(%server, %error, "connection to PostgreSQL ended");
            }
        });
        let session = Session {
            client,
            server: self.name.clone(),
        };
        session.execute("session settings", SESSION_SETTINGS).await?;
        Ok(session)
    }

    fn connect_error(&self, error: &tokio_postgres::Error) -> MigrateError {
        let server = self.name.clone();
        let refused = [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ];
        let text = chain(error);
        let refused =
            error.code().is_some_and(|code| refused.contains(code)) || text.contains("password missing");
        if refused {
            let user = self.config.get_user().unwrap_or_default().to_owned();
            return MigrateError::Password {
                server,
                user,
                reason: text,
            };
        }
        MigrateError::Connection { server, reason: text }
    }
}

fn describe(config: &Config) -> String {
    let mut hosts = Vec::new();
    for (index, host) in config.get_hosts().iter().enumerate() {
        let ports = config.get_ports();
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        hosts.push(match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
        });
    }
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}, database {database:?}", hosts.join(","))
}

/// An error with its causes: the outermost text of the library is "db error".
pub(crate) fn chain(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    server: String,
}

impl Session {
    /// Runs statements that return nothing of interest. `context` says what for.
    pub(crate) async fn execute(&self, context: &str, sql: &str) -> Result<(), MigrateError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|error| self.error(context, &error))
    }

    /// Runs a query.
    pub(crate) async fn query(
        &self,
        context: &str,
        sql: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, MigrateError> {
        self.client
            .query(sql, parameters)
            .await
            .map_err(|error| self.error(context, &error))
    }

    /// What an error of this session means.
    pub(crate) fn error(&self, context: &str, error: &tokio_postgres::Error) -> MigrateError {
        let lost = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
        ];
        let gone = [
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        match error.code() {
            Some(code) if lost.contains(code) => self.lost(context, error),
            Some(code) if gone.contains(code) => MigrateError::TableVanished {
                table: context.to_owned(),
                reason: chain(error),
            },
            Some(_) => MigrateError::Source {
                context: context.to_owned(),
                reason: chain(error),
            },
            None => self.lost(context, error),
        }
    }

    fn lost(&self, context: &str, error: &tokio_postgres::Error) -> MigrateError {
        let reason = format!("{context}: {}", chain(error));
        MigrateError::Connection {
            server: self.server.clone(),
            reason,
        }
    }

    /// Reads one value of a row, whose type the query fixes.
    pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
        &self,
        context: &str,
        row: &'a tokio_postgres::Row,
        index: usize,
    ) -> Result<T, MigrateError> {
        row.try_get(index).map_err(|error| MigrateError::Decode {
            context: format!("{context}, result column {index}"),
            reason: chain(&error),
        })
    }
}
