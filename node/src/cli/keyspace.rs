//! `keyspace create` and `keyspace list`.

use clap::{Args, Subcommand};
use reelkv_client::CreateKeyspace;
use serde_json::{Value as Json, json};

use super::connect::ConnectArgs;
use super::failure::{Outcome, Status};
use super::keys::keyspace_name;
use super::output::{OutputArgs, Table, print, print_json, tell};
use super::render::KeyForm;

/// Make and list keyspaces
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyspaceCommand {
    Create(CreateArgs),
    List(ListArgs),
}

/// Make a keyspace
#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// Its name: 1 to 128 bytes, no control characters
    #[arg(value_parser = keyspace_name)]
    name: String,
    /// Cut its range into this many shards at even points of the first key byte [default: the cluster's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024), conflicts_with = "split_at")]
    shards: Option<u32>,
    /// Cut its range at these keys instead; may be repeated
    #[arg(long, value_name = "KEY")]
    split_at: Vec<String>,
    #[command(flatten)]
    form: KeyForm,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// List the keyspaces
#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(command: KeyspaceCommand) -> Outcome {
    match command {
        KeyspaceCommand::Create(args) => create(args).await,
        KeyspaceCommand::List(args) => list(args).await,
    }
}

async fn create(args: CreateArgs) -> Outcome {
    let split_keys = args.split_at.iter().map(|key| args.form.parse(key));
    let mut split_keys = split_keys.collect::<Result<Vec<_>, _>>()?;
    split_keys.sort();
    split_keys.dedup();
    let options = CreateKeyspace {
        shards: args.shards,
        split_keys,
    };
    let client = args.connect.client().await?;
    let keyspace = client.create_keyspace(&args.name, options).await?;
    if args.output.json {
        print_json(&json!({"keyspace_id": keyspace.id(), "name": keyspace.name()}))?;
    } else {
        tell(&format!(
            "keyspace {} is made, its id is {}",
            keyspace.name(),
            keyspace.id()
        ));
    }
    Ok(Status::Fine)
}

async fn list(args: ListArgs) -> Outcome {
    let client = args.connect.client().await?;
    let keyspaces = client.keyspaces().await?;
    if args.output.json {
        let one = |k: &reelkv_client::KeyspaceInfo| json!({"keyspace_id": k.id, "name": k.name, "shards": k.shards});
        print_json(&Json::Array(keyspaces.iter().map(one).collect()))?;
        return Ok(Status::Fine);
    }
    let mut table = Table::new(&["NAME", "#ID", "#SHARDS"]);
    for keyspace in &keyspaces {
        table.row([
            keyspace.name.clone(),
            keyspace.id.to_string(),
            keyspace.shards.to_string(),
        ]);
    }
    print(&table.text())?;
    Ok(Status::Fine)
}
