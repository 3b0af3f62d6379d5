//! Reads the node's small files back from the device again and again: identity, map, what other nodes have
//! shown, and the ledger of damage. One that is not as it was written is told, and written again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::member::Member;
use crate::disk::offload;
use crate::health::{Action, Damage, Health, KeptFile, Structure};

/// Until told to stop.
pub(super) async fn run(member: Arc<Member>, stop: CancellationToken) {
    let cycle = Duration::from_millis(member.options.replicas.scrub_cycle_ms);
    loop {
        for (structure, file) in member.kept_files() {
            if let Err(error) = scrub(structure, file, &member.health).await {
                tracing::debug!(%error, "a file was not read this time");
            }
        }
        member.health.scrub().await;
        tokio::select! {
            biased;
            () = tokio::time::sleep(cycle) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn scrub(structure: Structure, file: Arc<KeptFile>, health: &Health) -> io::Result<()> {
    let disk = file.disk().clone();
    let reader = file.clone();
    let Some((kind, what)) = offload(&*disk, move || reader.flaw()).await? else {
        return Ok(());
    };
    let name = file.path().file_name().unwrap_or_default().to_string_lossy();
    let position = format!("{name}: {what}");
    health.damaged(Damage::of_node(structure, kind, Action::Heal, position));
    let writer = file.clone();
    match offload(&*disk, move || writer.write_again()).await? {
        Ok(()) => health.repaired(0, structure),
        // It stays open, and the next cycle tries again.
        Err(error) => {
            tracing::warn!(path = %file.path().display(), %error, "a damaged file is not written yet")
        }
    }
    Ok(())
}
