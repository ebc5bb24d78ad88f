//! Releases: what operators list and give back.

use countersign_wire::id::RunId;
use serde_json::{Value, json};

use super::find_host;
use crate::error::Error;
use crate::service::Service;

pub(super) async fn list(service: &Service, host: Option<&str>, limit: u32) -> Result<Value, Error> {
    let host = match host {
        Some(text) => Some(find_host(service, text).await?.snapshot.host),
        None => None,
    };
    Ok(json!({"releases": service.releases(host, limit).await?}))
}

pub(super) async fn refund(service: &Service, run: &RunId, actor: &str) -> Result<Value, Error> {
    service.refund(run, actor).await?;
    Ok(json!({"refunded": run}))
}
