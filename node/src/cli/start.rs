//! `reelkv node start`: one node until it is told to stop.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::NodeArgs;
use crate::logs;
use crate::process::NodeProcess;

/// Runs a node. Exit status 0 after SIGTERM or Ctrl-C, 1 if it cannot run or go on, 2 for a bad
/// setting, as which another node's directory counts.
pub(super) async fn run(args: NodeArgs) -> ExitCode {
    let config = match args.resolve() {
        Ok(config) => config,
        Err(error) => return refuse(2, &error),
    };
    if let Err(error) = logs::start(&config.log) {
        return refuse(2, &error);
    }
    // Before anything is opened, so that an early signal is not lost.
    let stopped = match Stopped::listen() {
        Ok(stopped) => stopped,
        Err(error) => return refuse(1, &error),
    };
    let options = config.options;
    let (addr, zone, dir) = (
        options.addr.clone(),
        options.zone.clone(),
        options.data_dir.clone(),
    );
    let mut process = match NodeProcess::start(options, config.listen, config.http).await {
        Ok(process) => process,
        Err(error) => return refuse(if error.is_foreign() { 2 } else { 1 }, &error),
    };
    tracing::info!(addr, zone, data_dir = %dir.display(), release = env!("CARGO_PKG_VERSION"), "the node serves");
    let failed = process.failed();
    let reason = tokio::select! {
        () = stopped.wait() => None,
        reason = failed => Some(reason),
    };
    match reason {
        None => {
            tracing::info!("stopping: leaders are handed over");
            process.stop().await;
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Some(reason) => {
            tracing::error!(reason, "the node cannot go on");
            process.stop().await;
            refuse(1, &reason)
        }
    }
}

fn refuse(status: u8, why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(status)
}

/// The two signals that ask a node to stop.
pub(super) struct Stopped {
    terminated: tokio::signal::unix::Signal,
    interrupted: tokio::signal::unix::Signal,
}

impl Stopped {
    /// From now on the signals no longer end the process.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub(super) fn listen() -> std::io::Result<Self> {
        let terminated = signal(SignalKind::terminate())?;
        Ok(Self {
            terminated,
            interrupted: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either.
    pub(super) async fn wait(mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }
}
